"""How much each visual token matters: attention of one layer, computed again from its queries and keys.

The model keeps its fast attention kernel and nothing is patched: the one attention row (CLS), or the column means (no
CLS), that VisionZip needs are computed again from the layer's input. For a CLIP encoder of depth 24 that is one extra
key projection, 0.3 % of its operations. Where queries and keys come from is the tower's to know: separate or fused
projections, with or without rotary positions (`visionzip_patch.encoder.queries_keys` is CLIP's and SigLIP's).

Shapes: B crops, L = 1 + P tokens (P without CLS), H heads, K head channels, Q queries.

Source: VisionZip, arXiv 2412.04467, section 3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_patch.selection import full_precision

QUERY_BLOCK = 128  # rows of the attention map alive at a time where every row is needed


class QueriesKeys(NamedTuple):
    """Queries and keys of one attention layer, as its kernel would get them."""

    queries: Tensor  # (B, H, Q, K), Q = 1 is CLS alone
    keys: Tensor  # (B, H, L, K)
    scale: float  # of their products


def token_saliency(queries: Tensor, keys: Tensor, scale: float, *, has_cls: bool) -> Tensor:
    """Score patches by `cls_saliency` where token 0 is CLS, else by `received_saliency`: (B, P), fp32."""
    return cls_saliency(queries, keys, scale) if has_cls else received_saliency(queries, keys, scale)


def cls_saliency(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Measure how much CLS looks at each patch.

    Args:
        queries: (B, H, Q, K), of which the first is that of CLS; others are not read.
        keys: (B, H, L, K), CLS first.
        scale: of the products of queries and keys.

    Returns:
        (B, P), fp32: attention from CLS, summed over heads; a row sums to at most the number of heads.
    """
    return attend(queries[:, :, :1], keys, scale)[:, :, 0, 1:].sum(1)


def received_saliency(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Measure how much attention each token receives, for encoders without CLS.

    Args:
        queries: (B, H, P, K), of all tokens.
        keys: (B, H, P, K).
        scale: of the products of queries and keys.

    Returns:
        (B, P), fp32: attention averaged over heads and over all queries; each row sums to 1. Computed in blocks of
        queries: the (H, P, P) map is never stored.
    """
    blocks = queries.split(QUERY_BLOCK, dim=2)
    received = torch.zeros(len(keys), keys.shape[2], device=keys.device)  # (B, P)
    for block in blocks:
        received = received + attend(block, keys, scale).sum((1, 2))
    return received / (queries.shape[1] * queries.shape[2])


def split_heads(projected: Tensor, head_dim: int) -> Tensor:
    """Split the channels of a projection over heads of `head_dim` channels: (B, L, H * K) -> (B, H, L, K)."""
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute attention weights of some queries over all keys: (B, H, Q, K), (B, H, L, K) -> (B, H, Q, L), fp32."""
    with full_precision(queries):
        return ((queries.float() * scale) @ keys.float().mT).softmax(-1)
