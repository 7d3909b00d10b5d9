"""Prefill and decode without the cost of a general-purpose loop: same greedy tokens as `generate`, less time per token.

transformers' loop lets the cache grow, so every step allocates, launches each kernel from Python, and needs a mask
against padding. Here memory stays where it is (`kv_cache`), so a step can be a CUDA graph; prompts need no mask; and
what several prompts begin with, an image above all, goes through the language model once. VisionZip makes all images of
a size equally long, so few graphs serve every request.

Shapes: B rows, T new tokens of the longest row, C channels, S pixels a side, n_i tokens of the i-th image.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationConfig

from llava.model.anyres import VisionFeatures
from llava.model.graphs import Graphs
from llava.model.kv_cache import KVCache, cache_bytes
from llava.model.runner import Runner, bucket
from llava.model.sampling import new_tokens
from llava.model.sequences import Sequences
from llava.model.vision import Images, ImageSizes, VisionMixin

SPARE = 128  # new tokens that a cache has room for from the start; longer answers make it grow
GRAPHED_CROPS = 10
KEPT_BYTES = 4 * 2**30  # of caches for requests to come; a larger one is freed at once, and gets no graphs


class Engine(Runner):
    """The fast path of one model, for one caller at a time.

    Args:
        model: a LLaVA model, which this does not keep alive. Parts may be quantized, or on several devices: "static"
            then, whatever `mode` says.
        mode: of `graphs.Graphs`.

    Attributes:
        times: seconds of each preparation so far, capture or compilation.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, model: VisionMixin, mode: str = "static"):
        super().__init__(model, mode)
        self.times: list[float] = []
        self.tower_graphs = Graphs(self.mode, self.times)
        self.caches: list[tuple[KVCache, Graphs]] = []  # free ones, the last used last
        self.weights = None

    def refresh(self) -> None:
        """Discard memory and graphs if the model's weights have moved since the last call.

        Raises:
            ValueError: its attention kernel is not SDPA.
        """
        require_sdpa(self.model.config._attn_implementation, self.mode)
        weight = self.model.lm_head.weight
        weights = (weight.device, weight.dtype, weight.data_ptr())
        if weights != self.weights:
            self.clear()
        self.weights = weights

    @torch.inference_mode()
    def image_features(self, images: Images, image_sizes: ImageSizes | None) -> list[Tensor]:
        """Encode images as `model.image_features` does, with the tower as a graph where crops are few.

        Returns:
            Per image (n_i, C).
        """
        if self.is_static:
            return self.model.image_features(images, image_sizes)
        return self.model.image_features(images, image_sizes, encode=self.encode)

    def encode(self, images: Sequence[Tensor]) -> list[VisionFeatures]:
        """Run the tower on images of (crops, 3, S, S) each, those of as many crops in one call."""
        tower = self.model.require_vision_tower()
        found: dict[int, VisionFeatures] = {}
        for count in dict.fromkeys(map(len, images)):  # a budget per image depends on its number of crops
            alike = [i for i, image in enumerate(images) if len(image) == count]
            pixels = torch.cat([images[i].to(tower.device, tower.dtype) for i in alike])
            encode = partial(tower.features, crops=count)
            key = (tuple(pixels.shape), count, repr(tower.reducer))
            features = self.tower_graphs.run(key, encode, pixels) if len(pixels) <= GRAPHED_CROPS else encode(pixels)
            tokens = features.tokens.clone().split(count)
            places = [None] * len(alike) if features.position is None else features.position.clone().split(count)
            found |= {i: VisionFeatures(t, p, features.side) for i, t, p in zip(alike, tokens, places, strict=True)}
        return [found[i] for i in range(len(images))]

    def open_cache(self, rows: int, slots: int) -> Sequences:
        """Return B empty rows of at least `slots` slots. `close` it, and its memory and graphs serve the next."""
        slots = slots if self.is_static else bucket(slots)
        fitting = [pair for pair in self.caches if pair[0].rows == rows and pair[0].slots >= slots]
        if fitting:
            cache, graphs = min(fitting, key=lambda pair: pair[0].slots)
            self.caches.remove((cache, graphs))
            cache.clear()
            return Sequences(self, cache, graphs, self.keep)
        size = cache_bytes(self.decoder, rows, slots)
        self.trim(KEPT_BYTES - size)
        try:
            cache = KVCache(self.decoder, rows, slots)
        except torch.OutOfMemoryError:
            self.trim(0)
            cache = KVCache(self.decoder, rows, slots)
        graphs = Graphs(self.mode if size <= KEPT_BYTES else "static", self.times)
        return Sequences(self, cache, graphs, self.keep)

    def keep(self, cache: KVCache, graphs: Graphs) -> None:
        """Keep memory and graphs ready for the next request of that shape, as long as there is room."""
        self.caches.append((cache, graphs))
        self.trim(KEPT_BYTES)

    def trim(self, most: int) -> None:
        """Free memory that is kept, the longest unused first, until at most `most` bytes are left."""
        while self.caches and sum(cache.nbytes for cache, _ in self.caches) > most:
            del self.caches[0]

    def clear(self) -> None:
        """Free the memory that is kept for requests to come, and forget all graphs."""
        self.caches.clear()
        self.tower_graphs.clear()

    def generate(
        self,
        embeds: Tensor,
        counts: Sequence[int],
        config: GenerationConfig,
        streamer=None,
        begin_with: tuple[Sequences, Sequence[int]] | None = None,
    ) -> Tensor:
        """Answer B prompts, given as embeddings.

        Args:
            embeds: (B, T, C), padded on the right.
            counts: how many of the T are tokens, for each prompt.
            config: from `sampling.configure`.
            streamer: gets the ids as they come; one of transformers.
            begin_with: sequences, and which of them each prompt goes on from.

        Returns:
            New ids only, (B, new).

        Raises:
            ValueError: `max_length` leaves no room for an answer; as `finite.NotFinite`, logits are NaN or infinite.
        """
        rows, counts = len(counts), list(counts)
        source, begins = (None, []) if begin_with is None else (begin_with[0], list(begin_with[1]))
        held = max((source.cache.counts[row] for row in begins), default=0) if source else 0
        limit = new_tokens(config, held + max(counts))
        if not self.is_static:  # few batch sizes, so few graphs: copies of the first row, which nobody reads
            copies = (1 << (rows - 1).bit_length()) - rows
            embeds = torch.cat([embeds, embeds[:1].expand(copies, -1, -1)])
            counts, begins = counts + counts[:1] * copies, begins + begins[:1] * copies
        new = embeds.shape[1] + self.padding(*embeds.shape[:2]) + min(limit, SPARE)
        with torch.inference_mode(), self.open_cache(len(counts), held + new) as sequences:
            if source:
                sequences.begin_with(source, begins)
            found = sequences.answer(sequences.extend(embeds, counts), config, limit, rows, streamer)
        return found.clone()  # outside of inference mode, for callers who write to it


def require_sdpa(kernel: str | None, fast: str) -> None:
    """Refuse attention kernels that the fast path cannot run on its cache.

    Args:
        kernel: transformers' name of the kernel that a model runs.
        fast: the mode that was asked for.

    Raises:
        ValueError: `kernel` is not "sdpa".
    """
    if kernel != "sdpa":
        raise ValueError(
            f"fast={fast!r} works with attention kernel 'sdpa', but this model runs {kernel!r}: leave one of them out."
        )
