"""The fields of a LLaVA config.json that change what the model computes: known by value, or refused by name.

Forks of LLaVA write fields of their own into config.json. One that is overlooked loads without a word and answers
wrongly, so every field that a tower, a projector or the packing of tokens would need is looked at while loading.
"""

import logging
import re

from llava.model.anyres import KNOWN_ASPECTS, MERGE_TYPES, POSSIBLE_ASPECTS, is_anyres, parse_pinpoints
from llava.model.checkpoint import TOWER_KEYS, Checkpoint
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import KNOWN_PROJECTORS, POSSIBLE_PROJECTORS
from llava.model.values import LENGTH, SWITCH, WIDTH, Kind, one_of, whole
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)


def matching(pattern: re.Pattern, expected: str) -> Kind:
    """Describe a field whose text matches a pattern; `expected` says so in an error."""
    return Kind(expected, lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None)


def absent(what: str) -> Kind:
    """Describe a field of `what`, which is not computed here."""
    return Kind(f"nothing, as {what} cannot be loaded here", lambda value: not value)


DECISIVE = {
    "image_aspect_ratio": matching(KNOWN_ASPECTS, POSSIBLE_ASPECTS),
    "mm_patch_merge_type": one_of(*MERGE_TYPES),
    "mm_projector_type": matching(KNOWN_PROJECTORS, POSSIBLE_PROJECTORS),
    "mm_vision_select_layer": whole(-1024, 1024),
    "mm_vision_select_feature": one_of("patch", "cls_patch"),
    "mm_hidden_size": WIDTH,
    "mm_use_im_start_end": SWITCH,
    "mm_use_im_patch_token": SWITCH,
    "tokenizer_padding_side": one_of("left", "right"),
    "tokenizer_model_max_length": LENGTH,
    "max_sequence_length": LENGTH,
    "unfreeze_mm_vision_tower": SWITCH,
    "use_mm_proj": Kind("true", lambda value: value is True),
    # Of other systems.
    "s2": absent("S² (an image at several scales)"),
    "mm_resampler_type": absent("a resampler between tower and projector"),
    "mm_vision_tower_aux": absent("a second tower (Mini-Gemini)"),
    "image_grid": Kind("1, as Mini-Gemini's grids of crops cannot be loaded here", lambda value: value == 1),
    "image_global": absent("Mini-Gemini's global crop"),
    "mm_image_tower": absent("a tower for images next to mm_vision_tower (Video-LLaVA)"),
    "mm_video_tower": absent("a tower for videos"),
    "mm_audio_tower": absent("a tower for sound"),
    "mm_speech_encoder": absent("an encoder of speech"),
    "mm_im_mask": absent("masking of image tokens"),
}

# What training wrote down, and what matters to videos alone, which are refused wherever they are given.
IDLE = re.compile(
    r"(tune|freeze|unfreeze)_\w+|mm_tunable_parts|pretrain_mm_\w+|mm_\w+_lr|mm_perceiver_\w+|mm_qformer_\w+"
    r"|mm_spatial_pool_\w+|mm_pooling_position|mm_newline_position|mm_mask_drop_\w+|mm_vision_tower(_config)?"
    r"|mm_resampler_\w+|mm_vision_resampler"
)
CLOSE = re.compile(r"mm_\w+|\w+_(tower|projector|resampler)\w*")  # a name that sounds decisive


def settle_tower(config, base: Checkpoint) -> None:
    """Check a LLaVA config, and say in it whether the tower's weights are the checkpoint's own.

    Args:
        config: one of our classes'; `unfreeze_mm_vision_tower` is set if the tower was trained.
        base: where the weights are.

    Raises:
        ValueError: as `check_fields` and `check_tower`.
    """
    check_fields(config)
    if not getattr(config, "mm_vision_tower", None):
        return
    tower = build_vision_tower(config, delay_load=True)
    check_tower(config, tower)
    if trained_its_tower(config, tower, base):
        config.unfreeze_mm_vision_tower = True


def check_fields(config) -> None:
    """Refuse a LLaVA config that asks for something that is not computed here.

    Fields whose names sound decisive, but are not known, are named in a warning.

    Args:
        config: a LLaVA config, with `mm_vision_tower`.

    Raises:
        ValueError: a field has a value that is not known, or belongs to another system; it and the choices are named.
    """
    for name, kind in DECISIVE.items():
        value = getattr(config, name, None)
        if value is not None and not kind.fits(value):
            raise ValueError(f"config.json has {name}={value!r}; expected {kind.expected}.")
    window = getattr(config, "sliding_window", None)
    if window and config.model_type == "llava_llama":
        raise ValueError(
            f"config.json has sliding_window={window!r}, but LLaMA has none: this checkpoint is of another kind "
            f"(llava_mistral?), or the field has to go."
        )
    if not window and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError("config.json has layer_types with 'sliding_attention', but no sliding_window.")
    strange = [name for name in vars(config) if CLOSE.fullmatch(name) and name not in DECISIVE]
    if strange := [name for name in strange if not IDLE.fullmatch(name) and getattr(config, name) not in (None, False)]:
        warn_once(
            logger,
            "config.json has fields that are not known here, and not used: %s. If they change what the model computes, "
            "its answers will differ.",
            ", ".join(f"{name}={getattr(config, name)!r}" for name in sorted(strange)),
        )


def check_tower(config, tower) -> None:
    """Refuse a config that does not fit its vision tower.

    Raises:
        ValueError: `mm_hidden_size` is not the tower's, or the resolutions of anyres cannot be cut into its crops.
    """
    channels = getattr(config, "mm_hidden_size", None)
    if channels != tower.hidden_size:
        raise ValueError(
            f"config.json has mm_hidden_size={channels!r}, but the vision tower {config.mm_vision_tower!r} gives "
            f"{tower.hidden_size} channels: this config.json needs another tower, or features that are joined in a way "
            f"that is not known here."
        )
    if getattr(config, "mm_projector_type", None) == "identity" and channels != config.hidden_size:
        raise ValueError(
            f"config.json has mm_projector_type='identity', but the vision tower gives {channels} channels and the "
            f"language model takes {config.hidden_size}."
        )
    if not is_anyres(config):
        return
    side = tower.config.image_size
    resolutions = parse_pinpoints(getattr(config, "image_grid_pinpoints", None), side)
    if uneven := [size for size in resolutions if size[0] % side or size[1] % side]:
        raise ValueError(
            f"image_grid_pinpoints holds {uneven[0]}, which cannot be cut into crops of {side}x{side} pixels, the size "
            f"that the vision tower takes."
        )


def owns_tower(config) -> bool:
    """Return whether the tower's weights belong to the checkpoint, as LLaVA-1.6's fine-tuned ones do."""
    return bool(getattr(config, "unfreeze_mm_vision_tower", False))


def trained_its_tower(config, tower: VisionTower, base: Checkpoint) -> bool:
    """Find out whether a model's tower was trained, so that its weights are the checkpoint's and not mm_vision_tower's.

    LLaVA says so by `unfreeze_mm_vision_tower`, LLaVA-NeXT by `mm_tunable_parts`. Forks say nothing; but a checkpoint
    that holds a whole tower was saved with it.
    """
    parts = getattr(config, "mm_tunable_parts", None) or ""
    if owns_tower(config) or "mm_vision_tower" in re.split(r"[\s,]+", str(parts)):
        return True
    if getattr(config, "unfreeze_mm_vision_tower", None) is not None or base.kind != "full":
        return False
    names = "\n".join(name for name in base.weight_names() if name.startswith(TOWER_KEYS))
    return all(f".encoder.layers.{i}." in names for i in range(tower.depth))
