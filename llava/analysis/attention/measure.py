"""Measure how a vision tower distributes its attention over the patches of a crop, in each of its layers.

A patch's share is its score in that layer (`visionzip_patch.saliency`: the attention that CLS pays to it, or, where
there is no CLS, that it receives from all patches; averaged over heads) divided by the sum over all patches. So shares
of a crop sum to 1 and 1 / P each is an even spread, whatever the tower. The tower keeps its own attention kernel.

Shapes: B crops, P patches, N layers of the encoder.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_patch.encoder import queries_keys
from visionzip_patch.evidence import attention_evidence

STEPS = 4  # bins of a histogram in each doubling of the share
FAINTEST = -10  # the first bin ends near 2 ** -10 of an even share, and begins at 0


class Spread(NamedTuple):
    """How attention is distributed over the patches of B crops."""

    shares: Tensor  # (B, P) in the layer that the tower reads, largest first
    top: Tensor  # (B, N) what the most attended tenth of the patches holds
    effective: Tensor  # (B, N) exp of the entropy: the number of equally attended patches with the same entropy


class Bin(NamedTuple):
    """One bar of the histogram of shares. `lower` and `upper` are multiples of an even share, the others %."""

    lower: float
    upper: float
    patches: float  # with a share in the bin
    attention: float  # that these patches hold
    patches_from: float  # with a share of at least `lower`
    attention_from: float


@torch.inference_mode()
def measure(tower, batches: Iterable[Tensor]) -> Spread:
    """Measure the distribution over the patches of all crops; each batch is (B, 3, S, S)."""
    found = []
    for pixels in batches:
        layers = list(layer_shares(tower, pixels))
        shares = layers[tower.depth - 1].sort(descending=True).values
        per_layer = [torch.stack([of(layer) for layer in layers], dim=1) for of in (top_share, effective_number)]
        found.append([tensor.cpu() for tensor in (shares, *per_layer)])
    return Spread(*map(torch.cat, zip(*found, strict=True)))


def layer_shares(tower, pixels: Tensor) -> Iterator[Tensor]:
    """Yield the shares of the patches in every layer, also after the one that is read: N times (B, P), fp32."""
    hidden = tower.embed(pixels.to(device=tower.device, dtype=tower.dtype))
    for layer in tower.layers:
        scores = attention_evidence(hidden, partial(queries_keys, layer, hidden), has_cls=tower.has_cls).saliency
        yield scores / scores.sum(1, keepdim=True)
        hidden = layer(hidden, None)


def a_tenth(patches: int) -> int:
    """Return a tenth of the number of patches, rounded, at least 1."""
    return max(1, round(patches / 10))


def top_share(shares: Tensor) -> Tensor:
    """Sum the shares of the most attended tenth of the patches: (B, P) -> (B,)."""
    return shares.topk(a_tenth(shares.shape[1]), dim=1).values.sum(1)


def effective_number(shares: Tensor) -> Tensor:
    """Return exp of the entropy, from 1 (one patch holds all) to P (all hold the same): (B, P) -> (B,)."""
    return torch.special.entr(shares).sum(1).exp()


def histogram(shares: Tensor) -> list[Bin]:
    """Count shares, (B, P), in bins of equal width on a logarithmic scale."""
    patches = shares.shape[1]
    multiples = (shares * patches).flatten().double()
    highest = torch.tensor(patches).log2()
    exponents = torch.arange(STEPS * FAINTEST, int(STEPS * highest) + 2) / STEPS
    edges = (2**exponents).double()  # the last lies above P, which a share of 1 is
    place = torch.bucketize(multiples, edges, right=True)  # 0 is below the first edge
    counts, held = (torch.bincount(place, weights, len(edges)) for weights in (None, multiples))
    counts, held = 100 * counts / len(multiples), 100 * held / multiples.sum()
    counts_from, held_from = (values.flip(0).cumsum(0).flip(0) for values in (counts, held))
    columns = (torch.cat([edges.new_zeros(1), edges[:-1]]), edges, counts, held, counts_from, held_from)
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
