"""What hangs on a vision tower: a setting, turned into selections.

Shapes as in `selection`: B crops, P patches, L tokens, N = D + M tokens that stay, C channels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from visionzip_patch.config import VisionZipConfig
from visionzip_patch.saliency import cls_saliency, received_saliency
from visionzip_patch.selection import Selection, check_budget, select
from visionzip_patch.tiles import positions


class Tower(Protocol):
    """What VisionZip asks of a vision tower."""

    reducer: "VisionZip | None"  # the seam: who makes the tokens fewer
    num_patches: int  # P
    has_cls: bool  # whether token 0 is CLS


class Reduced(NamedTuple):
    """What is left of some crops."""

    tokens: Tensor  # (B, N, C)
    position: Tensor  # (B, N), see `visionzip_patch.tiles`


class VisionZip:
    """Selects tokens from one encoder layer. No module and no parameters, so a tower's `state_dict` stays as it was.

    Args:
        config: the setting.
        tower: whose tokens they are; only its numbers are kept.

    Raises:
        ValueError: the budget asks for more tokens than the tower gives; both numbers are named.
    """

    def __init__(self, config: VisionZipConfig, tower: Tower):
        available = tower.num_patches + int(tower.has_cls)
        if config.tokens_per_image is None:
            check_budget(config.dominant, config.contextual, available)
        self.config, self.available, self.has_cls = config, available, tower.has_cls

    def tokens(self, crops: int = 1) -> int:
        """The real number of tokens of an image that has `crops` crops."""
        return crops * sum(self.config.per_crop(crops, self.available))

    def select(self, layer: nn.Module, before: Tensor, *, crops: int = 1) -> Selection:
        """Choose tokens by the attention inside `layer`.

        Args:
            layer: the encoder layer whose output the tower returns.
            before: the input of that layer, (B, L, C): any number of crops, each for itself.
            crops: how many of these crops make up one image; matters only to a budget per image.
        """
        return self.scored_selection(layer, before, crops=crops)[1]

    def scored_selection(self, layer: nn.Module, before: Tensor, *, crops: int = 1) -> tuple[Tensor, Selection]:
        """`select`, and before it the scores (B, P) by which it chose."""
        dominant, contextual = self.config.per_crop(crops, self.available)
        saliency, keys = self.attention(layer, before)
        if self.config.selector == "random":
            saliency = random_pattern(saliency, self.config.seed)
        elif self.config.selector == "uniform":
            saliency = uniform_pattern(saliency, dominant - self.has_cls)
        return saliency, select(keys, saliency, dominant=dominant, contextual=contextual)

    def attention(self, layer: nn.Module, before: Tensor) -> tuple[Tensor, Tensor]:
        """What VisionZip chooses by: saliency (B, P) and keys (B, L, K)."""
        return (cls_saliency if self.has_cls else received_saliency)(layer, before)

    def reduce(self, layer: nn.Module, before: Tensor, after: Tensor, *, crops: int = 1) -> Reduced:
        """Select by `layer` and its input, apply to its output: (B, L, C), (B, L, C) -> (B, N, C)."""
        selection = self.select(layer, before, crops=crops)
        return Reduced(selection.apply(after, self.config.merge), positions(selection, self.has_cls))

    def reduce_images(self, layer: nn.Module, before: Tensor, after: Tensor, counts: Sequence[int]) -> list[Reduced]:
        """`reduce` for images of `counts` crops each; those with the same budget in one go."""
        if self.config.tokens_per_image is not None and len(set(counts)) > 1:
            parts = zip(before.split(counts), after.split(counts), counts, strict=True)
            return [self.reduce(layer, b, a, crops=crops) for b, a, crops in parts]
        tokens, position = self.reduce(layer, before, after, crops=counts[0])
        return [Reduced(t, p) for t, p in zip(tokens.split(counts), position.split(counts), strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"  # tells all settings apart: the engine keeps graphs by it


# Blind selectors, to compare with. They are made on the CPU at each call: the one place that waits for the device.


def random_pattern(like: Tensor, seed: int) -> Tensor:
    """A random score per patch, the same for each crop: (B, P)."""
    scores = torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed))
    return scores.to(like.device).expand_as(like)


def uniform_pattern(like: Tensor, count: int) -> Tensor:
    """1 at `count` patches spread evenly over a square grid, 0 elsewhere, the same for each crop: (B, P)."""
    side = math.isqrt(like.shape[1])
    rows = min(side, max(1, round(math.sqrt(count))))
    scores = torch.zeros(like.shape[1])
    for i in range(rows):
        columns = count * (i + 1) // rows - count * i // rows  # shares `count` out over the rows
        row = (2 * i + 1) * side // (2 * rows)
        for j in range(columns):
            scores[row * side + (2 * j + 1) * side // (2 * columns)] = 1
    return scores.to(like.device).expand_as(like)
