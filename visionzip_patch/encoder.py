"""Run a vision encoder as far as the layer that is read, keeping what went into that layer.

Shapes: B crops, L tokens, C channels.
"""

from collections.abc import Iterable

from torch import Tensor, nn


def layers_to_run(select_layer: int, depth: int, name: str = "mm_vision_select_layer") -> int:
    """How many layers lead to `hidden_states[select_layer]` of an encoder with `depth` layers: -2 of 24 -> 23.

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


def run_layers(layers: Iterable[nn.Module], hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the last of `layers`: (B, L, C) -> (B, L, C), (B, L, C)."""
    before = hidden
    for layer in layers:
        before, hidden = hidden, layer(hidden, None)  # None: no attention mask
    return before, hidden
