"""Zip a model in place, undo it, or do it for the length of a `with` block."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any

from torch import nn

from visionzip_patch.adapters import ADAPTERS
from visionzip_patch.config import VisionZipConfig
from visionzip_patch.once import warn_once
from visionzip_patch.reducer import Tower, VisionZip

logger = logging.getLogger(__name__)


def visionzip(
    model: nn.Module,
    dominant: int | None = None,
    contextual: int | None = None,
    *,
    tokens_per_image: int | None = None,
    merge: str = "sum",
    selector: str = "visionzip",
    seed: int = 0,
) -> nn.Module:
    """Make `model` describe each crop of an image with `dominant + contextual` tokens. In place; returns `model`.

    Only this model changes: other models in the process stay as they are. A second call replaces the first. The setting
    is written to `model.config.visionzip`, so it is saved with a checkpoint and comes back on load.

    transformers' own models take what their processor returns, as before, and count everything they return by it. On
    load they keep a saved setting but do not apply it: call `visionzip(model, **model.config.visionzip)`.

    Args:
        model: one of `llava`'s, or one of transformers' own of a type in `visionzip_patch.adapters.ADAPTERS`, or what
            is inside of these.
        dominant: tokens kept of each crop, CLS included. By default 191 of CLIP-L's 577, as in the published code.
        contextual: tokens merged from the rest of each crop; 0 drops the rest. By default 30, as in the published code,
            whatever `dominant` is.
        tokens_per_image: a budget over all crops of an image, in place of the two counts.
        merge: "sum", as the published code, or "mean", as the paper's text.
        selector: who chooses, by its name in `visionzip_patch.selectors.SELECTORS`.
        seed: of a selector that draws.

    Returns:
        `model`.

    Raises:
        ValueError: a bad budget, with what was asked and what the tower gives; counts beside `tokens_per_image`; an
            unknown selector, or one that needs what the tower does not give. The model is untouched.
        TypeError: `model` has no vision tower that can be zipped; the kinds that have are named.

    Example:
        >>> visionzip(model, dominant=54, contextual=10)  # 64 tokens for each image in place of 576
        >>> visionzip(model, 54, 10, selector="random")  # to compare with
        >>> visionzip(model)  # 221, as the published code without numbers
        >>> visionzip(model, tokens_per_image=160)  # anyres: 160 over all crops in place of 2880
    """
    config = VisionZipConfig(dominant, contextual, tokens_per_image, merge=merge, selector=selector, seed=seed)
    return attach(model, config)


def attach(model: nn.Module, config: VisionZipConfig) -> nn.Module:
    """Zip a model in place by a setting that is one object; see `visionzip`."""
    tower = find_tower(model)
    reducer = tower.reducer = VisionZip(config, tower)
    config_of(model).visionzip = config.to_dict()
    patches = tower.num_patches
    if patches is not None and reducer.tokens() >= patches:
        warn_once(logger, "%s: not fewer than the %d that there are without VisionZip.", config, patches)
    return model


def unzip(model: nn.Module) -> nn.Module:
    """Undo `visionzip`: outputs are what they were before, bit for bit. Harmless on a model that is not zipped."""
    find_tower(model).reducer = None
    if getattr(model.config, "visionzip", None) is not None:
        del config_of(model).visionzip
    return model


@contextmanager
def zipped(
    model: nn.Module, dominant: int | None = None, contextual: int | None = None, **options
) -> Iterator[nn.Module]:
    """Zip a model inside a `with` block; afterwards it has the setting, or none, that it had before.

    Args:
        model: as of `visionzip`.
        dominant: as of `visionzip`.
        contextual: as of `visionzip`.
        **options: the other arguments of `visionzip`.
    """
    tower, setting = find_tower(model), getattr(model.config, "visionzip", None)
    before = tower.reducer
    visionzip(model, dominant, contextual, **options)
    try:
        yield model
    finally:
        if before is None:
            unzip(model)
        else:
            tower.reducer = before
            config_of(model).visionzip = before.config.to_dict()
        if setting is not None:  # also one that transformers has read but not applied
            config_of(model).visionzip = setting


def config_of(model: nn.Module) -> Any:
    """Return a model's config, of which type checkers know nothing."""
    return model.config


def find_tower(model: nn.Module) -> Tower:
    """Find the vision tower that carries the seam.

    Args:
        model: one whose `get_vision_tower()` has a `reducer`, one of a type in `visionzip_patch.adapters.ADAPTERS`, or
            one that peft has wrapped around these.

    Raises:
        TypeError: it is none of these; those that are known are named.
    """
    inside: Any = model
    if hasattr(inside, "get_base_model"):  # peft
        inside = inside.get_base_model()
    tower = inside.get_vision_tower() if hasattr(inside, "get_vision_tower") else None
    if tower is not None and hasattr(tower, "reducer"):
        return tower
    kind = getattr(getattr(inside, "config", None), "model_type", None)
    if tower is None and kind in ADAPTERS:
        return resolve_name(ADAPTERS[kind])(inside)
    raise TypeError(
        f"{type(inside).__name__} has no vision tower that VisionZip knows. Supported are models whose "
        f"`get_vision_tower()` returns a tower with a `reducer`, such as llava.model.builder.load_pretrained_model "
        f"returns, and transformers' own models of the types {', '.join(ADAPTERS)}."
    )
