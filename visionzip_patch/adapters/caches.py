"""What a cache of keys and values holds, for callers who count by the rows that they gave.

It holds shortened rows, and remembers what they stand for, so a dialogue can go on from it. Knows no family of models.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from visionzip_patch.adapters.shortening import Family, Layout, Prompt, tokens_in
from visionzip_patch.compat import cache_in

MEMORY = "_visionzip_prompt"  # an attribute of a cache, so that a copy of it remembers too


def held_by(cache) -> int:
    """Count the tokens that a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def remember(cache, prompt: Prompt | None) -> None:
    """Let a cache, if there is one, remember the rows that have filled it, or nothing."""
    if prompt is not None and cache is not None:
        setattr(cache, MEMORY, prompt)
    elif hasattr(cache, MEMORY):
        delattr(cache, MEMORY)


@contextmanager
def forgotten(cache) -> Iterator[None]:
    """Let a cache remember nothing for the length of a block, in which rows are counted as it holds them."""
    memory = getattr(cache, MEMORY, None)
    remember(cache, None)
    try:
        yield
    finally:
        remember(cache, memory)


def recall(family: Family, given: dict) -> Layout | None:
    """Find the layout of what the cache of a call holds: what it remembers and tokens behind that.

    None where nothing needs to be known: it is empty, or neither it nor the call is about images.
    """
    cache, tokens = cache_in(given), tokens_in(given)
    memory = getattr(cache, MEMORY, None)
    if tokens is None or (memory is None and family.tokens(given) is None) or not held_by(cache):
        return None
    if memory is None:
        return Layout.same(len(tokens), held_by(cache), tokens.device)
    layout = memory.layout.to(tokens.device).repeat(len(tokens))
    if held_by(cache) < layout.slots:
        layout = layout.cut(held_by(cache))
    return layout.then(Layout.same(len(tokens), held_by(cache) - layout.slots, tokens.device))


def check_continuation(family: Family, given: dict, past: Layout | None) -> None:
    """Refuse ids of `generate` that do not begin with what the cache holds."""
    tokens, cache = tokens_in(given), cache_in(given)
    if tokens is None:
        return
    memory, held = getattr(cache, MEMORY, None), held_by(cache)
    again = "Crop it back to what is still the same, or begin a new one with pixel_values."
    if held and memory is None and family.is_placeholder(tokens[:, :held]).any():
        raise ValueError(
            f"input_ids hold image placeholders in what a cache of {held} tokens is said to hold, but it does not know "
            f"which of them VisionZip has left out: it was not filled by this zipped model, or by beams. Begin a new "
            f"one with pixel_values."
        )
    if past is None or memory is None:
        return
    if tokens.shape[1] <= past.length:
        raise ValueError(f"The cache holds {past.length} ids of each row, input_ids only {tokens.shape[1]}. {again}")
    if memory.ids is not None and tokens.ndim == 2:
        count = min(past.length, memory.ids.shape[1])
        before = memory.ids[:, :count].repeat_interleave(len(tokens) // len(memory.ids), dim=0).to(tokens.device)
        differ = (tokens[:, :count] != before).any(0).nonzero()
        if len(differ):
            raise ValueError(
                f"input_ids differ from what the cache holds, {past.length} ids of each row, at position "
                f"{int(differ[0])} and {len(differ) - 1} more. {again}"
            )
    rest = slice(past.length, memory.layout.length)
    if family.tokens(given) is None and family.is_placeholder(tokens[:, rest]).any():
        raise ValueError(
            f"The cache was cut back to {held} tokens, before the end of its images, and pixel_values are missing: "
            f"pass those of all placeholders behind position {past.length - 1}."
        )
