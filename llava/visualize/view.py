"""Describe a picture as the vision tower sees it, with the score and the fate of each patch.

Shapes: B crops, P = G x G patches of a crop, M contextual tokens of a crop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionzip_patch.selection import Selection

KEPT, DROPPED = -1, -2  # fates of a patch that joins no contextual token
GAP = 6  # pixels between crops


class Crop(NamedTuple):
    """One square that went through the tower."""

    left: int  # where it is in the picture, in pixels
    top: int
    side: int  # pixels, a multiple of G
    score: np.ndarray  # (P,), % of what all its patches have together
    token: np.ndarray | None  # (P,), number of the contextual token that a patch is merged into, or KEPT or DROPPED
    targets: np.ndarray  # (M,), patches that are the targets, in the order of their tokens

    @property
    def grid(self) -> int:
        """Patches in a row, G."""
        return math.isqrt(len(self.score))

    @property
    def cell(self) -> int:
        """Side of a patch in pixels."""
        return self.side // self.grid

    def corner(self, patch: int) -> tuple[int, int]:
        """Return x and y of the patch's upper left corner in the picture."""
        row, col = divmod(patch, self.grid)
        return self.left + col * self.cell, self.top + row * self.cell


class Patch(NamedTuple):
    """A patch of a view."""

    crop: int  # index into `View.crops`: the base crop first, then the tiles row by row
    patch: int  # raster index in the crop


@dataclass(frozen=True)
class View:
    """All crops of one image in place, at the size they are shown.

    Args:
        title: what it is called below the picture.
        picture: RGBA, transparent between the crops.
        crops: the base crop, then the tiles row by row.
        scale: scores that get the first and the last colour.
        meaning: completes "2.5 % ...".
        has_cls: whether CLS is kept too.
    """

    title: str
    picture: Image.Image
    crops: tuple[Crop, ...]
    scale: tuple[float, float]
    meaning: str
    has_cls: bool = False

    @property
    def is_zipped(self) -> bool:
        """Whether the view has the fate of each patch, not only its score."""
        return self.crops[0].token is not None

    @property
    def contextual(self) -> int:
        """Contextual tokens of all crops; each has a number of its own."""
        return sum(len(crop.targets) for crop in self.crops)

    @property
    def dominant(self) -> int:
        """Patches that are kept, in all crops; CLS tokens come on top."""
        return sum(int((crop.token == KEPT).sum()) for crop in self.crops)

    @property
    def tokens(self) -> int:
        return self.dominant + self.has_cls * len(self.crops) + self.contextual

    @property
    def patches(self) -> int:
        return sum(len(crop.score) for crop in self.crops)


@torch.no_grad()
def look(tower, pixels: Tensor) -> tuple[Tensor, Selection]:
    """Compute scores (B, P) and selection of all crops of one image, (B, 3, S, S), in one pass.

    Args:
        tower: a zipped vision tower of a LLaVA, with `reducer`, `hidden_states` and `evidence`.

    Raises:
        ValueError: it is not zipped.
    """
    if tower.reducer is None:
        raise ValueError("This vision tower selects no tokens: call visionzip(model, ...) first.")
    evidence = tower.evidence(*tower.hidden_states(pixels))
    return evidence.saliency, tower.reducer.select(evidence, crops=len(pixels))


def make_view(
    crops: Sequence[Image.Image],
    scores: Tensor,
    selection: Selection,
    *,
    has_cls: bool,
    meaning: str,
    title: str = "",
    cols: int = 1,
) -> View:
    """Make a view of the crops, scores and selection of one image.

    Args:
        crops: B square pictures, each side a multiple of G pixels, tiles of one size; the base crop first.
        scores: (B, P), as `look` gives them.
        selection: of the same crops.
        has_cls: whether token 0 is CLS.
        meaning: of a share of the scores; completes "2.5 % ...".
        title: what to call it.
        cols: tiles in a row.
    """
    picture, corners = arrange(crops, cols)
    shares = 100 * scores.float() / scores.float().sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    view = View(
        title,
        picture,
        tuple(
            Crop(*corner, crops[i].width, shares[i].cpu().numpy(), *fates(selection, i, scores.shape[1], has_cls))
            for i, corner in enumerate(corners)
        ),
        (0, 0),
        meaning,
        has_cls,
    )
    return on_one_scale([view])[0]


def map_view(score: np.ndarray, *, title: str, meaning: str, side: int) -> View:
    """Make a view of scores (P,) without a picture, such as means over many images."""
    grid = math.isqrt(len(score))
    side = grid * max(1, round(side / grid))
    crop = Crop(0, 0, side, score, None, np.empty(0, dtype=int))
    blank = Image.new("RGBA", (side, side), "#808080")  # neither lightens nor darkens the scores' colours
    return on_one_scale([View(title, blank, (crop,), (0, 0), meaning)])[0]


def on_one_scale(views: Sequence[View]) -> list[View]:
    """Give views a common scale, so that equal scores have equal colours."""
    scores = np.concatenate([crop.score for view in views for crop in view.crops])
    return [replace(view, scale=(float(scores.min()), float(scores.max()))) for view in views]


def patch_at(view: View, x: float, y: float) -> Patch | None:
    """Find the patch at a point of `view.picture`, in pixels from its upper left corner; None between crops."""
    for i, crop in enumerate(view.crops):
        col, row = int((x - crop.left) // crop.cell), int((y - crop.top) // crop.cell)
        if 0 <= col < crop.grid and 0 <= row < crop.grid:
            return Patch(i, row * crop.grid + col)
    return None


def fates(selection: Selection, crop: int, patches: int, has_cls: bool) -> tuple[np.ndarray, np.ndarray]:
    """Compute `token` and `targets` of a crop. Contextual tokens are numbered on from crop to crop."""
    kept, targets, others, nearest = (part[crop].cpu().numpy() for part in selection)
    first = crop * len(targets)
    token = np.full(patches + has_cls, DROPPED)
    token[kept] = KEPT
    token[targets] = first + np.arange(len(targets))
    token[others] = first + nearest
    return token[int(has_cls) :], targets - has_cls


def arrange(crops: Sequence[Image.Image], cols: int) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Put the tiles, in `cols` columns, to the right of the base crop; returns the picture and (left, top) of each."""
    base, *tiles = crops
    rows, step = math.ceil(len(tiles) / cols), crops[-1].width + GAP
    width = base.width + (2 * GAP + cols * step if tiles else 0)
    height = max(base.height, rows * step - GAP)
    top = (height - rows * step + GAP) // 2
    corners = [(0, (height - base.height) // 2)]
    corners += [(base.width + 3 * GAP + i % cols * step, top + i // cols * step) for i in range(len(tiles))]
    picture = Image.new("RGBA", (width, height))
    for crop, corner in zip(crops, corners, strict=True):
        picture.paste(crop, corner)
    return picture, corners
