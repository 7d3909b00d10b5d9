"""Which vision tower a LLaVA config asks for: decided by the tower's own config.json, not by its name."""

from transformers import PretrainedConfig

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.siglip_encoder import SiglipVisionTower
from llava.model.multimodal_encoder.tower import VisionTower
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
    """The tower of a LLaVA config: `mm_vision_tower` (or `vision_tower`) is a folder or a hub id.

    A setting in `config.visionzip` is attached.

    Raises:
        ValueError: no such tower, or one of a kind that is not known, with the kinds that are.
    """
    name = getattr(config, "mm_vision_tower", getattr(config, "vision_tower", None))
    try:
        inline = getattr(config, "mm_vision_tower_config", None)
        kind = (inline or PretrainedConfig.get_config_dict(name)[0]).get("model_type")
    except OSError as error:
        raise ValueError(
            f"mm_vision_tower={name!r} is neither a folder with a config.json nor a model id that can be reached. "
            f"Give its folder as an absolute path or relative to the checkpoint."
        ) from error
    if kind not in TOWERS:
        raise ValueError(f"mm_vision_tower={name!r} is a {kind!r} model; known kinds are {', '.join(TOWERS)}.")
    tower = TOWERS[kind](name, config, delay_load=delay_load, **kwargs)
    if setting := getattr(config, "visionzip", None):
        tower.reducer = VisionZip(VisionZipConfig.from_dict(setting), tower)
    return tower
