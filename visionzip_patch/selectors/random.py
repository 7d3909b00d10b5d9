"""Patches at random, to compare other selectors with."""

import torch

from visionzip_patch.evidence import Evidence
from visionzip_patch.selection import Selection
from visionzip_patch.selectors.keeping import keep_best


def choose(evidence: Evidence, dominant: int, contextual: int, *, seed: int) -> Selection:
    """Keep patches drawn at random: one pattern per seed, the same for every crop, whatever the batch.

    The pattern is made on the CPU at each call, which waits for the device.
    """
    scores = torch.rand(evidence.patches, generator=torch.Generator().manual_seed(seed)).to(evidence.device)
    return keep_best(evidence, scores.expand(evidence.batch, -1), dominant, contextual)
