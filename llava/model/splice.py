"""Put image features where the prompt says <image>. Pure; any number of tokens per image.

Shapes: B rows, T ids in a row, S slots in the longest spliced row, C channels, n_i tokens of the i-th image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


class Spliced(NamedTuple):
    """Rows of embeddings, text and images, padded to one length."""

    embeds: Tensor  # (B, S, C); zeros where padded
    mask: Tensor  # (B, S) bool: True where there is a token
    positions: Tensor  # (B, S) int64: 0, 1, 2, … over the tokens of a row; 0 where padded
    labels: Tensor | None  # (B, S) int64: IGNORE_INDEX on images and padding
    is_padded: bool  # whether any row is shorter than S
    cut: int  # tokens that the row cut most has lost to `max_length`
    lengths: list[int]  # tokens of each row


def splice(
    embed: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    features: Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    padding_side: str = "right",
    max_length: int | None = None,
) -> Spliced:
    """Replace each IMAGE_TOKEN_INDEX by the next image's features.

    A text token takes one slot, padding none, the i-th <image> `len(features[i])`. The plan is made on the CPU, then a
    single gather on the device builds all rows, so a batch costs as many kernels as one prompt.

    Args:
        embed: ids (N,) -> embeddings (N, C).
        input_ids: (B, T) on the CPU, with one IMAGE_TOKEN_INDEX per image; padding may be on either side.
        attention_mask: (B, T) on the CPU, 0 or False where padded.
        features: per image (n_i, C), in the order of the prompts.
        labels: (B, T), for training.
        device: of the embeddings, and of the result.
        padding_side: "right" or "left", of the result.
        max_length: cut longer rows off at the end.

    Raises:
        ValueError: the numbers of <image> tokens and of images differ; both are named.
    """
    ids, keep = input_ids, attention_mask.bool()
    is_image = (ids == IMAGE_TOKEN_INDEX) & keep  # (B, T)
    if (found := int(is_image.sum())) != len(features):
        raise ValueError(f"The prompts hold {found} <image> tokens but {len(features)} images were given.")

    # One long list to gather from: every text token, then every feature, then one zero row for padding.
    is_text = keep & ~is_image
    lengths = torch.tensor([len(f) for f in features], dtype=torch.long)
    texts, visuals = int(is_text.sum()), int(lengths.sum())
    slots = is_text.long().masked_scatter(is_image, lengths)  # (B, T) slots that each id takes
    first = torch.zeros_like(ids).masked_scatter(is_text, torch.arange(texts))
    first = first.masked_scatter(
        is_image, texts + lengths.cumsum(0) - lengths
    )  # (B, T) where its run begins in the list

    rows = [consecutive(first[b], slots[b])[:max_length] for b in range(len(ids))]
    index = torch.full((len(ids), max(map(len, rows))), texts + visuals)  # (B, S), all padding
    mask, positions = torch.zeros_like(index, dtype=torch.bool), torch.zeros_like(index)
    for b, row in enumerate(rows):
        start = index.shape[1] - len(row) if padding_side == "left" else 0
        place = slice(start, start + len(row))
        index[b, place], mask[b, place], positions[b, place] = row, True, torch.arange(len(row))

    index = index.to(device)
    text = embed(ids[is_text].to(device))  # (texts, C)
    source = torch.cat([text, *(f.to(text) for f in features), text.new_zeros(1, text.shape[1])])
    if labels is not None:
        of_text = labels.to(device).flatten()[is_text.flatten().nonzero().squeeze(1).to(device)]
        labels = torch.cat([of_text, of_text.new_full((visuals + 1,), IGNORE_INDEX)])[index]
    cut = int(slots.sum(1).max()) - index.shape[1]
    is_padded, lengths = not bool(mask.all()), [len(row) for row in rows]
    return Spliced(source[index], mask.to(device), positions.to(device), labels, is_padded, cut, lengths)


def consecutive(first: Tensor, slots: Tensor) -> Tensor:
    """List consecutive indices from `first[t]`, `slots[t]` of them, for each t: (T,), (T,) -> (sum of slots,)."""
    offset = torch.arange(int(slots.sum())) - (slots.cumsum(0) - slots).repeat_interleave(slots)
    return first.repeat_interleave(slots) + offset
