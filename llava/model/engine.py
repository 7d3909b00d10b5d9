"""Prefill and decode without the cost of a general-purpose loop: same greedy tokens as `generate`, less time per token.

transformers' loop lets the cache grow, so every step allocates, launches each kernel from Python, and needs a mask
against padding. Here memory stays where it is (`kv_cache`), so a step can be a CUDA graph; prompts need no mask; and
what several prompts begin with, an image above all, goes through the language model once. VisionZip makes all images of
a size equally long, so few graphs serve every request.

Shapes: B rows, T new tokens of the longest row, C channels, V vocabulary, W slots of the cache that are looked at.
"""

import copy
import logging
import weakref
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llava.model.anyres import VisionFeatures
from llava.model.finite import NotFinite, are_finite
from llava.model.graphs import Graphs
from llava.model.kv_cache import Extension, KVCache, cache_bytes, execution_device
from visionzip_patch.compat import CACHE
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

SPARE = 128  # new tokens that a cache has room for from the start; longer answers make it grow
GRAPHED_TOKENS = 4096  # above, the device is busy long enough for the host to keep up without graphs
GRAPHED_CROPS = 10
KEPT_BYTES = 4 * 2**30  # of caches for requests to come; a larger one is freed at once, and gets no graphs

SUPPORTED = {  # fields of a GenerationConfig that `answer` obeys; the others must be at their defaults
    *("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id"),
    *("use_cache", "bos_token_id", "transformers_version", "_from_model_config"),
}

NEUTRAL = {  # values of other fields that change no answer; so do None, False and what is empty
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("guidance_scale", "typical_p"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "diversity_penalty", "penalty_alpha"), 0.0),
    **{"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4},
    **{"assistant_lookbehind": 10, "target_lookbehind": 10},
}
OF_BEAMS = {"early_stopping", "length_penalty", "low_memory"}  # nobody reads these where there is one beam
OF_SAMPLES = {"typical_p", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff"}  # nor these without do_sample


class Engine:
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

    def __init__(self, model: nn.Module, mode: str = "static"):
        if mode != "static" and len({parameter.device for parameter in model.parameters()}) > 1:
            warn_once(logger, "fast=%r needs a model on one device; this one is on several: 'static' it is.", mode)
            mode = "static"
        if mode == "graphs" and next(model.parameters()).device.type != "cuda":
            warn_once(logger, "fast='graphs': there are no CUDA graphs without a GPU; steps run as they are.")
        self._model, self.mode = weakref.ref(model), mode
        self.times: list[float] = []
        self.tower_graphs = Graphs(mode, self.times)
        self.caches: list[tuple[KVCache, Graphs]] = []  # free ones, the last used last
        self.weights = None

    def refresh(self) -> None:
        """Look what has become of the model since the last call: graphs and memory may be of no use any more.

        Raises:
            ValueError: its attention kernel is not SDPA.
        """
        require_sdpa(self.model.config._attn_implementation, self.mode)
        weight = self.model.lm_head.weight
        weights = (weight.device, weight.dtype, weight.data_ptr())
        if weights != self.weights:
            self.clear()
        self.weights = weights

    @property
    def model(self) -> nn.Module:
        return self._model()

    @property
    def decoder(self) -> nn.Module:
        return self.model.get_model()

    @property
    def is_static(self) -> bool:
        """Whether shapes are free, because nothing is prepared for each."""
        return self.mode == "static"

    # Vision

    @torch.inference_mode()
    def image_features(self, images: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]] | None) -> list[Tensor]:
        """As `model.image_features`, with the tower as a graph where crops are few."""
        is_eager = self.is_static or self.model.has_changed_encoding()
        if is_eager or len(images) == 0 or not all(isinstance(image, Tensor) for image in images):
            return self.model.image_features(images, image_sizes)
        tower = self.model.get_vision_tower()
        crops = [image if image.ndim == 4 else image[None] for image in images]
        found: dict[int, VisionFeatures] = {}
        for count in dict.fromkeys(map(len, crops)):  # a budget per image depends on its number of crops
            alike = [i for i, image in enumerate(crops) if len(image) == count]
            pixels = torch.cat([crops[i].to(tower.device, tower.dtype) for i in alike])
            encode = partial(tower.features, crops=count)
            key = (tuple(pixels.shape), count, repr(tower.reducer))
            features = self.tower_graphs.run(key, encode, pixels) if len(pixels) <= GRAPHED_CROPS else encode(pixels)
            tokens = features.tokens.clone().split(count)
            places = [None] * len(alike) if features.position is None else features.position.clone().split(count)
            found |= {i: VisionFeatures(t, p, features.side) for i, t, p in zip(alike, tokens, places, strict=True)}
        described = [found[i] for i in range(len(crops))]
        if isinstance(images, Tensor) and images.ndim == 4:  # crops by themselves: there is nothing to pack
            return list(self.model._project(torch.cat([features.tokens for features in described])))
        return self.model.image_features(described, image_sizes)

    # Language model

    def open_cache(self, rows: int, slots: int) -> "Sequences":
        """B empty rows of at least `slots` slots. `close` it, and its memory and graphs serve the next."""
        slots = slots if self.is_static else bucket(slots)
        fitting = [pair for pair in self.caches if pair[0].rows == rows and pair[0].slots >= slots]
        if fitting:
            cache, graphs = min(fitting, key=lambda pair: pair[0].slots)
            self.caches.remove((cache, graphs))
            cache.clear()
            return Sequences(self, cache, graphs)
        size = cache_bytes(self.decoder, rows, slots)
        self.trim(KEPT_BYTES - size)
        try:
            cache = KVCache(self.decoder, rows, slots)
        except torch.OutOfMemoryError:
            self.trim(0)
            cache = KVCache(self.decoder, rows, slots)
        return Sequences(self, cache, Graphs(self.mode if size <= KEPT_BYTES else "static", self.times))

    def keep(self, cache: KVCache, graphs: Graphs) -> None:
        """Have memory and graphs ready for the next request of that shape, as long as there is room."""
        self.caches.append((cache, graphs))
        self.trim(KEPT_BYTES)

    def trim(self, most: int) -> None:
        """Free memory that is kept, the longest unused first, until at most `most` bytes are."""
        while self.caches and sum(cache.nbytes for cache, _ in self.caches) > most:
            del self.caches[0]

    def clear(self) -> None:
        """Free the memory that is kept for requests to come, and forget all graphs."""
        self.caches.clear()
        self.tower_graphs.clear()

    def padding(self, rows: int, new: int) -> int:
        """Slots behind `new` tokens that are filled up, so that few lengths need a graph."""
        return bucket(new, 32) - new if self.is_graphed(rows, new) else 0

    def is_graphed(self, rows: int, new: int) -> bool:
        return not self.is_static and rows * new <= GRAPHED_TOKENS

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token embeddings, (T, C)."""
        table = self.decoder.embed_tokens
        return table(torch.tensor(ids, dtype=torch.long, device=execution_device(table)))

    def forward(self, cache: KVCache, window: int | None, masked: bool, embeds: Tensor, last: Tensor) -> Tensor:
        """Logits (B, V) after token `last[b]` of row b of `embeds`, (B, T, C), which go behind what the rows hold."""
        steps = torch.arange(embeds.shape[1], device=embeds.device)
        positions = cache.lengths[:, None] + steps  # (B, T)
        extension = Extension(cache, positions, window)
        rotary = self.decoder.rotary_emb(embeds, positions)
        masks = {}
        hidden = embeds
        for layer in self.decoder.layers:
            sliding = sliding_window(self.decoder, layer)
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
        rows = torch.arange(len(last), device=hidden.device)
        hidden = self.decoder.norm(hidden[rows, last.to(hidden.device)])  # (B, C)
        return self.model.lm_head(hidden)

    def forward_ids(self, cache: KVCache, window: int, masked: bool, ids: Tensor) -> Tensor:
        """One more token per row, (B,) -> (B, V)."""
        embeds = self.decoder.embed_tokens(ids[:, None])
        return self.forward(cache, window, masked, embeds, torch.zeros_like(ids))

    def generate(
        self,
        embeds: Tensor,
        counts: Sequence[int],
        config: GenerationConfig,
        streamer=None,
        begin_with: tuple["Sequences", Sequence[int]] | None = None,
    ) -> Tensor:
        """Answer B prompts: embeddings (B, T, C), of which row b has `counts[b]`, padded on the right -> ids (B, new).

        Args:
            config: from `configure`.
            streamer: gets the ids as they come.
            begin_with: sequences, and which of them each prompt goes on from.
        """
        rows, counts = len(counts), list(counts)
        source, begins = begin_with or (None, [])
        held = max((source.cache.counts[row] for row in begins), default=0)
        limit = new_tokens(config, held + max(counts))
        if not self.is_static:  # few batch sizes, so few graphs: copies of the first row, which nobody reads
            copies = (1 << (rows - 1).bit_length()) - rows
            embeds = torch.cat([embeds, embeds[:1].expand(copies, -1, -1)])
            counts, begins = counts + counts[:1] * copies, [*begins, *begins[:1] * copies]
        new = embeds.shape[1] + self.padding(*embeds.shape[:2]) + min(limit, SPARE)
        with torch.inference_mode(), self.open_cache(len(counts), held + new) as sequences:
            if source:
                sequences.begin_with(source, begins)
            found = sequences.answer(sequences.extend(embeds, counts), config, limit, rows, streamer)
        return found.clone()  # outside of inference mode, for callers who write to it


class Sequences:
    """B token sequences in a cache, to be made longer. At the end of a `with` block the engine has the memory back."""

    def __init__(self, engine: Engine, cache: KVCache, graphs: Graphs):
        self.engine, self.cache, self.graphs, self.is_open = engine, cache, graphs, True
        self.sliding = min_sliding_window(engine.decoder)  # of the layer that looks back least; None: all see all

    def __enter__(self):
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.close()
        self.is_open = False  # after an error nobody knows what the memory holds

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.engine.keep(self.cache, self.graphs)

    def begin_with(self, source: "Sequences", rows: Sequence[int]) -> None:
        """Let row b begin as row `rows[b]` of `source`."""
        self.reserve(source.cache.longest)
        self.cache.copy_rows(source.cache, rows)

    def reserve(self, slots: int) -> None:
        if slots > self.cache.slots:
            self.graphs.clear()
            self.cache.reserve(bucket(max(slots, 2 * self.cache.slots)))

    @torch.inference_mode()
    def extend(self, embeds: Tensor, counts: Sequence[int]) -> Tensor:
        """Append `counts[b]` tokens to row b, from `embeds` (B, T, C), padded on the right. Returns logits (B, V)."""
        cache, engine = self.cache, self.engine
        rows, new, _ = embeds.shape
        is_graphed, padding = engine.is_graphed(rows, new), engine.padding(rows, new)
        if padding:
            embeds, new = nn.functional.pad(embeds, (0, 0, 0, padding)), new + padding
        self.reserve(cache.longest + new)
        window = cache.longest + new if cache.longest else None
        if window is None and self.sliding is not None and new > self.sliding:
            window = new
        if window is not None and is_graphed:
            window = min(bucket(window), cache.slots)
        forward = partial(engine.forward, cache, window, window is not None)
        last = torch.tensor(counts, device=embeds.device) - 1
        key = ("extend", tuple(embeds.shape), window)
        logits = self.graphs.run(key, forward, embeds, last) if is_graphed else forward(embeds, last)
        cache.set_counts([old + more for old, more in zip(cache.counts, counts, strict=True)])
        return logits

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row, (B,). Returns logits (B, V), which the next step overwrites."""
        cache, engine = self.cache, self.engine
        self.reserve(cache.longest + 1)
        window = cache.longest + 1
        masked = not engine.is_static or not cache.is_even or (self.sliding is not None and window > self.sliding)
        if not engine.is_static:
            window = min(bucket(window), cache.slots)
        logits = self.graphs.run(("step", window), partial(engine.forward_ids, cache, window, masked), ids)
        cache.advance()
        return logits

    def tokens(self, logits: Tensor, config: GenerationConfig, limit: int, rows: int) -> Iterator[Tensor]:
        """Up to `limit` new tokens of the first `rows` rows, (rows,) each, until all have ended.

        The last token that is handed out is not in the cache.

        Raises:
            NotFinite: the logits of a row are NaN or infinite; no token is handed out for them.
        """
        ends = torch.tensor(end_tokens(config), dtype=torch.long, device=logits.device)
        pad = config.pad_token_id if config.pad_token_id is not None else (end_tokens(config) or [0])[0]
        ended = torch.zeros(rows, dtype=torch.bool, device=logits.device)
        for count in range(1, limit + 1):
            sound = are_finite(logits[:rows])
            ids = choose(logits, config)
            shown = ids[:rows].masked_fill(ended, pad)
            ended |= torch.isin(shown, ends)
            have_ended, are_sound = torch.stack([ended.all(), sound.all()]).tolist()  # the one sync of a step
            if not are_sound:
                raise NotFinite("The model's logits are NaN or infinite.")
            yield shown
            if count == limit or have_ended:
                return
            logits = self.step(ids)

    def answer(self, logits: Tensor, config: GenerationConfig, limit: int, rows: int, streamer=None) -> Tensor:
        """All of `tokens`, (rows, new); `streamer` gets them as they come."""
        found = []
        if streamer is not None:
            streamer.put(torch.empty(rows, 0, dtype=torch.long))  # in place of the prompt, as transformers does
        for ids in self.tokens(logits, config, limit, rows):
            found.append(ids)
            if streamer is not None:
                streamer.put(ids.cpu())
        if streamer is not None:
            streamer.end()
        return torch.stack(found, dim=1)


def require_sdpa(kernel: str, fast: str) -> None:
    if kernel != "sdpa":
        raise ValueError(
            f"fast={fast!r} works with attention kernel 'sdpa', but this model runs {kernel!r}: leave one of them out."
        )


def choose(logits: Tensor, config: GenerationConfig) -> Tensor:
    """The next token of each row: (B, V) -> (B,)."""
    if not config.do_sample:
        return logits.argmax(-1)
    scores = logits.float().nan_to_num()  # sampling from NaN stops a GPU for good
    if config.temperature not in (None, 1.0):
        scores = TemperatureLogitsWarper(config.temperature)(None, scores)
    if config.top_k:
        scores = TopKLogitsWarper(config.top_k)(None, scores)
    if config.top_p not in (None, 1.0):
        scores = TopPLogitsWarper(config.top_p)(None, scores)
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1)


def configure(model: nn.Module, kwargs: dict) -> tuple[GenerationConfig, set[str]]:
    """The model's generation config with `kwargs` in it, and the names of what asks for more than `Engine` can do."""
    config = copy.deepcopy(kwargs.get("generation_config")) or GenerationConfig()
    config.update(**model.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("generation_config", "streamer")}
    unknown = config.update(**kwargs)
    config.do_sample = bool(config.do_sample)
    for name, default in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0)):
        if name not in kwargs and getattr(config, name) is None:
            setattr(config, name, default)
    asked = {name for name, value in config.to_diff_dict().items() if not is_neutral(name, value)} - SUPPORTED
    asked -= OF_BEAMS if config.num_beams in (None, 1) else set()
    asked -= OF_SAMPLES if not config.do_sample else set()
    asked |= {name for name, value in unknown.items() if not is_neutral(name, value)}
    return config, asked


def is_neutral(name: str, value) -> bool:
    """Whether a setting of generation changes nothing."""
    return value is None or value is False or value in ([], {}, ()) or (name in NEUTRAL and value == NEUTRAL[name])


def new_tokens(config: GenerationConfig, prompt: int) -> int:
    """How many tokens an answer may have, as transformers counts where prompts are embeddings."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return 20
    if config.max_length <= prompt:
        raise ValueError(
            f"max_length={config.max_length} counts the prompt, and the longest has {prompt} tokens: raise it, or pass "
            f"max_new_tokens."
        )
    return config.max_length - prompt


def end_tokens(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def sliding_window(decoder: nn.Module, layer: nn.Module) -> int | None:
    """How far back a layer looks: Qwen's differ, Mistral's is one for all, in the config."""
    return getattr(layer.self_attn, "sliding_window", getattr(decoder.config, "sliding_window", None))


def min_sliding_window(decoder: nn.Module) -> int | None:
    windows = [sliding_window(decoder, layer) for layer in decoder.layers]
    return min((window for window in windows if window is not None), default=None)


def bucket(length: int, step: int = 128) -> int:
    """The next of few lengths: multiples of `step`, and of eight times as much where that adds little."""
    step = step if length <= 8 * step else 8 * step
    return -(-length // step) * step
