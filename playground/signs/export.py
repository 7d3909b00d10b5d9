"""Write the trained parts in the layout of LLaVA's checkpoints: a CLIP folder, and a LLaVA folder that names it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from playground.signs.model import MEAN, SELECT_LAYER, STD, WIDTH, SignReader, language_config, vision_config
from playground.signs.scenes import SIZE
from playground.signs.tokenizer import MAX_LENGTH

TOWER_FOLDER = "clip-signs-112"
LLAVA_FOLDER = "llava-signs"


def export(model: SignReader, out: Path) -> None:
    """Write `out/clip-signs-112` and `out/llava-signs`, weights in fp16. The tokenizer's files are already there."""
    tower, llava = out / TOWER_FOLDER, out / LLAVA_FOLDER
    for folder in (tower, llava):
        folder.mkdir(parents=True, exist_ok=True)

    _save(tower / "model.safetensors", tower_weights(model))
    write_json(tower / "config.json", _tower_config())
    write_json(tower / "preprocessor_config.json", _preprocessor_config())

    _save(llava / "model.safetensors", llava_weights(model))
    write_json(llava / "config.json", _llava_config())
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_json(llava / "generation_config.json", {"_from_model_config": True, **special, "max_length": MAX_LENGTH})


def load_weights(model: SignReader, folder: Path) -> None:
    """Load what `export` wrote into `model`; the heads that only train the tower are not exported, and stay."""
    weights = load_file(folder / LLAVA_FOLDER / "model.safetensors")
    prefix = "model.mm_projector."
    model.projector.load_state_dict({key.removeprefix(prefix): weights.pop(key) for key in [*weights] if prefix in key})
    model.language.load_state_dict(weights)
    tower = load_file(folder / TOWER_FOLDER / "model.safetensors")
    names = {key.removeprefix("vision_model."): key for key in model.tower.state_dict()}
    model.tower.load_state_dict({names[key.removeprefix("vision_model.")]: value for key, value in tower.items()})


def tower_weights(model: SignReader) -> dict[str, Tensor]:
    """Return the tower's weights by CLIP's keys; some transformers 5 releases leave out the `vision_model.` prefix."""
    prefix = "vision_model."
    return {prefix + key.removeprefix(prefix): value for key, value in model.tower.state_dict().items()}


def llava_weights(model: SignReader) -> dict[str, Tensor]:
    projector = {f"model.mm_projector.{key}": value for key, value in model.projector.state_dict().items()}
    return {**model.language.state_dict(), **projector}


def write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _save(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Save weights in fp16, whole or not at all: readers never see half a file."""
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in weights.items()}
    unfinished = path.with_suffix(".tmp")
    save_file(half, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors makes it readable by its owner alone
    os.replace(unfinished, path)


def _tower_config() -> dict:
    config = vision_config()
    wanted = [
        "attention_dropout",
        "hidden_act",
        "hidden_size",
        "image_size",
        "initializer_factor",
        "initializer_range",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_channels",
        "num_hidden_layers",
        "patch_size",
        "projection_dim",
    ]
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "torch_dtype": "float16",
        **{name: getattr(config, name) for name in wanted},
    }


def _preprocessor_config() -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _llava_config() -> dict:
    config = language_config()
    wanted = [
        "attention_bias",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "tie_word_embeddings",
        "use_cache",
        "vocab_size",
    ]
    return {
        "_name_or_path": LLAVA_FOLDER,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": "float16",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        **{name: getattr(config, name) for name in wanted},
        "tokenizer_model_max_length": MAX_LENGTH,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": SELECT_LAYER,
        "mm_vision_tower": f"../{TOWER_FOLDER}",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "use_mm_proj": True,
    }
