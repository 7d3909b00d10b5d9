"""How much each visual token matters: attention of one layer, recomputed from its weights.

The model keeps its fast attention kernel and nothing is patched: the one attention row (CLS), or the column means (no
CLS), that VisionZip needs are computed again from the layer's input. For a CLIP encoder of depth 24 that is one extra
key projection, 0.3 % of its operations.

Shapes: B crops, L = 1 + P tokens (P without CLS), C channels, H heads, K head channels. `layer` is any pre-norm encoder
layer with `layer_norm1` and `self_attn.{q_proj, k_proj, scale, head_dim}`: CLIP, SigLIP and their relatives.

Source: VisionZip, arXiv 2412.04467, section 3.2.
"""

from torch import Tensor, nn

from visionzip_patch.selection import full_precision

QUERY_BLOCK = 128  # rows of the attention map alive at a time where every row is needed


def cls_saliency(layer: nn.Module, before: Tensor) -> tuple[Tensor, Tensor]:
    """How much CLS looks at each patch inside `layer`, and the layer's keys.

    Args:
        layer: an encoder layer.
        before: the layer's input, (B, L, C), CLS first.

    Returns:
        saliency (B, P), fp32: attention from CLS, summed over heads; a row sums to at most the number of heads.
        keys (B, L, K): averaged over heads.
    """
    hidden = layer.layer_norm1(before)
    keys = split_heads(layer, layer.self_attn.k_proj(hidden))  # (B, H, L, K)
    query = split_heads(layer, layer.self_attn.q_proj(hidden[:, :1]))  # (B, H, 1, K)
    return attend(layer, query, keys)[:, :, 0, 1:].sum(1), keys.mean(1)


def received_saliency(layer: nn.Module, before: Tensor) -> tuple[Tensor, Tensor]:
    """How much attention each token receives inside `layer`, for encoders without CLS, and the layer's keys.

    Args:
        layer: an encoder layer.
        before: the layer's input, (B, P, C).

    Returns:
        saliency (B, P), fp32: attention averaged over heads and over all queries; each row sums to 1. Computed in
            blocks of queries: the (H, P, P) map is never stored.
        keys (B, P, K): averaged over heads.
    """
    hidden = layer.layer_norm1(before)
    keys = split_heads(layer, layer.self_attn.k_proj(hidden))  # (B, H, P, K)
    queries = split_heads(layer, layer.self_attn.q_proj(hidden))  # (B, H, P, K)
    received = sum(attend(layer, block, keys).sum((1, 2)) for block in queries.split(QUERY_BLOCK, dim=2))  # (B, P)
    return received / (queries.shape[1] * queries.shape[2]), keys.mean(1)


def split_heads(layer: nn.Module, projected: Tensor) -> Tensor:
    """(B, L, H * K) -> (B, H, L, K)."""
    return projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)


def attend(layer: nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention weights of some queries over all keys: (B, H, Q, K), (B, H, L, K) -> (B, H, Q, L), fp32."""
    with full_precision(queries):
        return ((queries.float() * layer.self_attn.scale) @ keys.float().mT).softmax(-1)
