"""Shorten prompts to the placeholders that are needed, and lead results back to the rows that a caller gave.

It knows no family of models: a `Family`, an adapter, says how many placeholders and tokens an image has.

Shapes: B rows, T positions of a row as it was given, S slots of a row as the language model gets it.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label that a loss of transformers skips
BY_PACK = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")  # of flash attention's packs


class Family(Protocol):
    """What a family of models knows of a call: an adapter. `given` are the call's arguments by name."""

    pad_token_id: int  # what rows are filled up with
    by_image: tuple[str, ...]  # names of arguments that images index, not rows

    def tokens(self, given: dict) -> list[int] | None:
        """Count the tokens that each image of a call has left; None for a call without images."""
        ...

    def placeholders(self, given: dict) -> list[int]:
        """Count the placeholders that the processor writes for each image of a call."""
        ...

    def is_placeholder(self, tokens: Tensor) -> Tensor:
        """Tell which of ids (B, T), or of embeddings (B, T, C), are placeholders: (B, T) bool."""
        ...


class Layout(NamedTuple):
    """Where the slots of shortened rows stood in the rows as they were given."""

    origin: Tensor  # (B, S), ascending; -1 where a slot is padding
    lost: Tensor  # (B, T + 1): how many placeholders are gone before a position

    @classmethod
    def same(cls, rows: int, length: int, device) -> "Layout":
        """Make the layout of rows of which nothing was taken away."""
        steps = torch.arange(length + 1, device=device).expand(rows, -1)
        return cls(steps[:, :-1], torch.zeros_like(steps))

    @property
    def length(self) -> int:
        """Count the positions of a row: T."""
        return self.lost.shape[1] - 1

    @property
    def slots(self) -> int:
        """Count the slots of a row: S."""
        return self.origin.shape[1]

    @property
    def held(self) -> Tensor:
        """Tell which slots are more than padding: (B, S)."""
        return self.origin >= 0

    def then(self, other: "Layout") -> "Layout":
        """Make the layout of these rows with those of `other` behind them."""
        behind = torch.where(other.held, other.origin + self.length, -1)
        lost = torch.cat([self.lost[:, :-1], self.lost[:, -1:] + other.lost], dim=1)
        return Layout(torch.cat([self.origin, behind], dim=1), lost)

    def cut(self, slots: int) -> "Layout":
        """Make the layout of the first `slots` slots. Raises ValueError if there the rows are of different lengths."""
        lengths = self.origin[:, slots - 1] + 1
        if (lengths != lengths[0]).any():
            raise ValueError(
                f"The cache was cut back to {slots} of {self.slots} tokens; there its rows are {lengths.tolist()} ids "
                f"long, because VisionZip made their images shorter. Cut it back behind all images, or begin a new one."
            )
        return Layout(self.origin[:, :slots], self.lost[:, : lengths[0] + 1])

    def to(self, device) -> "Layout":
        """Return the same layout on a device."""
        return Layout(self.origin.to(device), self.lost.to(device))

    def repeat(self, rows: int) -> "Layout":
        """Make the layout of a batch in which each row comes several times in succession, `rows` in all."""
        if rows % len(self.origin):
            raise ValueError(f"The cache was filled by {len(self.origin)} prompts, but {rows} go on from it.")
        return Layout(*(part.repeat_interleave(rows // len(self.origin), dim=0) for part in self))

    def gather(self, values: Tensor, fill) -> Tensor:
        """Gather what the slots hold: (B, T, ...) -> (B, S, ...), `fill` in padding."""
        shape = (*self.origin.shape, *[1] * (values.ndim - 2))
        index = self.origin.clamp(min=0).view(shape).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index).masked_fill(~self.held.view(shape), fill)

    @property
    def slot(self) -> Tensor:
        """Find the slot of each position, (B, T); S where there is none."""
        slots = torch.arange(self.slots, device=self.origin.device).expand(len(self.origin), -1)
        slot = torch.full((len(self.origin), self.length + 1), self.slots, device=self.origin.device)
        place = torch.where(self.held, self.origin, self.length)  # padding goes behind the last position
        return slot.scatter_reduce(1, place, slots, "amax", include_self=False)[:, :-1]  # of several slots the last

    def spread(self, values: Tensor, dim: int = 1) -> Tensor:
        """Go the way back along `dim`: S entries -> T entries, 0 at positions that no slot holds."""
        return pick(values, self.slot, dim)

    def positions(self, given: Tensor) -> Tensor:
        """Make position_ids (B, S) of the slots from those of the rows, (B, T): what is gone does not count.

        A row may hold several prompts, each counted from its own start.
        """
        given = given.expand(len(self.origin), -1)
        begins = F.pad(given[:, 1:] <= given[:, :-1], (1, 0), value=True)
        start = torch.where(begins, torch.arange(self.length, device=given.device), 0).cummax(1).values
        moved = given - (self.lost[:, :-1] - self.lost.gather(1, start))
        steps = torch.arange(self.slots, device=given.device)
        is_next = F.pad(self.origin[:, 1:] != self.origin[:, :-1], (1, 0), value=True)
        own = steps - torch.where(is_next, steps, 0).cummax(1).values  # 0, but where several slots share a position
        return self.gather(moved, 0) + own.masked_fill(~self.held, 0)


def pick(values: Tensor, entries: Tensor, dim: int = 1) -> Tensor:
    """Gather the `entries`, (B, n), along `dim`, other ones in each row; one past the last is 0."""
    dim %= values.ndim
    shape = [size if i in (0, dim) else 1 for i, size in enumerate(values.shape)]
    shape[dim] = entries.shape[1]
    sizes = [entries.shape[1] if i == dim else size for i, size in enumerate(values.shape)]
    padded = F.pad(values, [0, 0] * (values.ndim - 1 - dim) + [0, 1])
    return padded.gather(dim, entries.to(values.device).view(shape).expand(sizes))


class Prompt(NamedTuple):
    """What a cache remembers of the rows that filled it."""

    layout: Layout
    ids: Tensor | None  # (B, T) as they were given, as far as they are known


class Shortened(NamedTuple):
    """A call with fewer placeholders."""

    arguments: dict
    whole: Layout  # of all rows, with what a cache holds already
    new: Layout  # of what the call brings


def shorten(
    family: Family, given: dict, past: Layout | None = None, *, whole: bool = False, side: str | None = None
) -> Shortened | None:
    """Leave one placeholder for each token that an image has left; None if the arguments fit as they are.

    Args:
        family: of the model.
        given: arguments by name. What has the length of the rows is shortened with them, whatever its name.
        past: layout of what a cache holds.
        whole: ids, or embeddings, begin with those that the cache holds, as they do in `generate`.
        side: where rows are padded, if not where they were before.

    Raises:
        ValueError: the placeholders are not those that the processor writes for these images, shapes of arguments do
            not fit, or one counts tokens in another way than by rows.
    """
    tokens = tokens_in(given)
    if tokens is None:
        return None
    fewer = family.tokens(given)
    if fewer is None and past is None:
        return None
    count = tokens.shape[1] - (past.length if past and whole else 0)  # of the new ids
    is_image = family.is_placeholder(tokens[:, tokens.shape[1] - count :])
    fits = fewer is None or int(is_image.sum()) == sum(fewer)
    if fits and past is None:
        return None
    mask = given.get("attention_mask")
    if mask is not None:
        check_mask(mask, tokens, count, past, fits)
    if fewer is None or fits:
        new = Layout.same(len(tokens), count, tokens.device)
    else:
        refuse_packs(given)
        lengths = family.placeholders(given)
        if past and int(is_image.sum()) < sum(lengths):
            raise ValueError(
                f"The cache holds earlier images, and the new ids {int(is_image.sum())} placeholders, but "
                f"{len(lengths)} images are given, which take {lengths}: pass those of new placeholders only."
            )
        own = None if mask is None else mask[:, mask.shape[1] - count :]
        new = layout_of(is_image, own, lengths, fewer, side)
    layout = past.then(new) if past else new
    return Shortened({**given, **shorten_arguments(family, given, layout, new)}, layout, new)


def check_mask(mask: Tensor, tokens: Tensor, count: int, past: Layout | None, fits: bool) -> None:
    """Refuse an attention mask of another length than the rows.

    Args:
        mask: should be (B, n), with one of three n: the new ids, all ids as they were given, or, where the new ones
            stay as they are, what the cache holds and the new ones.
        tokens: ids (B, T) or embeddings (B, T, C).
        count: of the new ids.
        past: layout of what a cache holds.
        fits: whether the new ids stay as they are.
    """
    lengths = [count]
    if past:
        lengths.append(past.length + count)
    if past and fits:
        lengths.append(past.slots + count)
    if mask.ndim != 2 or mask.shape[1] not in lengths:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} and input_ids {tuple(tokens.shape[:2])}: shapes must be the same."
        )


def shorten_arguments(family: Family, given: dict, whole: Layout, new: Layout) -> dict:
    """Shorten the arguments that have the length of the rows, and make a mask if rows need one now.

    Args:
        family: of the model.
        given: all arguments by name.
        whole: layout of all rows, with what a cache holds already.
        new: layout of what the call brings.

    Returns:
        Arguments to take the place of those that were given.

    Raises:
        ValueError: rows need a mask, but hold several prompts each.
    """
    rows, short = len(new.origin), {}
    before = whole.lost[:, [whole.length - new.length]]  # placeholders that are gone in what the cache holds
    for name, value in given.items():
        if name in family.by_image or not isinstance(value, Tensor) or value.ndim < 2:
            continue
        fill = IGNORED if name.endswith("labels") else family.pad_token_id if name == "input_ids" else 0
        for layout, gone in ((whole, 0), (new, before)):
            if name == "position_ids" and value.shape[1] == layout.length:
                short[name] = layout.to(value.device).positions(value) - gone
            elif value.shape[:2] == (rows, layout.length):
                short[name] = layout.to(value.device).gather(value, fill)
            else:
                continue
            break
    if given.get("attention_mask") is None and not new.held.all():
        short["attention_mask"] = whole.held.long()
        positions = given.get("position_ids")
        if positions is not None and (positions.diff() <= 0).any():
            raise ValueError("position_ids begin anew inside of rows: VisionZip takes such rows one at a time.")
    return short


def tokens_in(given: dict) -> Tensor | None:
    """Find ids (B, T) or embeddings (B, T, C) in a call, whichever there are."""
    return given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]


def refuse_packs(given: dict) -> None:
    """Refuse arguments that count the tokens of packed prompts."""
    if found := [name for name in BY_PACK if given.get(name) is not None]:
        raise ValueError(
            f"{', '.join(found)} count the tokens of whole images, of which VisionZip leaves fewer: pad the prompts "
            f"to a batch with an attention_mask instead."
        )


def layout_of(is_image: Tensor, mask: Tensor | None, lengths: list[int], fewer: list[int], side: str | None) -> Layout:
    """Make the layout of rows whose images have `fewer` tokens than placeholders, of which the last stay.

    Args:
        is_image: where the placeholders are, (B, T).
        mask: (B, T); what it hides is left out.
        lengths: placeholders of each image.
        fewer: tokens of each image.
        side: where rows are padded; by default where they were before.
    """
    place = is_image.cpu().flatten().nonzero().squeeze(1)  # rows one after the other
    slots = torch.ones(is_image.numel(), dtype=torch.long) if mask is None else mask.cpu().long().flatten().clone()
    for run, count in zip(placeholder_runs(place, lengths), fewer, strict=True):
        slots[run] = 0
        slots[run[-count:]] = 1
        slots[run[0]] += max(0, count - len(run))
    lost = torch.zeros(is_image.shape[0], is_image.shape[1] + 1, dtype=torch.long)
    lost[:, 1:] = (is_image.cpu().flatten() * (1 - slots)).view_as(is_image).cumsum(1)
    side = side or ("right" if mask is None or mask[:, 0].all() else "left")
    rows = [torch.arange(len(row)).repeat_interleave(row) for row in slots.view_as(is_image)]
    index = pad_sequence(rows, batch_first=True, padding_value=-1, padding_side=side)
    return Layout(index.to(is_image.device), lost.to(is_image.device))


def placeholder_runs(place: Tensor, lengths: list[int]) -> list[Tensor]:
    """Split the positions of all placeholders into the runs of the images, of `lengths` each.

    Raises:
        ValueError: there are more or fewer placeholders, or those of an image are not in one run.
    """
    runs = place.split(lengths) if len(place) == sum(lengths) else []
    if not runs or any(run[-1] - run[0] >= len(run) for run in runs):
        raise ValueError(
            f"The prompts hold {len(place)} image placeholders, but {len(lengths)} images take {lengths}, each in one "
            f"run. Pass what the model's processor returns; VisionZip makes them fewer by itself."
        )
    return list(runs)
