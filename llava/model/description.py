"""What a checkpoint describes: the config of our class for it, from its own config.json, its base's and its files.

Nothing is loaded here, so a command can check what it was asked for before any work.
"""

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from transformers import CONFIG_MAPPING, PretrainedConfig

from llava.constants import TEMPLATE_FIELDS
from llava.model.checkpoint import CONTENTS, Checkpoint, language_model, resolve_folder, resolve_tower
from llava.model.fields import settle_tower
from llava.model.hf_format import HF_FIELDS, from_hf_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.library_errors import blaming
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.utils.files import read_object
from visionzip_patch.config import VisionZipConfig
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

CLASSES: dict[str, type[LlavaMetaForCausalLM]] = {
    "llava_llama": LlavaLlamaForCausalLM,
    "llava_mistral": LlavaMistralForCausalLM,
    "llava_qwen": LlavaQwenForCausalLM,
}


def read_config(model_path: str, model_base: str | None = None) -> tuple[PretrainedConfig, VisionTower]:
    """Read a checkpoint's config, and make its vision tower without weights: for checks before anything is loaded.

    Raises:
        ValueError: no checkpoint there, or one of a model that sees no images.
    """
    checkpoint = base = Checkpoint.inspect(model_path)
    if checkpoint.kind == "lora" and (not checkpoint.config or "text_config" in checkpoint.config):
        base = find_base(checkpoint, model_base)
    config = make_config(checkpoint, base)
    if not getattr(config, "mm_vision_tower", None):
        raise ValueError(f"{model_path} sees no images: there is no mm_vision_tower in its config.json.")
    return config, build_vision_tower(config, delay_load=True)


def find_base(checkpoint: Checkpoint, model_base: str | None) -> Checkpoint:
    """Find out where the language model's weights are: in the checkpoint, or in what its projector or LoRA goes on.

    Args:
        checkpoint: what is loaded.
        model_base: the folder or hub id that the user names; None: an adapter may name one.

    Raises:
        ValueError: a base is needed and not given, or it is no model.
    """
    path, content = checkpoint.path, CONTENTS[checkpoint.kind]
    if checkpoint.kind not in ("projector", "lora"):
        if model_base is not None:
            warn_once(logger, "%s holds %s; model_base=%s is not used.", path, content, model_base)
        return checkpoint
    if model_base is None and checkpoint.kind == "lora":
        model_base = read_object(checkpoint.require("adapter_config.json")).get("base_model_name_or_path")
        model_base = resolve_folder(path, model_base) if model_base else None
    advice = "pass model_base (--model-base), the folder or hub id of the language model it was trained on."
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


def make_config(
    checkpoint: Checkpoint,
    base: Checkpoint,
    visionzip: VisionZipConfig | dict | None = None,
    overwrite: dict | None = None,
) -> PretrainedConfig:
    """Make the config of our class for a checkpoint; it says where the tower is, and whether it was trained.

    Args:
        checkpoint: what is loaded.
        base: where its language model is.
        visionzip: a setting in place of the checkpoint's.
        overwrite: fields in place of the checkpoint's, under LLaVA's names, or under those of its own format.

    Raises:
        ValueError: a config that makes no model, does not fit its base, or has nothing to zip.
    """
    source, overwrite = described_by(checkpoint, base), {} if overwrite is None else overwrite
    if not isinstance(overwrite, dict):
        raise ValueError(f"overwrite_config={overwrite!r}: expected fields of config.json and their values, {{...}}.")
    if source.kind == "hf":
        values = from_hf_config(replace(source, config=overwritten(source.config, overwrite, HF_FIELDS)))
        overwrite = {name: value for name, value in overwrite.items() if name not in HF_FIELDS}
        if "mm_vision_tower" in overwrite:
            raise ValueError(f"overwrite_config cannot give {source.path!r} another mm_vision_tower: its own is in it.")
    else:
        values = resolve_tower(source, base)
    values = {**template_fields(checkpoint), **values, **overwrite, **changed_rope(values, overwrite)}
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
    with blaming(f"config.json of {checkpoint.path!r} makes no model"):
        config = CONFIG_MAPPING[kind].from_dict({**values, "model_type": kind})
    settle_tower(config, base)
    return config


def overwritten(config: dict, overwrite: dict, names: Collection[str]) -> dict:
    """Replace fields of a config by those of `names` in `overwrite`; an object's own fields one by one."""
    changes = {name: overwrite[name] for name in names if name in overwrite}
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            changes[name] = config[name] | value
    return config | changes


def changed_rope(values: dict, overwrite: dict) -> dict:
    """Put old names of the rotary embedding's settings into `rope_parameters`, where transformers 5 looks for them.

    Args:
        values: a config's.
        overwrite: what replaces some of them: `rope_theta` and `rope_scaling` are old names.

    Raises:
        ValueError: config.json itself says the same twice, and differently.
    """
    now = values.get("rope_parameters")
    if not isinstance(now, dict):
        return {}
    if (theta := values.get("rope_theta", now.get("rope_theta"))) != now.get("rope_theta"):
        raise ValueError(f"config.json has rope_theta={theta!r}, and another one in rope_parameters={now!r}.")
    if "rope_parameters" in overwrite or not overwrite.keys() & {"rope_theta", "rope_scaling"}:
        return {}
    scaling = overwrite.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise ValueError(f"overwrite_config has rope_scaling={scaling!r}; expected an object, {{...}}.")
    kept = now if "rope_scaling" not in overwrite else {"rope_type": "default", "rope_theta": now.get("rope_theta")}
    changed = {**kept, **(scaling or {})}
    if "type" in changed:
        changed["rope_type"] = changed.pop("type")
    if "rope_theta" in overwrite:
        changed["rope_theta"] = overwrite["rope_theta"]
    return {"rope_parameters": changed, "rope_theta": changed["rope_theta"], "rope_scaling": None}


def template_fields(checkpoint: Checkpoint) -> dict:
    """Find the fields that name a checkpoint's prompt template, whatever the format of its config.json.

    Training used to write it only into the settings of training.json.
    """
    recorded = {field: checkpoint.config[field] for field in TEMPLATE_FIELDS if field in checkpoint.config}
    report = Path(checkpoint.path, "training.json")
    if recorded or not report.is_file():
        return recorded
    with suppress(ValueError):  # a file of that name may be anybody's
        settings = read_object(report).get("settings")
        return {"conv_mode": settings.get("version")} if isinstance(settings, dict) else {}
    return {}


def described_by(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Return what describes the model: the checkpoint, or its base, which adapters of peft leave the description to.

    Raises:
        ValueError: neither says which vision tower there is.
    """
    if checkpoint is base or ("text_config" not in checkpoint.config and checkpoint.config):
        return checkpoint
    if base.kind == "text" or (checkpoint.config and base.kind != "hf"):
        config = "a config.json in Hugging Face's format" if checkpoint.config else "no config.json"
        raise ValueError(
            f"{checkpoint.path!r} has adapter files but {config}, and its base {base.path!r} holds "
            f"{CONTENTS[base.kind]}: neither says which tower it uses. Pass the LLaVA model it was trained on as "
            f"model_base."
        )
    return replace(base, config=checkpoint.config or base.config)
