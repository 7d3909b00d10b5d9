"""One loader for every kind of LLaVA checkpoint."""

import logging
import re
from importlib.util import find_spec

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoint import (
    ADAPTER,
    CONTENTS,
    HF_KEYS,
    HUB_ARGUMENTS,
    NON_LORA,
    PROJECTOR,
    TOWER_KEYS,
    Checkpoint,
    from_hf_config,
    language_model,
    read_json,
    read_model,
    resolve_beside,
    resolve_tower,
)
from llava.model.engine import require_sdpa
from llava.model.graphs import MODES, OFF
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.llava_arch import owns_tower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.tokenizer import load_tokenizer
from visionzip_patch.config import VisionZipConfig

logger = logging.getLogger(__name__)

CLASSES = {
    "llava_llama": LlavaLlamaForCausalLM,
    "llava_mistral": LlavaMistralForCausalLM,
    "llava_qwen": LlavaQwenForCausalLM,
}
NEVER_QUANTIZED = ["lm_head", "model.vision_tower", "model.mm_projector"]  # full names: parts would not match
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


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
    **kwargs,
):
    """Load any LLaVA checkpoint: full, projector-only, LoRA, or in Hugging Face's format.

    What it is follows from config.json and the files present.

    Args:
        model_path: folder or hub id.
        model_base: the language model that a projector-only or LoRA checkpoint belongs to; a LoRA checkpoint may name
            it itself.
        model_name: not needed; taken because upstream's callers pass it.
        load_8bit, load_4bit: quantize the language model with bitsandbytes (4-bit: NF4); tower and projector stay.
        device_map: where the parts go, as in transformers; used if `device` is "cuda" and there is a GPU.
        device: "cuda" means a GPU if there is one, else the CPU; or any torch device, which then holds everything.
        use_flash_attn: the language model runs flash-attn 2; without it, SDPA.
        visionzip: a VisionZip setting; it replaces one that the checkpoint carries.
        fast: what `generate` does if its caller does not say: "static", "graphs" or "compile" (see there); None, or
            "off", is transformers' own loop.
        kwargs: `dtype` (or `torch_dtype`; default fp16 on a GPU, fp32 on a CPU), `attn_implementation`, `revision`,
            `token`, and what else `from_pretrained` takes. `multimodal` and `customized_config`, which evaluators pass,
            are ignored.

    Returns:
        tokenizer, model (in eval mode), image processor (None for a model without vision), context length in tokens.

    Raises:
        ValueError: no checkpoint there, a base missing, a damaged file, weights missing, unexpected or of a wrong shape
            (named), a bad budget.
        ImportError: bitsandbytes or flash-attn is asked for but not installed.
    """
    kwargs.pop("multimodal", None)
    kwargs.pop("customized_config", None)
    use_flash_attn |= bool(kwargs.pop("use_flash_attention_2", False))
    if fast not in (None, OFF, *MODES):
        raise ValueError(f"fast={fast!r} is unknown; choose one of {', '.join(MODES)}, or {OFF}.")
    placement = placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs)
    if fast in MODES:
        require_sdpa(placement.get("attn_implementation") or "sdpa", fast)
    hub = {name: placement.pop(name) for name in HUB_ARGUMENTS if name in placement}
    checkpoint = Checkpoint.inspect(model_path, **hub)
    base = find_base(checkpoint, model_base)
    config = make_config(checkpoint, base, visionzip)

    model, absent = load_weights(base, config, placement)
    model.fast = fast
    trained = trained_beside(checkpoint)
    adapter = checkpoint.tensors(ADAPTER) if checkpoint.kind == "lora" else {}
    tables = [value for key, value in [*trained.items(), *adapter.items()] if without_peft_prefix(key) in EMBEDDINGS]
    grow_vocabulary(model, tables)
    copy_weights(model, trained, checkpoint.path)
    places = checkpoint.path if base is checkpoint else f"{checkpoint.path} and {base.path}"
    refuse(absent - trained.keys(), "missing from", places)
    if adapter:
        model = merge_lora(model, checkpoint, adapter)
    tokenizer = load_tokenizer(base.path, **base.hub)
    if (tower := model.get_vision_tower()) is None:
        return tokenizer, model.eval(), None, context_length(model.config)
    add_image_tokens(model, tokenizer)
    if not tower.is_loaded:  # after LoRA, whose target names would match the tower's layers too
        read_tower(model)
    return tokenizer, model.eval(), tower.image_processor, context_length(model.config)


def read_config(model_path: str) -> tuple[PretrainedConfig, VisionTower]:
    """A checkpoint's config, and its vision tower without weights: for checks before anything is loaded.

    Raises:
        ValueError: no checkpoint there, or one of a model that sees no images.
    """
    checkpoint = Checkpoint.inspect(model_path)
    config = make_config(checkpoint, checkpoint, None)
    if not getattr(config, "mm_vision_tower", None):
        raise ValueError(f"{model_path} sees no images: there is no mm_vision_tower in its config.json.")
    return config, build_vision_tower(config, delay_load=True)


def find_base(checkpoint: Checkpoint, model_base: str | None) -> Checkpoint:
    """Where the language model's weights are: the checkpoint itself, or what a projector or LoRA goes on."""
    path, content = checkpoint.path, CONTENTS[checkpoint.kind]
    if checkpoint.kind not in ("projector", "lora"):
        if model_base is not None:
            logger.warning("%s holds %s; model_base=%s is not used.", path, content, model_base)
        return checkpoint
    if model_base is None and checkpoint.kind == "lora":
        model_base = read_json(checkpoint.find("adapter_config.json")).get("base_model_name_or_path")
        model_base = resolve_beside(path, model_base) if model_base else None
    advice = "pass model_base, the folder or hub id of the language model it was trained on."
    if not model_base:
        raise ValueError(f"{path!r} holds {content}: {advice}")
    try:
        hub = {name: value for name, value in checkpoint.hub.items() if name != "revision"}
        base = Checkpoint.inspect(model_base, **hub)
    except ValueError as error:
        raise ValueError(f"{path!r} holds {content}: {advice} Tried {model_base!r}. {error}") from error
    if base.kind not in ("text", "full", "hf"):
        raise ValueError(f"{path!r} holds {content}, and {model_base!r} {CONTENTS[base.kind]}: {advice}")
    return base


def make_config(checkpoint: Checkpoint, base: Checkpoint, visionzip: VisionZipConfig | dict | None):
    """The config of our class for a checkpoint, with the tower's place settled."""
    if checkpoint.kind == "lora" and not checkpoint.config:
        raise ValueError(
            f"{checkpoint.path!r} has adapter files but no config.json: it does not say which tower it uses."
        )
    values = from_hf_config(checkpoint) if checkpoint.kind == "hf" else resolve_tower(checkpoint)
    kind = language_model(values)
    if base is not checkpoint:
        own = from_hf_config(base) if base.kind == "hf" else base.config
        if language_model(own) != kind:
            raise ValueError(
                f"{checkpoint.path!r} was trained on a {kind.removeprefix('llava_')} model, but {base.path!r} is a "
                f"{language_model(own).removeprefix('llava_')} model: pass the right one as model_base."
            )
        values["vocab_size"] = own.get("vocab_size", values.get("vocab_size"))  # training may have added tokens
    if isinstance(visionzip, dict):
        visionzip = VisionZipConfig.from_dict(visionzip)
    if visionzip is not None:
        if not values.get("mm_vision_tower"):
            raise ValueError(f"{checkpoint.path!r} holds {CONTENTS[checkpoint.kind]}: there is nothing to zip.")
        values["visionzip"] = visionzip.to_dict()
    try:
        return CLASSES[kind].config_class.from_dict({**values, "model_type": kind})
    except StrictDataclassError as error:
        raise ValueError(f"config.json of {checkpoint.path!r} makes no model: {error.__cause__ or error}") from error


def placement_of(device, device_map, load_8bit, load_4bit, use_flash_attn, kwargs) -> dict:
    """Arguments of `from_pretrained`: where the weights go, in which dtype, quantized or not."""
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit exclude each other.")
    if (load_8bit or load_4bit) and not find_spec("bitsandbytes"):
        raise ImportError("load_8bit and load_4bit need bitsandbytes: pip install bitsandbytes.")
    if use_flash_attn and not find_spec("flash_attn"):
        raise ImportError(
            "use_flash_attn needs flash-attn: pip install --no-build-isolation flash-attn. Without the flag, "
            "PyTorch's own attention (SDPA) runs."
        )
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    if device != torch.device("cuda") or device_map is None:
        device_map = {"": device}
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    on_cpu = all(str(place) == "cpu" for place in places)
    placement = dict(kwargs)
    dtype = placement.pop("torch_dtype", None) or placement.pop("dtype", None)
    placement["dtype"] = dtype or (torch.float32 if on_cpu else torch.float16)
    placement["device_map"] = device_map
    if use_flash_attn:
        placement["attn_implementation"] = "flash_attention_2"
    if load_8bit or load_4bit:
        placement["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=placement["dtype"],
            llm_int8_skip_modules=NEVER_QUANTIZED,
        )
    return placement


def load_weights(base: Checkpoint, config, placement: dict) -> tuple[nn.Module, set[str]]:
    """Our class with the weights in `base`, and the names of those that `base` lacks.

    Raises:
        ValueError: weights that the class has no place for, by name.
    """
    mapping = HF_KEYS if base.kind == "hf" else None
    model, absent, unexpected = read_model(
        CLASSES[config.model_type], base.path, config=config, key_mapping=mapping, **placement, **base.hub
    )
    ignored = ("rotary_emb.inv_freq",)  # old files hold this buffer
    if owns_tower(config):
        of_tower = {key for key in model.state_dict() if key.startswith(TOWER_KEYS)}
        if of_tower and of_tower <= absent:
            logger.warning(
                "unfreeze_mm_vision_tower is set, but %s has no weights of a tower: those of %s are used.",
                base.path,
                config.mm_vision_tower,
            )
            model.get_vision_tower().drop()
            read_tower(model)
            absent -= of_tower
    else:
        ignored += (TOWER_KEYS,)  # as upstream: these come from mm_vision_tower
    refuse({key for key in unexpected if not any(part in key for part in ignored)}, "not expected in", base.path)
    return model, absent


def read_tower(model: nn.Module) -> None:
    """The weights of `mm_vision_tower`, beside those of the language model."""
    tower = model.get_vision_tower()
    tower.load_model(dtype=model.dtype)
    tower.to(model.device)


def trained_beside(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What a projector-only or LoRA checkpoint holds in full: the projector, the newline, perhaps the vocabulary."""
    if checkpoint.kind == "projector":
        return checkpoint.tensors(PROJECTOR)
    if checkpoint.kind == "lora" and checkpoint.find(*NON_LORA):
        return {without_peft_prefix(key): value for key, value in checkpoint.tensors(NON_LORA).items()}
    return {}


def merge_lora(model: nn.Module, checkpoint: Checkpoint, adapter: dict[str, Tensor]) -> nn.Module:
    """The model with LoRA weights added in. The tower's layers bear names that adapters target: it is left out, unless
    the adapter holds weights for it."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict  # only LoRA needs it

    config = PeftConfig.from_pretrained(checkpoint.path, **checkpoint.hub)
    tower = model.get_vision_tower()
    if tower is not None and tower.is_loaded and not any("vision_tower." in key for key in adapter):
        config.exclude_modules = r".*\bvision_tower\b.*"
    wrapped = PeftModel.from_pretrained(model, checkpoint.path, config=config, **checkpoint.hub)
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    given = {key for key in adapter if without_peft_prefix(key) not in EMBEDDINGS}
    refuse(given - expected, "not expected in", checkpoint.path)
    refuse(expected - given, "missing from", checkpoint.path)
    return wrapped.merge_and_unload()


def without_peft_prefix(key: str) -> str:
    """peft's `base_model.model.model.x` -> `model.x`; a tower's keys without the `vision_model.` of old."""
    key = re.sub(r"^(?:base_model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", key)
    return key.replace(f"{TOWER_KEYS}vision_model.", TOWER_KEYS)


def grow_vocabulary(model: nn.Module, tables: list[Tensor]) -> None:
    """Make room for a vocabulary that training made larger."""
    size = max(map(len, tables), default=0)
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)


def copy_weights(model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Copy tensors into a model by name; a name that it lacks, or another shape, is an error."""
    own = dict(model.named_parameters(remove_duplicate=False))
    refuse(tensors.keys() - own.keys(), "not expected in", path)
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key} in {path} has shape {tuple(value.shape)}, but the model built from config.json has "
                f"{tuple(own[key].shape)}: this base model and this checkpoint do not belong together."
            )
        if own[key].is_meta:
            raise ValueError(f"{key} was offloaded to CPU or disk, and cannot be filled in: choose another device_map.")
        own[key].data.copy_(value)


def refuse(keys: set[str], fault: str, path: str) -> None:
    if keys:
        some = ", ".join(sorted(keys)[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        raise ValueError(
            f"{len(keys)} weights are {fault} {path}: {some}. Its config.json does not describe these weights: check "
            f"that the download is complete, and mm_projector_type, mm_vision_tower and unfreeze_mm_vision_tower."
        )


def add_image_tokens(model: nn.Module, tokenizer) -> None:
    """Add the tokens that the config says the model was trained with, and rows for them if there are none."""
    config = model.config
    if getattr(config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def context_length(config) -> int:
    """Tokens that upstream lets a prompt and its answer have together."""
    return getattr(config, "max_sequence_length", None) or 2048
