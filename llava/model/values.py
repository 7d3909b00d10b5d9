"""What the small JSON files of a checkpoint may hold: a kind and a range for each field that a library reads.

A file is looked at before anything is built from it. A library that is asked for "many" layers fails deep inside, and
one that is asked for 10**12 never ends. What passes here and fails there after all is the file's fault still: `blaming`
says so. The fields of LLaVA's own are not here but in `fields`.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from llava.utils.files import read_object


class Kind(NamedTuple):
    """What a value may be. None always may: it means the default."""

    expected: str  # as an error says it
    fits: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind:
    """Describe a whole number in a range, both ends included."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(least: float, most: float) -> Kind:
    """Describe a number in a range, both ends included."""
    return Kind(
        f"a number from {least:g} to {most:g}", lambda value: type(value) in (int, float) and least <= value <= most
    )


def one_of(*names: str) -> Kind:
    """Describe a text that is one of some names."""
    return Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """Describe a list, of any length unless it is given, with entries of one kind."""

    def fits(value) -> bool:
        return (
            isinstance(value, list)
            and len(value) in (length, len(value) if length is None else length)
            and (all(map(kind.fits, value)))
        )

    return Kind(f"a list of {f'{length} times ' if length else ''}{kind.expected}", fits)


def either(*kinds: Kind) -> Kind:
    """Describe a value of one of several kinds."""
    return Kind(", or ".join(kind.expected for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


def table_of(kind: Kind) -> Kind:
    """Describe an object whose values are of one kind, whatever their names."""
    return Kind(
        f"an object whose values are each {kind.expected}",
        lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())),
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
NAME = Kind("the name of a folder or hub id", lambda value: isinstance(value, str) and "\0" not in value)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object, {...}", lambda value: isinstance(value, dict))
TOKEN = Kind(
    "a token: text, or an object with its text as content",
    lambda value: isinstance(value.get("content") if isinstance(value, dict) else value, str),
)
TOKEN_ID = whole(-1, 2**24)
WIDTH, HEADS, DEPTH, LENGTH = whole(1, 2**20), whole(1, 2**12), whole(1, 2**10), whole(1, 2**40)
SHARE = number(0, 1)
DTYPE = one_of("float16", "bfloat16", "float32", "float64")
SIDE = whole(1, 2**13)  # pixels
ROPE_TYPE = one_of(*sorted({"default", *ROPE_INIT_FUNCTIONS}))
CHOICES = {  # inside of fields: transformers passes over names that it does not know
    "rope_scaling": {"type": ROPE_TYPE, "rope_type": ROPE_TYPE},
    "rope_parameters": {"type": ROPE_TYPE, "rope_type": ROPE_TYPE},
    "quantization_config": {"quant_method": one_of(*sorted({"bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING}))},
}

ENCODER = {  # what a language model and a vision tower have in common
    "model_type": TEXT,
    "architectures": list_of(TEXT),
    "dtype": DTYPE,
    "torch_dtype": DTYPE,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "hidden_act": one_of(*sorted(ACT2FN)),
    "attention_dropout": SHARE,
    "initializer_range": SHARE,
    "num_labels": whole(0, 2**20),  # of no use here, but transformers writes out as many
    "quantization_config": OBJECT,
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "layer_types": list_of(one_of("full_attention", "sliding_attention")),
}
LANGUAGE_MODEL = ENCODER | {
    "vocab_size": whole(1, 2**24),
    "num_key_value_heads": HEADS,
    "head_dim": HEADS,
    "max_position_embeddings": LENGTH,
    "sliding_window": LENGTH,
    "max_window_layers": whole(0, 2**10),
    "use_sliding_window": SWITCH,
    "rms_norm_eps": SHARE,
    "rope_theta": number(1e-6, 1e15),
    "attention_bias": SWITCH,
    "mlp_bias": SWITCH,
    "use_cache": SWITCH,
    "tie_word_embeddings": SWITCH,
    "pad_token_id": TOKEN_ID,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": either(TOKEN_ID, list_of(TOKEN_ID)),
    "pretraining_tp": whole(1, 2**10),
    # These say where else to look, and are looked at themselves when they are used.
    "mm_vision_tower": NAME,
    "mm_vision_tower_config": OBJECT,
    "visionzip": OBJECT,
    "text_config": OBJECT,
    "vision_config": OBJECT,
}
TOWER = ENCODER | {
    "image_size": SIDE,
    "patch_size": SIDE,
    "num_channels": Kind("3: images are red, green and blue", lambda value: type(value) is int and value == 3),
    "layer_norm_eps": SHARE,
    "projection_dim": WIDTH,
    "vision_config": OBJECT,
}
GENERATION = {
    "max_length": LENGTH,
    "min_length": whole(0, 2**40),
    "max_new_tokens": LENGTH,
    "min_new_tokens": whole(0, 2**40),
    "do_sample": SWITCH,
    "use_cache": SWITCH,
    "num_beams": whole(1, 2**10),
    "num_return_sequences": whole(1, 2**10),
    "temperature": number(0, 1e6),
    "top_k": whole(0, 2**24),
    "top_p": SHARE,
    "min_p": SHARE,
    "typical_p": SHARE,
    "repetition_penalty": number(1e-6, 1e6),
    "length_penalty": number(-1e6, 1e6),
    "no_repeat_ngram_size": whole(0, 2**24),
    "pad_token_id": TOKEN_ID,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": either(TOKEN_ID, list_of(TOKEN_ID)),
    "suppress_tokens": list_of(TOKEN_ID),
    "begin_suppress_tokens": list_of(TOKEN_ID),
    "bad_words_ids": list_of(list_of(TOKEN_ID)),
    "stop_strings": either(TEXT, list_of(TEXT)),
    "cache_implementation": TEXT,
}
TOKENIZER = {
    "tokenizer_class": TEXT,
    "model_max_length": number(1, 1e40),
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    **dict.fromkeys(("legacy", "add_bos_token", "add_eos_token", "add_prefix_space", "use_fast"), SWITCH),
    **dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"), TOKEN
    ),
    "additional_special_tokens": list_of(TOKEN),
    "extra_special_tokens": either(list_of(TOKEN), table_of(TOKEN)),
    "added_tokens_decoder": table_of(TOKEN),
    "sp_model_kwargs": OBJECT,
    "chat_template": either(TEXT, list_of(OBJECT), table_of(TEXT)),
}
PIXELS = either(SIDE, table_of(SIDE))
CHANNELS = list_of(number(-1e3, 1e3), 3)
PROCESSOR = {
    "size": PIXELS,
    "crop_size": PIXELS,
    "image_mean": CHANNELS,
    "image_std": list_of(number(1e-6, 1e3), 3),
    "rescale_factor": number(1e-9, 1e3),
    "resample": whole(0, 5),
    **dict.fromkeys(("do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb", "do_pad"), SWITCH),
    "image_processor": OBJECT,
}
ADAPTER = {
    "peft_type": TEXT,
    "base_model_name_or_path": NAME,
    "r": whole(1, 2**20),
    "lora_alpha": number(0, 1e6),
    "lora_dropout": SHARE,
    "target_modules": either(TEXT, list_of(TEXT)),
    "exclude_modules": either(TEXT, list_of(TEXT)),
    "modules_to_save": list_of(TEXT),
    "rank_pattern": table_of(whole(1, 2**20)),
    "alpha_pattern": table_of(number(0, 1e6)),
    "bias": one_of("none", "all", "lora_only"),
    **dict.fromkeys(("fan_in_fan_out", "use_dora", "use_rslora"), SWITCH),
}
# Beside those that say what a folder is, which are read by `checkpoint`.
SMALL_FILES = {
    "generation_config.json": GENERATION,
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": TOKENIZER,
    "added_tokens.json": {},
    "preprocessor_config.json": PROCESSOR,
    "processor_config.json": PROCESSOR,
}


def check_small_file(file: str | None) -> None:
    """Read one of `SMALL_FILES`, if it is there, and refuse what no library could use.

    Args:
        file: its path; None if it is not there.

    Raises:
        ValueError: it is no JSON object, or a field is of another kind, or out of range.
    """
    if file is None:
        return
    values, kinds = read_object(file), SMALL_FILES[os.path.basename(file)]
    check_values(values, kinds, file)
    if isinstance(nested := values.get("image_processor"), dict):
        check_values(nested, kinds, f"{file}, image_processor")


def check_config(values: Mapping, where: str) -> None:
    """Refuse a model's config.json whose language model or vision tower cannot be built, as far as values show.

    Raises:
        ValueError: a field is of another kind, or out of range; file and field, what was found and what is possible are
            named.
    """
    check_part(values, LANGUAGE_MODEL, where)
    check_part(values.get("text_config") or {}, LANGUAGE_MODEL, f"{where}, text_config")
    check_tower_config(values.get("vision_config") or {}, f"{where}, vision_config")
    check_tower_config(values.get("mm_vision_tower_config") or {}, f"{where}, mm_vision_tower_config")


def check_tower_config(values: Mapping, where: str) -> None:
    """Refuse a vision tower's config.json that no tower can be built from, as `check_config` does a model's."""
    if isinstance(values.get("vision_config"), dict):
        values, where = values["vision_config"], f"{where}, vision_config"
    check_part(values, TOWER, where)
    image, patch = values.get("image_size"), values.get("patch_size")
    if image and patch and patch > image:
        raise ValueError(f"{where}: patch_size is {patch}, but an image has image_size = {image} pixels a side.")


def check_part(values: Mapping, kinds: dict[str, Kind], where: str) -> None:
    """Check the fields of one transformer: each by itself, its heads, names inside of it."""
    check_values(values, kinds, where)
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    groups, channels = values.get("num_key_value_heads"), values.get("head_dim")
    if width and heads and not channels and width % heads:
        raise ValueError(f"{where}: num_attention_heads is {heads}, not a divisor of hidden_size = {width}.")
    if heads and groups and heads % groups:
        raise ValueError(f"{where}: num_key_value_heads is {groups}, not a divisor of num_attention_heads = {heads}.")
    depth, types = values.get("num_hidden_layers"), values.get("layer_types")
    if depth and types is not None and len(types) != depth:
        raise ValueError(f"{where}: layer_types has {len(types)} entries, but num_hidden_layers is {depth}.")
    for name, choice in CHOICES.items():
        check_values(values.get(name) or {}, choice, f"{where}, {name}")


def check_values(values: Mapping, kinds: dict[str, Kind], where: str) -> None:
    """Refuse values that are not of their kinds.

    Args:
        values: fields of a JSON object.
        kinds: what each field may be; other fields may be anything.
        where: the file, for an error.

    Raises:
        ValueError: the first field that is not of its kind is named.
    """
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and not kind.fits(value):
            found = repr(value)
            found = found if len(found) <= 80 else f"{found[:80]} …"
            raise ValueError(f"{where}: {name} is {found}; expected {kind.expected}.")
