"""Token sequences in a cache, made longer by a prompt or by one token at a time.

Shapes: B rows, T new tokens of the longest row, C channels, V vocabulary, W slots of the cache that are looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from llava.model.finite import NotFinite, are_finite
from llava.model.graphs import Graphs
from llava.model.kv_cache import KVCache
from llava.model.runner import Runner, bucket, least_sliding_window
from llava.model.sampling import choose, end_tokens, pad_token


class Sequences:
    """B token sequences in a cache, to be made longer. At the end of a `with` block the memory is given back.

    Args:
        runner: of the language model that the sequences are for.
        cache: their keys and values.
        graphs: of calls on this cache.
        give_back: gets `cache` and `graphs` in the end, for sequences to come; not after an error.
    """

    def __init__(self, runner: Runner, cache: KVCache, graphs: Graphs, give_back: Callable[[KVCache, Graphs], object]):
        self.runner, self.cache, self.graphs, self.give_back, self.is_open = runner, cache, graphs, give_back, True
        self.sliding = least_sliding_window(runner.decoder)

    def __enter__(self):
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.close()
        self.is_open = False  # after an error nobody knows what the memory holds

    def close(self) -> None:
        """Give the memory back. The sequences are of no use afterwards."""
        if self.is_open:
            self.is_open = False
            self.give_back(self.cache, self.graphs)

    def begin_with(self, source: "Sequences", rows: Sequence[int]) -> None:
        """Copy to each row b what row `rows[b]` of `source` holds, to go on from there."""
        self.reserve(source.cache.longest)
        self.cache.copy_rows(source.cache, rows)

    def reserve(self, slots: int) -> None:
        """Make room for at least `slots` tokens per row; where memory moves, graphs that read it are forgotten."""
        if slots > self.cache.slots:
            self.graphs.clear()
            self.cache.reserve(bucket(max(slots, 2 * self.cache.slots)))

    @torch.inference_mode()
    def extend(self, embeds: Tensor, counts: Sequence[int]) -> Tensor:
        """Append `counts[b]` tokens to row b.

        Args:
            embeds: (B, T, C), padded on the right.
            counts: how many of the T are tokens, for each row.

        Returns:
            Logits after the last token of each row, (B, V).
        """
        cache, runner = self.cache, self.runner
        rows, new, _ = embeds.shape
        is_graphed, padding = runner.is_graphed(rows, new), runner.padding(rows, new)
        if padding:
            embeds, new = nn.functional.pad(embeds, (0, 0, 0, padding)), new + padding
        self.reserve(cache.longest + new)
        window = cache.longest + new if cache.longest else None
        if window is None and self.sliding is not None and new > self.sliding:
            window = new
        if window is not None and is_graphed:
            window = min(bucket(window), cache.slots)
        forward = partial(runner.forward, cache, window, window is not None)
        last = torch.tensor(counts, device=embeds.device) - 1
        key = ("extend", tuple(embeds.shape), window)
        logits = self.graphs.run(key, forward, embeds, last) if is_graphed else forward(embeds, last)
        cache.set_counts([old + more for old, more in zip(cache.counts, counts, strict=True)])
        return logits

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row, (B,). Returns the logits after it, (B, V), which the next step overwrites."""
        cache, runner = self.cache, self.runner
        self.reserve(cache.longest + 1)
        window = cache.longest + 1
        masked = not runner.is_static or not cache.is_even or (self.sliding is not None and window > self.sliding)
        if not runner.is_static:
            window = min(bucket(window), cache.slots)
        logits = self.graphs.run(("step", window), partial(runner.forward_ids, cache, window, masked), ids)
        cache.advance()
        return logits

    def tokens(self, logits: Tensor, config: GenerationConfig, limit: int, rows: int) -> Iterator[Tensor]:
        """Yield new tokens of the first rows, (rows,) at a time, until all have ended.

        The last token that is handed out is not in the cache.

        Args:
            logits: after what the rows hold, (B, V).
            config: from `sampling.configure`.
            limit: yield at most so many times.
            rows: how many of the B rows count; the others are copies, for shapes that have a graph.

        Raises:
            NotFinite: the logits of a row are NaN or infinite; no token is handed out for them.
        """
        ends = torch.tensor(end_tokens(config), dtype=torch.long, device=logits.device)
        pad = pad_token(config)
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
        """Collect all of `tokens`: (rows, new). A `streamer` of transformers gets them as they come."""
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
