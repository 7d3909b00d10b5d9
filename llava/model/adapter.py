"""LoRA adapters, whoever trained them, merged into our classes.

An adapter speaks of modules by the names that they had in its training: LLaVA's, those of old transformers, or those of
transformers' own LLaVA classes. Its weights are renamed to ours, and peft merges them, module by module where they
go. Patterns of names in adapter_config.json serve to find out what a damaged file lacks.

Source of the arithmetic: peft (LoRA arXiv 2106.09685, rank-stabilised 2312.03732, DoRA 2402.09353).
"""

import re
from dataclasses import fields
from typing import TypeVar

from torch import Tensor, nn

from llava.model.checkpoint import ADAPTER, TOWER_KEYS, Checkpoint
from llava.model.finite import require_finite_weights
from llava.model.hf_format import HF_KEYS
from llava.model.vision import VisionMixin
from llava.model.vocabulary import fit_vocabulary, make_room, untie
from llava.model.weights import claim_tower, copy_weights, refuse, without_peft_prefix
from llava.utils.files import read_object

# adapter_config.json: fields that are heeded, here or by peft, and those that only record how training went.
HEEDED = {
    "peft_type", "r", "target_modules", "exclude_modules", "lora_alpha", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "trainable_token_indices", "use_dora", "lora_bias",
}  # fmt: skip
RECORDS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
OLDEST = 2  # of the styles of `name_in_training`
ADVICE = "Check that the download is complete, and that this is the model that the adapter was trained on."
OF_ADAPTER = re.compile(r"\.(lora_\w+|token_adapter)(\..+)?$")  # what follows a module's name in an adapter's keys

Llava = TypeVar("Llava", bound=VisionMixin)


def merge_adapter(model: Llava, checkpoint: Checkpoint, base: Checkpoint, *, least: int) -> tuple[Llava, set[str]]:
    """Add the weights of an adapter to its base model, and take over those that it holds in full.

    Args:
        model: the base model, in our class, with its vision tower.
        checkpoint: a folder or hub id with adapter_config.json and adapter weights.
        base: where the base model came from: whether its names are Hugging Face's.
        least: how many tokens the tokenizer has: embeddings of fewer rows do not belong to it.

    Returns:
        The model, merged: equal to what peft's `merge_and_unload` makes of the two; and the names of the weights that
        the adapter held in full.

    Raises:
        ValueError: another kind of adapter, a field that is not known, or weights that are missing or not expected.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict  # only LoRA needs it

    config = read_adapter_config(checkpoint)
    in_file, tensors = {}, {}
    for key, value in checkpoint.tensors(ADAPTER).items():
        if ".original_module." not in key and not is_unread(model, name := rename(key, base)):
            in_file[name], tensors[name] = key, value
    require_finite_weights(tensors.items(), lambda name: checkpoint.path)
    whole = {name: value for name, value in tensors.items() if not OF_ADAPTER.search(name)}
    fit_vocabulary(model, whole, least=least)
    if added := trained_tokens(config):
        make_room(model, max(least, 1 + max(added)))
    untie(model, whole)
    style = style_of(in_file, base)
    check_names(model, config, base, tensors, style, checkpoint.path)
    copy_weights(model, whole, checkpoint.path)

    low_rank = {f"base_model.model.{name}": value for name, value in tensors.items() if name not in whole}
    if low_rank:
        wrapped = PeftModel(model, for_our_names(config, base, tensors, in_file))
        expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        refuse(low_rank.keys() - expected, "not expected in", checkpoint.path, ADVICE)
        refuse(expected - low_rank.keys(), "missing from", checkpoint.path, ADVICE)
        set_peft_model_state_dict(wrapped, low_rank)
        try:
            model = wrapped.merge_and_unload()
        except RuntimeError as error:
            raise ValueError(f"The adapter in {checkpoint.path} cannot be merged: {error}") from error
    claim_tower(model, tensors)
    return model, set(whole)


def read_adapter_config(checkpoint: Checkpoint):
    """Read adapter_config.json as peft's `LoraConfig`.

    Raises:
        ValueError: an adapter other than LoRA, or a field that would change the merge and is not known.
    """
    from peft import LoraConfig

    file = checkpoint.require("adapter_config.json")
    values = read_object(file)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{file} has peft_type={values.get('peft_type')!r}; LORA can be loaded.")
    neutral = LoraConfig().to_dict()
    strange = {
        name: value
        for name, value in values.items()
        if name not in HEEDED | RECORDS and value and value != neutral.get(name)
    }
    if strange:
        raise ValueError(
            f"{file} has {', '.join(f'{name}={value!r}' for name, value in sorted(strange.items()))}, which cannot be "
            f"merged here. Merge the adapter where it was trained (peft's merge_and_unload), and load the result."
        )
    known = {field.name for field in fields(LoraConfig) if field.init}
    try:
        return LoraConfig(**{name: value for name, value in values.items() if name in known and value is not None})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} describes no LoRA adapter: {error}") from error


def trained_tokens(config) -> list[int]:
    """List the ids of the tokens whose rows of the embeddings an adapter trained, each by itself."""
    tokens = config.trainable_token_indices or []
    return [row for rows in tokens.values() for row in rows] if isinstance(tokens, dict) else list(tokens)


def rename(key: str, base: Checkpoint) -> str:
    """Translate an adapter's key into the name that our class has for it."""
    key = key.removeprefix("base_model.model.")
    for wrapper in (".token_adapter.base_layer.", ".base_layer.", ".modules_to_save."):
        key = key.replace(wrapper, ".")
    if base.kind == "hf":
        for pattern, ours in HF_KEYS.items():
            key = re.sub(pattern, ours, key)
    return without_peft_prefix(key)


def for_our_names(config, base: Checkpoint, tensors: dict[str, Tensor], in_file: dict[str, str]):
    """Return the adapter's config with every module by our full name, its own rank and its own scale.

    What is held in full (`modules_to_save`, biases) is left out: it is copied.
    """
    from peft.utils.other import get_pattern_key

    ranks, alphas = {}, {}
    for name, value in tensors.items():
        if match := re.search(r"\.lora_(?:embedding_)?A(?:\.weight)?$", name):
            module = name[: match.start()]
            trained_as = OF_ADAPTER.sub("", in_file[name]).removeprefix("base_model.model.")
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), trained_as), config.r)
            if len(value) != rank:
                raise ValueError(
                    f"{in_file[name]} has rank {len(value)}, but adapter_config.json says {rank}: they do not belong "
                    f"together."
                )
            ranks[module] = rank
            pattern = get_pattern_key(config.alpha_pattern.keys(), trained_as)
            alphas[module] = config.alpha_pattern.get(pattern, config.lora_alpha)
    tokens = config.trainable_token_indices
    if isinstance(tokens, dict):
        tokens = {rename(f"{name}.", base).removesuffix("."): rows for name, rows in tokens.items()}
    changes = {
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items()},
        "alpha_pattern": {re.escape(module): alpha for module, alpha in alphas.items()},
        "modules_to_save": None,
        "bias": "none",
        "trainable_token_indices": tokens,
    }
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def check_names(
    model: VisionMixin, config, base: Checkpoint, tensors: dict[str, Tensor], style: int, path: str
) -> None:
    """Refuse an adapter with weights for no module of the model, or without those of one that it names.

    LLaVA puts the tower in after the adapter, so its layers bear names that the adapter's patterns match without being
    meant: they count only if there are weights of any of them.
    """
    given = {OF_ADAPTER.sub("", name) for name in tensors}
    knew_tower = base.kind == "hf" or any(name.startswith(TOWER_KEYS) for name in given)
    modules = dict(model.named_modules())
    strange = {key for key in tensors if OF_ADAPTER.search(key) and OF_ADAPTER.sub("", key) not in modules}
    refuse({f"base_model.model.{key}" for key in strange}, "not expected in", path, ADVICE)
    missing = {other for key in tensors if (other := other_half(key)) and other not in tensors}
    for name, module in modules.items():
        if name and not is_unread(model, name) and (knew_tower or not name.startswith(TOWER_KEYS)):
            in_training = name_in_training(name, base, style)
            has_lora = is_target(module, name, config, in_training)
            if has_lora and name not in given:
                missing.add(f"{in_training}.lora_A.weight")
            missing |= whole_weights(module, name, config, in_training, has_lora=has_lora) - tensors.keys()
    refuse({f"base_model.model.{name}" for name in missing}, "missing from", path, ADVICE)


def is_target(module: nn.Module, name: str, config, in_training: str) -> bool:
    """Return whether an adapter's config gives a module LoRA weights.

    Args:
        module: of our model.
        name: its name there.
        config: peft's `LoraConfig`.
        in_training: its name in the adapter's training.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    if not isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        return False
    if config.target_modules == "all-linear":
        return is_linear_target(module, name)
    return bool(check_target_module_exists(config, in_training))


def whole_weights(module: nn.Module, name: str, config, in_training: str, *, has_lora: bool) -> set[str]:
    """Name the weights of a module that an adapter holds in full, as its config says: saved modules, and biases."""
    whole = set()
    if f".{in_training}".endswith(tuple(f".{saved}" for saved in config.modules_to_save or ())):
        whole = {f"{name}.{part}" for part, _ in module.named_parameters()}
    has_bias = getattr(module, "bias", None) is not None
    if has_bias and (config.bias == "all" or (config.bias == "lora_only" and has_lora)):
        whole.add(f"{name}.bias")
    return whole


def other_half(name: str) -> str | None:
    """Name the other one of the two matrices of a module's LoRA; None for what is neither."""
    half = re.search(r"\.lora_(?:embedding_)?([AB])(?=$|\.weight$)", name)
    return half and f"{name[: half.start(1)]}{'BA'['AB'.index(half[1])]}{name[half.end(1) :]}"


def is_unread(model: VisionMixin, name: str) -> bool:
    """Return whether a module is one of the tower's behind the layer that is read."""
    return name.startswith(TOWER_KEYS) and not model.require_vision_tower().is_read(name.removeprefix(TOWER_KEYS))


def is_linear_target(module: nn.Module, name: str) -> bool:
    """Return whether peft's "all-linear" means a module."""
    return isinstance(module, nn.Linear) and name != "lm_head"


def name_in_training(name: str, base: Checkpoint, style: int) -> str:
    """Spell the name of a module of ours as an adapter's trainer did.

    Args:
        name: of our module.
        base: whether names are LLaVA's or Hugging Face's.
        style: of transformers' versions, from the newest: 5; 4.52 and later, or LLaVA's; before.
    """
    inner = name.removeprefix(TOWER_KEYS)
    vision_model = "vision_model." if style and inner != name else ""
    if base.kind != "hf":
        return f"{TOWER_KEYS}{vision_model}{inner}" if vision_model else name
    outer = "" if style == OLDEST else "model."
    if inner != name:
        return f"{outer}vision_tower.{vision_model}{inner}"
    if name.startswith("model.mm_projector"):
        layer = {"model.mm_projector.0": ".linear_1", "model.mm_projector.2": ".linear_2"}.get(name, "")
        return f"{outer}multi_modal_projector{layer}"
    if name.startswith("lm_head"):
        return f"language_model.{name}" if style == OLDEST else name
    inner = name.removeprefix("model.")
    return f"language_model.model.{inner}" if style == OLDEST else f"model.language_model.{inner}"


def style_of(in_file: dict[str, str], base: Checkpoint) -> int:
    """Find the style of `name_in_training` that most names of an adapter's file are in."""
    names = {OF_ADAPTER.sub("", name): OF_ADAPTER.sub("", key) for name, key in in_file.items()}

    def fitting(style: int) -> int:
        return sum(key.endswith(f".{name_in_training(name, base, style)}") for name, key in names.items())

    return max(range(OLDEST + 1), key=fitting)
