"""`forward` and `generate` of transformers' models, for callers who count by the rows that they gave.

Rows are shortened on the way in. What comes out is at the positions of those given: logits, hidden states, attention,
sequences; and so are the ids that streamers, stopping criteria and logits processors see. Knows no family of models.

Shapes as in `shortening`.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from visionzip_patch.adapters.caches import check_continuation, forgotten, recall, remember
from visionzip_patch.adapters.shortening import Family, Layout, Prompt, pick, shorten, tokens_in
from visionzip_patch.compat import cache_in, with_one_cache

# transformers' own criteria and processors that count from the prompt. `generate` looks at their types, so a copy with
# another number takes their place; those that callers wrote get the ids as they were given.
COUNTED_BY = {
    "MaxLengthCriteria": "max_length",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "prompt_length_to_skip",
    "ForcedEOSTokenLogitsProcessor": "max_length",
    "SuppressTokensAtBeginLogitsProcessor": "begin_index",
    "ExponentialDecayLengthPenalty": "regulation_start",
    "RepetitionPenaltyLogitsProcessor": "prompt_ignore_length",
}


def run_forward(family: Family, model, original: Callable, given: dict):
    """Call `original(**given)` on shortened rows; logits, hidden states, attention are at the positions of those given.

    They are 0 at placeholders that are gone, and at padding.
    """
    given = with_one_cache(given)
    past = recall(family, given)
    call = shorten(family, given, past)
    if call is None:
        return original(**given)
    arguments, slot, kept = {**call.arguments, "return_dict": True}, call.new.slot, given.get("logits_to_keep")
    if isinstance(kept, Tensor) or kept:
        slot = slot[:, kept if isinstance(kept, Tensor) else slice(-kept, None)]
        few = slot[slot < call.new.slots].unique()
        slot = torch.where(slot < call.new.slots, torch.searchsorted(few, slot.contiguous()), len(few))
        arguments["logits_to_keep"] = few
    with forgotten(cache_in(given)):
        output = original(**arguments)
    remember(cache_in(output), Prompt(call.whole, None if past else given.get("input_ids")))
    for name in ("logits", "last_hidden_state"):
        if output.get(name) is not None:
            output[name] = pick(output[name], slot)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(call.new.spread(layer) for layer in output["hidden_states"])
    if output.get("attentions") is not None:
        output["attentions"] = tuple(spread_attention(layer, call.new, call.whole) for layer in output["attentions"])
    as_dict = given.get("return_dict")
    return output if (model.config.return_dict if as_dict is None else as_dict) else output.to_tuple()


def run_generate(family: Family, model, original: Callable, given: dict):
    """Call `original(**given)` on shortened rows; what comes out, and what is called, counts by those given.

    Raises:
        ValueError: the ids go on from a cache that does not hold what they begin with, or of which that is unknown.
    """
    given = with_one_cache(given)
    if given.get("inputs") is not None:
        given["input_ids"] = given.pop("inputs")
    tokens, cache, whole = tokens_in(given), cache_in(given), is_whole(given)
    past = recall(family, given)
    if whole and cache is not None:
        check_continuation(family, given, past)
    call = shorten(family, given, past, whole=whole, side="left")
    if call is None:
        return original(**given)

    ids, short_tokens = given.get("input_ids"), tokens_in(call.arguments)
    assert tokens is not None, "a call without tokens is not shortened"
    assert short_tokens is not None
    gone = tokens.shape[1] - short_tokens.shape[1]  # ids of a row
    settings = settings_of(model, given)
    is_beam_search = (settings.get("num_beams") or 1) > 1
    prompt = None if ids is None else OriginalPrompt(ids, gone)
    short = call.arguments | moved_limits(given, settings, tokens.shape[1], gone)
    if prompt:
        short |= callbacks(given, prompt, copies=1 if is_beam_search else settings.get("num_return_sequences") or 1)

    with forgotten(cache):
        output = original(**short)
    sequences = output if isinstance(output, Tensor) else output.sequences
    if prompt:
        sequences = prompt.lengthen(sequences)
    known = sequences if whole and prompt else None
    memory = None if is_beam_search else Prompt(call.whole.repeat(len(sequences)), known)  # beams change places
    remember(cache if isinstance(output, Tensor) else cache_in(output), memory)
    return give_back(output, sequences, call.new, call.whole)


def is_whole(given: dict) -> bool:
    """Tell whether a call brings all tokens of its rows, and not only those after what a cache holds."""
    tokens, mask = tokens_in(given), given.get("attention_mask")
    return tokens is not None and (mask is None or mask.shape[1] == tokens.shape[1])


def give_back(output, sequences: Tensor, new: Layout, whole: Layout):
    """Put sequences with the prompt as it was given into what `generate` returns, and spread the rest of it."""
    if isinstance(output, Tensor):
        return sequences
    output.sequences = sequences
    return spread_steps(output, new, whole)


def settings_of(model, given: dict) -> dict:
    """Collect what holds for a call of `generate`: its arguments, else its `generation_config`, else the model's."""
    configs = [config for config in (model.generation_config, given.get("generation_config")) if config is not None]
    return {name: value for config in configs for name, value in config.to_dict().items() if value is not None} | given


def moved_limits(given: dict, settings: dict, length: int, gone: int) -> dict:
    """Move limits of the whole length, which count the prompt, as the prompt becomes shorter.

    Beside a limit on new tokens they do not hold, and stay.

    Args:
        given: arguments of `generate`.
        settings: what holds for the call, from `settings_of`.
        length: T, of the prompt as it was given.
        gone: how many ids of a row the short one lacks.

    Returns:
        Arguments to take the place of those that were given.
    """
    moved, own = {}, copy.copy(given.get("generation_config"))
    for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        limit = settings.get(name)
        if not limit or limit <= length or settings.get(instead) is not None:
            continue
        if own is None or given.get(name) is not None:
            moved[name] = limit - gone
        else:
            setattr(own, name, limit - gone)
            moved["generation_config"] = own
    return moved


class OriginalPrompt(NamedTuple):
    """A prompt as it was given, to be put in place of the short one."""

    ids: Tensor  # (B, T)
    gone: int  # how many ids of a row the short one lacks

    def lengthen(self, ids: Tensor) -> Tensor:
        """Put the prompt as it was given before ids that begin with the short one; it may have several rows in turn."""
        prompt = self.ids.repeat_interleave(len(ids) // len(self.ids), dim=0).to(ids.device)
        return torch.cat([prompt, ids[:, prompt.shape[1] - self.gone :]], dim=1)


class Streamer(BaseStreamer):
    """Hands on what `generate` puts, but first the prompt as it was given."""

    def __init__(self, streamer, prompt: OriginalPrompt):
        self.streamer, self.prompt = streamer, prompt

    def put(self, value: Tensor) -> None:
        """Hand on ids, the first time those of the prompt."""
        prompt, self.prompt = self.prompt, None
        self.streamer.put(prompt.lengthen(value) if prompt else value)

    def end(self) -> None:
        """Hand on that there are no more."""
        self.streamer.end()


def callbacks(arguments: dict, prompt: OriginalPrompt, copies: int) -> dict:
    """Wrap the arguments of `generate` that are called with ids, so that they see the prompt as it was given.

    Args:
        arguments: of `generate`, by name.
        prompt: as it was given.
        copies: how many rows in succession answer one prompt, as `prefix_allowed_tokens_fn` counts them.
    """

    def see(part):
        name = COUNTED_BY.get(type(part).__name__)
        if not type(part).__module__.startswith("transformers."):
            return lambda ids, *rest, **options: part(prompt.lengthen(ids), *rest, **options)
        if name is None or getattr(part, name) is None:
            return part
        part = copy.copy(part)
        setattr(part, name, getattr(part, name) - prompt.gone)
        return part

    found = {}
    for name in ("stopping_criteria", "logits_processor"):
        if arguments.get(name) is not None:
            found[name] = type(arguments[name])(see(part) for part in arguments[name])
    if (allowed := arguments.get("prefix_allowed_tokens_fn")) is not None:
        rows = [OriginalPrompt(row[None], prompt.gone) for row in prompt.ids]
        found["prefix_allowed_tokens_fn"] = lambda i, ids: allowed(i, rows[i // copies].lengthen(ids[None])[0])
    if arguments.get("streamer") is not None:
        found["streamer"] = Streamer(arguments["streamer"], prompt)
    return found


def spread_attention(attention: Tensor, new: Layout, whole: Layout) -> Tensor:
    """Spread (B, heads, queries, keys) to the positions of rows as they were given; queries may be the new slots."""
    rows, _, _, keys = attention.shape
    new, whole = new.repeat(rows), whole.repeat(rows)
    whole = whole.then(Layout.same(rows, max(0, keys - whole.slots), whole.origin.device))
    seen = Layout(whole.origin[:, whole.slots - keys :], whole.lost)  # a sliding window sees the last ones
    attention = seen.spread(attention, -1)
    return new.spread(attention, -2) if attention.shape[-2] == new.slots else attention


def spread_steps(output, new: Layout, whole: Layout):
    """Spread hidden states and attention of each step of `generate`; the first one's queries are the prompt's."""
    if output.get("hidden_states") is not None:
        first, *steps = output["hidden_states"]
        output["hidden_states"] = (tuple(new.repeat(len(layer)).spread(layer) for layer in first), *steps)
    if output.get("attentions") is not None:
        output["attentions"] = tuple(
            tuple(spread_attention(layer, new, whole) for layer in step) for step in output["attentions"]
        )
    return output
