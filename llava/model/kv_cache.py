"""Keys and values of a batch whose rows differ in length, in memory that stays where it is.

Token p of a row lies in slot p, whatever the other rows hold: rows are padded on the right, and padding is overwritten
by the tokens that follow. So prompts need no mask against padding, a row can be cut short or copied for nothing, and a
CUDA graph finds the same addresses at every step.

Shapes: B rows, S slots, T new tokens, W <= S slots that are looked at, H key heads, K channels of a head.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llava.model.typed import Decoder


class KVCache:
    """Room for B rows of S tokens in every layer of a decoder.

    Attributes:
        keys, values: per layer (B, H, S, K).
        counts: tokens that each row holds.
        lengths: the same on the device, (B,) int64.
    """

    @torch.inference_mode(False)  # an inference tensor could be written in inference mode only
    def __init__(self, decoder: Decoder, rows: int, slots: int):
        self.counts = [0] * rows
        self.lengths = torch.zeros(rows, dtype=torch.long, device=execution_device(decoder.embed_tokens))
        shape, dtype = layer_shape(decoder, rows, slots), decoder.embed_tokens.weight.dtype
        devices = [execution_device(layer) for layer in decoder.layers]
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.clear()

    @property
    def rows(self) -> int:
        """Return the number of rows, B."""
        return len(self.counts)

    @property
    def slots(self) -> int:
        """Return how many tokens a row has room for, S."""
        return self.keys[0].shape[2]

    @property
    def longest(self) -> int:
        """Return the number of tokens in the longest row."""
        return max(self.counts)

    @property
    def is_even(self) -> bool:
        """Return whether all rows hold the same number of tokens."""
        return min(self.counts) == self.longest

    @property
    def nbytes(self) -> int:
        """Return how many bytes keys and values take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def clear(self) -> None:
        """Forget the tokens of all rows."""
        # Attention multiplies slots that are masked out by 0, and 0 times whatever memory held may be NaN.
        for tensor in (*self.keys, *self.values):
            tensor.zero_()
        self.set_counts([0] * self.rows)

    def set_counts(self, counts: Sequence[int]) -> None:
        """Set how many tokens each row holds; with fewer than before, the rest is forgotten."""
        self.counts = list(counts)
        self.lengths.copy_(torch.tensor(self.counts))

    def advance(self) -> None:
        """Count one more token in each row; nothing waits for the device."""
        self.counts = [count + 1 for count in self.counts]
        self.lengths += 1

    def copy_rows(self, source: "KVCache", rows: Sequence[int]) -> None:
        """Copy to each row b everything that row `rows[b]` of `source` holds."""
        width = source.longest
        index = torch.tensor(rows)
        for own, others in ((self.keys, source.keys), (self.values, source.values)):
            for to, tensor in zip(own, others, strict=True):
                to[:, :, :width] = tensor[index.to(tensor.device), :, :width]
        self.set_counts([source.counts[row] for row in rows])

    @torch.inference_mode(False)
    def reserve(self, slots: int) -> bool:
        """Make room for at least `slots` tokens per row. Returns whether memory has moved."""
        if slots <= self.slots:
            return False
        missing, layers = slots - self.slots, len(self.keys)
        grown = [nn.functional.pad(tensor, (0, 0, 0, missing)) for tensor in (*self.keys, *self.values)]
        self.keys, self.values = grown[:layers], grown[layers:]  # at once: memory may run out halfway
        return True


class Extension(NamedTuple):
    """What decoder layers see in one call: puts T new tokens of each row in place, and shows the first W slots."""

    cache: KVCache
    positions: Tensor  # (B, T): slots of the new tokens
    window: int | None  # W; None: there is nothing but the new tokens

    def update(self, key: Tensor, value: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Put new keys and values into the cache, and return those to attend to: (B, H, T, K) -> (B, H, W, K)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        positions = self.positions.to(key.device)
        row = torch.arange(len(positions), device=key.device)[:, None]
        keys[row, :, positions] = key.transpose(1, 2).to(keys.dtype)  # autocast computes in another type
        values[row, :, positions] = value.transpose(1, 2).to(values.dtype)
        if self.window is None:
            return key, value
        return keys[:, :, : self.window], values[:, :, : self.window]

    def mask(self, sliding: int | None) -> Tensor:
        """Make the mask of attention, (B, 1, T, W) bool: True where a new token looks at a slot.

        Args:
            sliding: how many tokens a layer sees, the new one included; None: all before it.
        """
        window = self.cache.slots if self.window is None else self.window
        slots = torch.arange(window, device=self.positions.device)
        last = self.positions[:, None, :, None]
        visible = slots <= last
        return visible if sliding is None else visible & (slots > last - sliding)


def layer_shape(decoder: Decoder, rows: int, slots: int) -> tuple[int, int, int, int]:
    """Return the shape of a layer's keys, and of its values: (B, H, S, K)."""
    config = decoder.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return rows, config.num_key_value_heads, slots, head


def cache_bytes(decoder: Decoder, rows: int, slots: int) -> int:
    """Return how many bytes a `KVCache` takes."""
    return 2 * len(decoder.layers) * prod(layer_shape(decoder, rows, slots)) * decoder.embed_tokens.weight.itemsize


def execution_device(module: nn.Module) -> torch.device:
    """Return the device that a module computes on; accelerate keeps parts that it has offloaded on "meta"."""
    device = next(module.parameters()).device
    return torch.device(vars(module)["_hf_hook"].execution_device) if device.type == "meta" else device
