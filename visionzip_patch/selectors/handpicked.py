"""Patches of one image that somebody has chosen. No name in the table: a reducer is given this selector itself.

Shapes as in `visionzip_patch.selection`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionzip_patch.config import VisionZipConfig
from visionzip_patch.evidence import Evidence
from visionzip_patch.reducer import Tower, VisionZip
from visionzip_patch.selection import Selection
from visionzip_patch.selectors import Selector
from visionzip_patch.selectors.keeping import keep_best

Patches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class HandPicked:
    """Keeps chosen patches, and CLS where there is one.

    A crop with fewer patches than another is filled up with those that VisionZip would keep next, and with patches that
    were released only when there are no others.

    Args:
        patches: raster indices of the chosen patches of each crop, in order; the base crop first.
        released: those that are not wanted, likewise.
    """

    patches: Patches
    released: Patches

    def __call__(self, evidence: Evidence, dominant: int, contextual: int) -> Selection:
        """Keep the chosen patches.

        Raises:
            ValueError: there are more or fewer crops than patches were chosen for, or a patch does not exist.
        """
        require_patches(self, evidence.patches)
        if evidence.batch != len(self.patches):
            raise ValueError(f"Patches were chosen in {len(self.patches)} crops, but these are {evidence.batch}.")
        saliency = evidence.saliency
        last = saliency.masked_fill(mark(self.released, saliency), -torch.inf)
        return keep_best(evidence, last.masked_fill(mark(self.patches, saliency), torch.inf), dominant, contextual)


def hand_picked(
    patches: Sequence[Collection[int]],
    contextual: int,
    tower: Tower,
    merge: str = "sum",
    released: Sequence[Collection[int]] | None = None,
) -> VisionZip:
    """Make the reducer that keeps chosen patches of one image, and merges the rest as VisionZip merges it.

    All crops get as many tokens as the one with the most chosen patches.

    Args:
        patches: raster indices of the chosen patches of each crop, the base crop first.
        contextual: tokens merged from the rest, per crop. 0 drops the rest.
        tower: whose tokens they are.
        merge: as in `VisionZipConfig`.
        released: raster indices of the patches of each crop that are not wanted; by default none.

    Raises:
        ValueError: a patch that the tower does not have, or more tokens than it gives.
    """
    picked = HandPicked(in_order(patches), in_order(released or [()] * len(patches)))
    if tower.num_patches is not None:
        require_patches(picked, tower.num_patches)
    selector = Selector(
        picked,
        needs=frozenset({"saliency", "keys"}),
        label="hand-picked",
        help="patches that somebody has chosen",
    )
    dominant = max(1, int(tower.has_cls) + max(map(len, picked.patches)))
    return VisionZip(VisionZipConfig(dominant, contextual, merge=merge), tower, selector)


def in_order(patches: Sequence[Collection[int]]) -> Patches:
    """Sort the patches of each crop, each of them once."""
    return tuple(tuple(sorted(set(crop))) for crop in patches)


def require_patches(picked: HandPicked, count: int) -> None:
    """Raise a ValueError if patches were picked that are none of a crop's `count`."""
    if wrong := [patch for crop in picked.patches + picked.released for patch in crop if not 0 <= patch < count]:
        raise ValueError(f"There is no patch {wrong[0]}: a crop has patches 0 to {count - 1}.")


def mark(patches: Patches, like: Tensor) -> Tensor:
    """Mark the patches of each crop, (B, P) bool, where `like` is, and in its shape."""
    marked = torch.zeros(like.shape, dtype=torch.bool)
    for row, crop in zip(marked, patches, strict=True):
        row[list(crop)] = True
    return marked.to(like.device)
