"""Which vision tower a LLaVA config asks for: decided by the tower's own config.json, not by its name."""

from pathlib import Path
from types import SimpleNamespace

from llava.model.hub import find
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.values import check_tower_config
from llava.utils.files import read_object
from visionzip_patch.config import VisionZipConfig
from visionzip_patch.reducer import VisionZip

# Published CLIP and SigLIP folders hold the text half too; `from_pretrained` of the vision classes takes its part.
TOWERS = {
    "clip": CLIPVisionTower,
    "clip_vision_model": CLIPVisionTower,
    "siglip": SiglipVisionTower,
    "siglip_vision_model": SiglipVisionTower,
}


def build_vision_tower(config, delay_load: bool = False, **kwargs) -> VisionTower:
    """Make the vision tower of a LLaVA config. A VisionZip setting in `config.visionzip` is attached.

    Args:
        config: `mm_vision_tower` (or `vision_tower`) is a folder or a hub id.
        delay_load: leave the weights for `load_model`.
        **kwargs: passed on to the tower's class.

    Raises:
        ValueError: no such tower, or one of a kind that is not known, with the kinds that are.
    """
    name = getattr(config, "mm_vision_tower", getattr(config, "vision_tower", None))
    inline = getattr(config, "mm_vision_tower_config", None)
    kind = (inline or read_tower_config(name)).get("model_type")
    if kind not in TOWERS:
        raise ValueError(f"mm_vision_tower={name!r} is a {kind!r} model; known kinds are {', '.join(TOWERS)}.")
    tower = TOWERS[kind](name, config, delay_load=delay_load, **kwargs)
    if setting := getattr(config, "visionzip", None):
        tower.reducer = VisionZip(VisionZipConfig.from_dict(setting), tower)
    return tower


def read_tower_config(name: str | None) -> dict:
    """Read a tower's config.json.

    Args:
        name: folder or hub id.

    Raises:
        ValueError: there is none, or no tower can be built as it says.
    """
    if not isinstance(name, str) or not (file := find(name, "config.json", {})):
        raise ValueError(
            f"mm_vision_tower={name!r} is neither a folder with a config.json nor a model id that can be reached. "
            f"Give its folder as an absolute path or relative to the checkpoint."
        )
    values = read_object(file)
    check_tower_config(values, file)
    return values


def vision_config(model_args) -> dict:
    """Translate arguments with upstream's names into the fields of a config that say how a language model sees.

    Args:
        model_args: `vision_tower`, a folder or hub id. May have `mm_projector_type` (None is mlp2x_gelu, and without
            the name it is linear), `mm_vision_select_layer`, `mm_vision_select_feature` and `mm_patch_merge_type`.

    Raises:
        ValueError: no such tower.
    """
    name = model_args.vision_tower
    if Path(name).is_dir():
        name = str(Path(name).resolve())
    return {
        "mm_vision_tower": name,
        "mm_hidden_size": build_vision_tower(SimpleNamespace(mm_vision_tower=name), delay_load=True).hidden_size,
        "mm_projector_type": getattr(model_args, "mm_projector_type", "linear") or "mlp2x_gelu",
        "mm_vision_select_layer": getattr(model_args, "mm_vision_select_layer", -2),
        "mm_vision_select_feature": getattr(model_args, "mm_vision_select_feature", "patch"),
        "mm_patch_merge_type": getattr(model_args, "mm_patch_merge_type", "flat"),
        "use_mm_proj": True,
    }
