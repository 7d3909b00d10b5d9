"""Patches spread evenly over an image, to compare other selectors with."""

import math

import torch
from torch import Tensor

from visionzip_patch.evidence import Evidence
from visionzip_patch.selection import Selection
from visionzip_patch.selectors.keeping import keep_best


def choose(evidence: Evidence, dominant: int, contextual: int) -> Selection:
    """Keep evenly spread patches, the same for every crop.

    The pattern is made on the CPU at each call, which waits for the device.
    """
    scores = pattern(evidence.grid, dominant - int(evidence.has_cls)).to(evidence.device)
    return keep_best(evidence, scores.expand(evidence.batch, -1), dominant, contextual)


def pattern(grid: tuple[int, int], count: int) -> Tensor:
    """Mark `count` patches spread evenly over a grid of (rows, columns): (P,), 1 at each of them and 0 elsewhere."""
    rows, cols = grid
    used = min(rows, max(1, round(math.sqrt(count * rows / cols)), math.ceil(count / cols)))  # rows with some of them
    scores = torch.zeros(rows * cols)
    for i in range(used):
        share = count * (i + 1) // used - count * i // used  # shares `count` out over the rows
        row = (2 * i + 1) * rows // (2 * used)
        for j in range(share):
            scores[row * cols + (2 * j + 1) * cols // (2 * share)] = 1
    return scores
