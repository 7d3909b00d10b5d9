"""What a folder or hub id holds, and how its names map to ours. Decided from config.json and the files present, never
from the folder's name.

Kinds: "full" (LLaVA's own format), "hf" (Hugging Face's LLaVA and LLaVA-NeXT format), "projector" (`mm_projector.bin`,
needs a base language model), "lora" (adapter files, needs a base language model), "text" (no vision at all).
"""

import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")
NON_LORA = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
TOWER_KEYS = "model.vision_tower.vision_tower."
LANGUAGE_MODELS = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}

# Hugging Face's names, old (hub) and new (saved by transformers 5), to ours. Applied in order, each at most once a key.
HF_KEYS = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(?=embeddings|pre_|encoder|post_|head)": TOWER_KEYS,
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^image_newline$": "model.image_newline",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder or hub id that has been looked at."""

    path: str
    kind: str
    config: dict  # of config.json; {} if there is none

    @classmethod
    def inspect(cls, path: str) -> "Checkpoint":
        """Look at the files; ValueError with what was found if they make no checkpoint."""
        path = str(path)
        if not find(path, "config.json") and not find(path, "adapter_config.json"):
            raise ValueError(
                f"No checkpoint at {path!r}: {what_is_there(path)} Expected a folder or hub id with config.json."
            )
        config = read_json(path, "config.json")
        if find(path, "adapter_config.json"):
            return cls(path, "lora", config)
        if any(find(path, name) for name in WEIGHTS):
            if "text_config" in config and "vision_config" in config:
                return cls(path, "hf", config)
            return cls(path, "full" if "mm_vision_tower" in config else "text", config)
        if any(find(path, name) for name in PROJECTOR):
            return cls(path, "projector", config)
        raise ValueError(
            f"{path!r} has a config.json but no weights: {what_is_there(path)} Expected one of "
            f"{', '.join(WEIGHTS)}, or {PROJECTOR[1]} (projector-only), or adapter_config.json (LoRA)."
        )


def language_model(config: dict) -> str:
    """Which of ours a config asks for: "llava_llama", "llava_mistral" or "llava_qwen"."""
    for architecture in config.get("architectures") or []:
        for family, ours in (
            ("LlavaMistral", "llava_mistral"),
            ("LlavaQwen", "llava_qwen"),
            ("LlavaLlama", "llava_llama"),
        ):
            if architecture.startswith(family):
                return ours
    kind = config.get("model_type", "llama")
    if kind == "llava":  # published LLaVA-1.5 and 1.6 say just this
        return "llava_llama"
    if kind in LANGUAGE_MODELS.values():
        return kind
    if kind in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[kind]
    raise ValueError(f"model_type={kind!r} is no language model known here; known are {', '.join(LANGUAGE_MODELS)}.")


def from_hf_config(config: dict, path: str) -> dict:
    """A Hugging Face LLaVA or LLaVA-NeXT config under LLaVA's names.

    Raises:
        ValueError: a model type or projector that LLaVA's classes do not have.
    """
    kind = config.get("model_type")
    if kind not in ("llava", "llava_next"):
        raise ValueError(f"{path!r} is a Hugging Face {kind!r} model; llava and llava_next can be loaded.")
    if (activation := config.get("projector_hidden_act", "gelu")) != "gelu":
        raise ValueError(f"{path!r}: projector_hidden_act={activation!r}; only gelu is known.")
    is_next = kind == "llava_next"
    text, vision = config["text_config"], config["vision_config"]
    features = {"default": "patch", "full": "cls_patch"}[config.get("vision_feature_select_strategy", "default")]
    return {
        **text,
        "model_type": language_model({"model_type": text.get("model_type", "llama")}),
        "architectures": None,
        "mm_vision_tower": path,
        "mm_vision_tower_config": vision,
        "mm_hidden_size": vision.get("hidden_size", 1024),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "mm_vision_select_feature": features,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": True,
        "image_aspect_ratio": "anyres" if is_next else "pad",
        "image_grid_pinpoints": config.get("image_grid_pinpoints") if is_next else None,
        "mm_patch_merge_type": "spatial_unpad" if is_next else "flat",
        "pad_token_id": text.get("pad_token_id", config.get("pad_token_id")),
        "tie_word_embeddings": text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)),
        "visionzip": config.get("visionzip"),
    }


def resolve_tower(config: dict, path: str) -> dict:
    """Settle where the tower is: `mm_vision_tower` relative to the checkpoint's folder, or the folder itself."""
    tower, config = config.get("mm_vision_tower"), dict(config)
    if tower and not os.path.isabs(tower) and (Path(path) / tower).is_dir():
        config["mm_vision_tower"] = str((Path(path) / tower).resolve())
    elif config.get("mm_vision_tower_config") and find(path, "preprocessor_config.json"):
        config["mm_vision_tower"] = path  # saved with its own tower
    return config


def load_tensors(path: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The first of some weight files that exists, on the CPU. `.bin` files may hold tensors only.

    Raises:
        ValueError: none of them exists, or the file is no file of tensors (any other pickle is refused, not run).
    """
    for name in names:
        if file := find(path, name):
            break
    else:
        raise ValueError(f"{path!r} has none of {', '.join(names)}: {what_is_there(path)}")
    try:
        return (
            load_file(file)
            if file.endswith(".safetensors")
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} cannot be read as tensors ({reason}). It is damaged, or a pickle that holds other things than "
            f"tensors, which is not run. Fetch it again, or convert it to safetensors where you trust it."
        ) from error


def find(path: str, name: str) -> str | None:
    """Where a checkpoint's file is on this disk, downloaded if `path` is a hub id; None if there is none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return str(file) if file.is_file() else None
    if Path(path).is_absolute() or str(path).startswith((".", "~")):
        return None
    return cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def read_json(path: str, name: str) -> dict:
    file = find(path, name)
    if file is None:
        return {}
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error


def what_is_there(path: str) -> str:
    folder = Path(path)
    if not folder.exists():
        return "there is no such folder, and no such hub id can be reached."
    if not folder.is_dir():
        return "it is a file."
    names = sorted(entry.name for entry in folder.iterdir())
    return f"the folder holds {', '.join(names[:12]) or 'nothing'}{' …' if len(names) > 12 else ''}."
