"""One call of the language model over a `KVCache`: the layers, the logits, and when a call is worth a graph.

Shapes: B rows, T new tokens of the longest row, C channels, V vocabulary, W slots of the cache that are looked at.
"""

import logging
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llava.model.kv_cache import Extension, KVCache, execution_device
from llava.model.typed import Decoder
from llava.model.vision import VisionMixin
from visionzip_patch.compat import CACHE
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

GRAPHED_TOKENS = 4096  # above, the device is busy long enough for the host to keep up without graphs


class Runner:
    """Runs the language model of a LLaVA model over a cache of keys and values.

    Args:
        model: a LLaVA model, which this does not keep alive. Parts may be quantized, or on several devices: "static"
            then, whatever `mode` says.
        mode: of `graphs.Graphs`.
    """

    def __init__(self, model: VisionMixin, mode: str = "static"):
        if mode != "static" and len({parameter.device for parameter in model.parameters()}) > 1:
            warn_once(logger, "fast=%r needs a model on one device; this one is on several: 'static' it is.", mode)
            mode = "static"
        if mode == "graphs" and next(model.parameters()).device.type != "cuda":
            warn_once(logger, "fast='graphs': there are no CUDA graphs without a GPU; steps run as they are.")
        self._model, self.mode = weakref.ref(model), mode

    @property
    def model(self) -> VisionMixin:
        """Return the LLaVA model."""
        model = self._model()
        assert model is not None, "the fast path was kept longer than its model"
        return model

    @property
    def decoder(self) -> Decoder:
        """Return the model's language model without its head."""
        return self.model.get_model()

    @property
    def is_static(self) -> bool:
        """Return whether shapes are free, because nothing is prepared for each."""
        return self.mode == "static"

    def is_graphed(self, rows: int, new: int) -> bool:
        """Return whether a call with `new` tokens in each of `rows` rows is worth a graph."""
        return not self.is_static and rows * new <= GRAPHED_TOKENS

    def padding(self, rows: int, new: int) -> int:
        """Return how many slots behind `new` tokens are filled up, so that few lengths need a graph."""
        return bucket(new, 32) - new if self.is_graphed(rows, new) else 0

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embed T tokens: ids -> (T, C)."""
        table = self.decoder.embed_tokens
        return table(torch.tensor(ids, dtype=torch.long, device=execution_device(table)))

    def forward(self, cache: KVCache, window: int | None, masked: bool, embeds: Tensor, last: Tensor) -> Tensor:
        """Append T tokens to each row of a cache, and compute the logits after one of them.

        Args:
            cache: keys and values of the tokens so far.
            window: how many slots of the cache are looked at, W; None: the cache is empty.
            masked: whether a mask is needed, because rows differ in length or layers look back a limited way.
            embeds: (B, T, C), the new tokens.
            last: (B,), after which of the T tokens.

        Returns:
            Logits, (B, V).
        """
        hidden = extend(self.decoder, cache, embeds, window=window, masked=masked)
        rows = torch.arange(len(last), device=hidden.device)
        hidden = self.decoder.norm(hidden[rows, last.to(hidden.device)])  # (B, C)
        return self.model.lm_head(hidden)

    def forward_ids(self, cache: KVCache, window: int, masked: bool, ids: Tensor) -> Tensor:
        """Append one token to each row, (B,), and compute the logits after it, (B, V); see `forward`."""
        embeds = self.decoder.embed_tokens(ids[:, None])
        return self.forward(cache, window, masked, embeds, torch.zeros_like(ids))


def extend(decoder: Decoder, cache: KVCache, embeds: Tensor, *, window: int | None, masked: bool) -> Tensor:
    """Append T tokens to each row of a cache, and run the decoder's layers on them.

    Args:
        decoder: of the model that the cache was made for.
        cache: its `counts` are left to the caller, who knows how many of the tokens are padding.
        embeds: (B, T, C), the new tokens.
        window: how many slots of the cache are looked at, W; None: the cache is empty.
        masked: whether a mask is needed, because rows differ in length or layers look back a limited way.

    Returns:
        Hidden states behind the last layer, before the norm, (B, T, C).
    """
    positions = cache.lengths[:, None] + torch.arange(embeds.shape[1], device=embeds.device)  # (B, T)
    extension = Extension(cache, positions, window)
    rotary = decoder.rotary_emb(embeds, positions)
    masks: dict[int | None, Tensor] = {}
    hidden = embeds
    for layer in decoder.layers:
        sliding = sliding_window(decoder, layer)
        if masked and sliding not in masks:
            masks[sliding] = extension.mask(sliding)
        hidden = layer(
            hidden,
            attention_mask=masks.get(sliding),
            position_ids=positions,
            use_cache=True,
            position_embeddings=rotary,
            **{CACHE: extension},
        )
    return hidden


def sliding_window(decoder: Decoder, layer: nn.Module) -> int | None:
    """Return how many tokens a layer sees; None: all. Qwen's layers differ; Mistral's config has one for all."""
    return getattr(layer.self_attn, "sliding_window", getattr(decoder.config, "sliding_window", None))


def least_sliding_window(decoder: Decoder) -> int | None:
    """Return how many tokens the layer that looks back least sees; None: all layers see all."""
    windows = [sliding_window(decoder, layer) for layer in decoder.layers]
    return min((window for window in windows if window is not None), default=None)


def bucket(length: int, step: int = 128) -> int:
    """Round a length up to one of few: multiples of `step`, and of eight times as much where that adds little."""
    step = step if length <= 8 * step else 8 * step
    return -(-length // step) * step
