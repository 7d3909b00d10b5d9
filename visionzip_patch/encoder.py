"""Run a vision encoder as far as the layer that is read, and take queries and keys from that layer.

Shapes: B crops, L tokens, C channels, H heads, K head channels, Q queries.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from visionzip_patch.saliency import QueriesKeys, split_heads


class Attention(Protocol):
    """Self-attention with separate projections."""

    q_proj: Callable[[Tensor], Tensor]
    k_proj: Callable[[Tensor], Tensor]
    scale: float
    head_dim: int


class EncoderLayer(Protocol):
    """A pre-norm encoder layer of CLIP, SigLIP and their relatives in transformers."""

    layer_norm1: Callable[[Tensor], Tensor]
    self_attn: Attention


def queries_keys(layer: EncoderLayer, before: Tensor, rows: slice = slice(None)) -> QueriesKeys:
    """Project queries and keys as a layer of CLIP or SigLIP does.

    Args:
        layer: an encoder layer.
        before: the layer's input, (B, L, C).
        rows: of which tokens queries are wanted.

    Returns:
        Queries (B, H, Q, K) of these tokens, keys (B, H, L, K) of all.
    """
    attention, hidden = layer.self_attn, layer.layer_norm1(before)
    keys = split_heads(attention.k_proj(hidden), attention.head_dim)
    queries = split_heads(attention.q_proj(hidden[:, rows]), attention.head_dim)
    return QueriesKeys(queries, keys, attention.scale)


def layers_to_run(select_layer: object, depth: int, name: str = "mm_vision_select_layer") -> int:
    """Count the layers that lead to `hidden_states[select_layer]` of an encoder with `depth` layers: -2 of 24 -> 23.

    Raises:
        ValueError: no such layer, or more than one; the config's field is called `name`.
    """
    if isinstance(select_layer, int):
        count = select_layer if select_layer >= 0 else depth + 1 + select_layer
        if 1 <= count <= depth:
            return count
    raise ValueError(
        f"{name}={select_layer!r}: this vision encoder has {depth} layers, and one of them is read; "
        f"choose a whole number, {-depth}..-1 or 1..{depth}."
    )


def run_layers(layers: Iterable[Callable[..., Tensor]], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Run layers one after the other; returns input and output of the last: (B, L, C) -> (B, L, C), (B, L, C)."""
    before = hidden
    for layer in layers:
        before, hidden = hidden, layer(hidden, None)  # None: no attention mask
    return before, hidden
