"""What hangs on a vision tower: a setting, turned into selections.

Shapes as in `selection`: B crops, P patches, L tokens, C channels.
"""

import math

import torch
from torch import Tensor, nn

from visionzip_patch.config import VisionZipConfig
from visionzip_patch.saliency import cls_saliency, received_saliency
from visionzip_patch.selection import Selection, check_budget, select


class VisionZip:
    """Selects tokens from one encoder layer. No module and no parameters, so a tower's `state_dict` stays as it was.

    Args:
        config: the setting.
        available: L, tokens that the tower gives per crop, CLS included.
        has_cls: whether token 0 is CLS.

    Raises:
        ValueError: the budget asks for more than `available`; both numbers are named.
    """

    def __init__(self, config: VisionZipConfig, *, available: int, has_cls: bool):
        if config.tokens_per_image is None:
            check_budget(config.dominant, config.contextual, available)
        self.config, self.available, self.has_cls = config, available, has_cls

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
        dominant, contextual = self.config.per_crop(crops, self.available)
        saliency, keys = (cls_saliency if self.has_cls else received_saliency)(layer, before)
        if self.config.selector == "random":
            saliency = random_pattern(saliency, self.config.seed)
        elif self.config.selector == "uniform":
            saliency = uniform_pattern(saliency, dominant - self.has_cls)
        return select(keys, saliency, dominant=dominant, contextual=contextual)

    def __repr__(self) -> str:
        return f"VisionZip({self.config})"


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
