"""Patches that somebody has chosen, in place of those that VisionZip would keep.

Shapes as in `reducer`: B crops, P patches, L tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionzip_patch.config import VisionZipConfig
from visionzip_patch.reducer import Tower, VisionZip
from visionzip_patch.selection import Selection, select


@dataclass(frozen=True)
class HandPickedConfig(VisionZipConfig):
    """A setting that holds for one image; `dominant` follows from the patches.

    Args:
        patches: raster indices of the chosen patches of each crop, in order.
        released: those that were let go, likewise.
    """

    patches: tuple[tuple[int, ...], ...] = ()
    released: tuple[tuple[int, ...], ...] = ()


class HandPicked(VisionZip):
    """Keeps chosen patches of one image, and CLS where there is one; the rest is merged as VisionZip merges it.

    All crops get as many tokens as the one with the most chosen patches: the others are filled up with what VisionZip
    would keep next, and with patches that were let go only when there are no others.

    Args:
        patches: raster indices of the chosen patches of each crop, the base crop first.
        contextual: tokens merged from the rest, per crop. 0 drops the rest.
        tower: whose tokens they are.
        merge: as in `VisionZipConfig`.
        released: raster indices of the patches of each crop that were let go; by default none.

    Raises:
        ValueError: a patch that the tower does not have, or more tokens than it gives.
    """

    def __init__(
        self,
        patches: Sequence[Collection[int]],
        contextual: int,
        tower: Tower,
        merge: str = "sum",
        released: Sequence[Collection[int]] | None = None,
    ):
        chosen = in_order(patches)
        released = in_order(released or [()] * len(chosen))
        if wrong := [patch for crop in chosen + released for patch in crop if not 0 <= patch < tower.num_patches]:
            raise ValueError(f"There is no patch {wrong[0]}: a crop has patches 0 to {tower.num_patches - 1}.")
        dominant = max(1, tower.has_cls + max(map(len, chosen)))
        super().__init__(HandPickedConfig(dominant, contextual, merge=merge, patches=chosen, released=released), tower)
        self.chosen, self.released = mask(chosen, tower.num_patches), mask(released, tower.num_patches)  # (B, P) each

    def scored_selection(self, layer: nn.Module, before: Tensor, *, crops: int = 1) -> tuple[Tensor, Selection]:
        """VisionZip's scores (B, P), and the selection.

        Raises:
            ValueError: there are more or fewer crops than patches were chosen for.
        """
        if len(before) != len(self.chosen):
            raise ValueError(f"Patches were chosen in {len(self.chosen)} crops, but these are {len(before)}.")
        saliency, keys = self.attention(layer, before)
        last = saliency.masked_fill(self.released.to(saliency.device), -torch.inf)
        first = last.masked_fill(self.chosen.to(saliency.device), torch.inf)
        return saliency, select(keys, first, dominant=self.config.dominant, contextual=self.config.contextual)


def in_order(patches: Sequence[Collection[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(set(crop))) for crop in patches)


def mask(patches: Sequence[Sequence[int]], count: int) -> Tensor:
    """True at the patches of each crop: (B, P)."""
    marked = torch.zeros(len(patches), count, dtype=torch.bool)
    for row, crop in zip(marked, patches, strict=True):
        row[list(crop)] = True
    return marked
