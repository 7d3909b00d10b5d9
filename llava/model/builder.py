"""One loader for every kind of LLaVA checkpoint."""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from llava.model.adapter import merge_adapter
from llava.model.checkpoint import NON_LORA, PROJECTOR, TOWER_KEYS, Checkpoint
from llava.model.description import CLASSES, find_base, make_config
from llava.model.engine import require_sdpa
from llava.model.fields import owns_tower
from llava.model.finite import require_finite_weights
from llava.model.graphs import MODES, OFF
from llava.model.hf_format import HF_KEYS
from llava.model.hub import HUB_ARGUMENTS
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.placement import placement_of
from llava.model.tokenizer import load_tokenizer
from llava.model.values import check_small_file
from llava.model.vision import VisionMixin
from llava.model.vocabulary import add_image_tokens, fit_vocabulary, require_rows, untie, warn_of_untrained_tokens
from llava.model.weight_files import WEIGHTS, read_model, weight_map
from llava.model.weights import claim_tower, copy_weights, refuse, without_peft_prefix
from visionzip_patch.config import VisionZipConfig
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

PROJECTOR_KEYS = "model.mm_projector."
LAYER_OR_END = re.compile(r".*\.layers\.\d+\.|(?:[^.]+\.){4}")  # where a weight of a tower belongs: how its name begins


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict | None = "auto",
    device: str | torch.device = "cuda",
    use_flash_attn: bool = False,
    visionzip: VisionZipConfig | dict | None = None,
    fast: str | None = None,
    overwrite_config: dict | None = None,
    **kwargs,
):
    """Load any LLaVA checkpoint: full, projector-only, LoRA, or in Hugging Face's format.

    What it is follows from config.json and the files present.

    Args:
        model_path: folder or hub id.
        model_base: the language model that a projector-only or LoRA checkpoint belongs to; a LoRA checkpoint may name
            it itself.
        model_name: not needed; taken because upstream's callers pass it.
        load_8bit: quantize the language model to 8 bits with bitsandbytes; tower and projector stay.
        load_4bit: quantize it to 4 bits (NF4).
        device_map: where the parts go, as in transformers; used if `device` is "cuda" and there is a GPU.
        device: "cuda" means a GPU if there is one, else the CPU; or any torch device, which then holds everything.
        use_flash_attn: the language model runs flash-attn 2; without it, SDPA.
        visionzip: a VisionZip setting; it replaces one that the checkpoint carries.
        fast: what `generate` does if its caller does not say: "static", "graphs" or "compile" (see there); None, or
            "off", is transformers' own loop.
        overwrite_config: fields of config.json and the values to put in their place, under LLaVA's names; of a
            checkpoint in Hugging Face's format also under its own.
        **kwargs: `dtype` (or `torch_dtype`; default fp16 on a GPU, fp32 on a CPU), `attn_implementation`, `revision`,
            `token`, and what else `from_pretrained` takes. `multimodal`, which evaluators pass, is not needed.

    Returns:
        tokenizer, model (in eval mode), image processor (None for a model without vision), context length in tokens.

    Raises:
        ValueError: no checkpoint there, a base missing, a damaged file, a field of a config file that is not known or
            out of range, weights missing, unexpected, of a wrong shape or not finite (named), a bad budget.
        ImportError: bitsandbytes or flash-attn is asked for but not installed.
    """
    kwargs.pop("multimodal", None)
    if kwargs.pop("customized_config", None) is not None:
        raise ValueError("customized_config is not taken: give the fields that differ as overwrite_config={...}.")
    use_flash_attn |= bool(kwargs.pop("use_flash_attention_2", False))
    if fast not in (None, OFF, *MODES):
        raise ValueError(f"fast={fast!r} is unknown; choose one of {', '.join(MODES)}, or {OFF}.")
    placement = placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs)
    if fast in MODES:
        require_sdpa(placement.get("attn_implementation") or "sdpa", fast)
    hub = {name: placement.pop(name) for name in HUB_ARGUMENTS if name in placement}

    # What it is.
    checkpoint = Checkpoint.inspect(model_path, **hub)
    base = find_base(checkpoint, model_base)
    config = make_config(checkpoint, base, visionzip, overwrite_config)

    # The model, and its tokenizer.
    model, absent = load_weights(base, config, placement)
    model.fast = fast
    source = checkpoint if checkpoint.has_tokenizer() else base
    tokenizer = load_tokenizer(source.path, **source.hub)

    # What was trained on top of it: in full, and as an adapter.
    trained = read_trained(checkpoint)
    refuse(own_weights(model, checkpoint, trained) - trained.keys(), "missing from", checkpoint.path)
    fit_vocabulary(model, trained, least=len(tokenizer))
    untie(model, trained)
    copy_weights(model, trained, checkpoint.path)
    claim_tower(model, trained)
    filled = set()
    if checkpoint.kind == "lora":
        model, filled = merge_adapter(model, checkpoint, base, least=len(tokenizer))
    places = checkpoint.path if base is checkpoint else f"{checkpoint.path} and {base.path}"
    refuse(absent - trained.keys() - filled, "missing from", places)

    # The tokens that images need.
    image_processor = None
    if (tower := model.get_vision_tower()) is not None:
        require_rows(model, tokenizer)
        warn_of_untrained_tokens(model, tokenizer)
        add_image_tokens(model, tokenizer)
        image_processor = tower.image_processor

    # Nothing that is not finite.
    on_top = trained.keys() | filled
    require_finite_weights(
        model.named_parameters(), lambda name: source_of(name, model, checkpoint if name in on_top else base)
    )
    return tokenizer, model.eval(), image_processor, context_length(model.config)


def load_weights(base: Checkpoint, config, placement: dict) -> tuple[LlavaMetaForCausalLM, set[str]]:
    """Make our class, and read its weights.

    Args:
        base: where the weights are.
        config: of our class.
        placement: see `placement_of`.

    Returns:
        The model, and the names of weights that `base` lacks.

    Raises:
        ValueError: weights that the class has no place for, by name.
    """
    check_small_file(base.find("generation_config.json"))
    mapping = HF_KEYS if base.kind == "hf" else None
    model, absent, unexpected = read_model(
        CLASSES[config.model_type], base.path, config=config, key_mapping=mapping, **placement, **base.hub
    )
    ignored = ("rotary_emb.inv_freq",)  # old files hold this buffer
    tower = model.get_vision_tower()
    if tower is not None and owns_tower(config):
        of_tower = {key for key in model.state_dict() if key.startswith(TOWER_KEYS)}
        if of_tower and of_tower <= absent:
            warn_once(
                logger,
                "unfreeze_mm_vision_tower is set, but %s has no weights of a tower: those of %s are used.",
                base.path,
                config.mm_vision_tower,
            )
            tower.drop()
            absent -= of_tower
        elif lacking := {key.removeprefix(TOWER_KEYS) for key in absent & of_tower}:
            absent = absent - of_tower | {TOWER_KEYS + key for key in tower.drop_unread(lacking)}
    if not owns_tower(config):
        ignored += (TOWER_KEYS,)
    if tower is not None and not tower.is_loaded:
        tower.load_model(dtype=model.dtype)
        tower.to(model.device)
        report_other_tower(model, base, {key for key in unexpected if TOWER_KEYS in key})
    refuse({key for key in unexpected if not any(part in key for part in ignored)}, "not expected in", base.path)
    return model, absent


def report_other_tower(model: VisionMixin, base: Checkpoint, names: set[str]) -> None:
    """Warn if a checkpoint holds weights of a tower, by `names`, that are not those of its mm_vision_tower.

    LLaVA uses mm_vision_tower where `unfreeze_mm_vision_tower` is false, and saves its weights all the same.
    """
    own = dict(model.require_vision_tower().vision_tower.named_parameters())
    for name, theirs in base.tensors_of_model(names).items():
        ours = own.get(without_peft_prefix(name).removeprefix(TOWER_KEYS))
        if ours is None or ours.is_meta or ours.numel() != theirs.numel():  # also parts that ZeRO-3 has taken away
            continue
        like = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)  # one may be a rounded copy of the other
        if not torch.equal(ours.detach().cpu().to(like), theirs.to(like)):
            warn_once(
                logger,
                "%s holds weights of a vision tower that differ from those of %s (%s, for one). They are not used, "
                "because config.json does not say that the tower was trained: if it was, set unfreeze_mm_vision_tower "
                "to true there.",
                base.path,
                model.config.mm_vision_tower,
                name,
            )
            return


def read_trained(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read what a projector-only or LoRA checkpoint holds in full: the projector, perhaps tower and vocabulary."""
    names = {"projector": PROJECTOR, "lora": NON_LORA}.get(checkpoint.kind, ())
    if checkpoint.kind != "projector" and not checkpoint.find(*names):
        return {}
    return {without_peft_prefix(key): value for key, value in checkpoint.tensors(names).items()}


def own_weights(model: VisionMixin, checkpoint: Checkpoint, trained: dict[str, Tensor]) -> set[str]:
    """Name the weights that a projector-only or LoRA checkpoint must hold, even where its base has them, too.

    These are the projector's, and of a tower all weights of the parts of which it holds some.
    """
    weights = {name for name, _ in model.named_parameters()}
    of_projector = {name for name in weights if name.startswith(PROJECTOR_KEYS)}
    is_whole = checkpoint.kind == "projector" or (
        checkpoint.kind == "lora"
        and checkpoint.find(*NON_LORA)
        and not getattr(model.config, "freeze_mm_mlp_adapter", False)
    )
    needed = of_projector if is_whole or not of_projector.isdisjoint(trained) else set()

    of_tower = {name for name in weights if name.startswith(TOWER_KEYS)}
    # Where whole layers were trained, each layer, and what is before or behind them, has to be whole; else each module.
    layers = group(of_tower, lambda name: found[0] if (found := LAYER_OR_END.match(name)) else name)
    is_by_layer = any(part <= trained.keys() for prefix, part in layers.items() if ".layers." in prefix)
    parts = layers if is_by_layer else group(of_tower, lambda name: name.rpartition(".")[0])
    return needed.union(*(part for part in parts.values() if not part.isdisjoint(trained)))


def group(names: Iterable[str], part_of: Callable[[str], str]) -> dict[str, set[str]]:
    """Sort names into the parts that they belong to."""
    parts: dict[str, set[str]] = {}
    for name in names:
        parts.setdefault(part_of(name), set()).add(name)
    return parts


def source_of(name: str, model: VisionMixin, checkpoint: Checkpoint) -> str:
    """Return the file that a weight of `checkpoint`, or of its tower's folder, is in; the folder if it is not known."""
    if name.startswith(TOWER_KEYS) and not owns_tower(model.config):
        return model.config.mm_vision_tower
    if checkpoint.kind in ("projector", "lora") or (file := checkpoint.find(*WEIGHTS)) is None:
        return checkpoint.path
    return str(Path(file).parent / weight_map(file).get(name, "")) if file.endswith(".json") else file


def context_length(config) -> int:
    """Return how many tokens upstream lets a prompt and its answer have together."""
    return getattr(config, "max_sequence_length", None) or 2048
