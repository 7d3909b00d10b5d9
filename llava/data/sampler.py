"""Batches of samples that are about equally long, and all with or all without images: little padding, little waiting.

Differs from LLaVA's sampler in two places: a generator that is given draws everything, where LLaVA draws the order
inside each modality from the global one; and samples that are all without images are ordered by their true length,
where LLaVA puts the shortest first, because their lengths are negative.
"""

import heapq
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Divide `indices` into `num_chunks` lists of equal count and, as far as a greedy choice can, equal total length.

    Each index goes to the list that is shortest so far and not full. If the counts cannot be equal, they are dealt out
    in turn.
    """
    if len(indices) % num_chunks:
        return [list(indices[i::num_chunks]) for i in range(num_chunks)]
    chunks = [[] for _ in range(num_chunks)]
    room = [(0, i) for i in range(num_chunks)]  # a heap of (total length, chunk), full ones left out
    for index in indices:
        total, i = heapq.heappop(room)
        chunks[i].append(index)
        if len(chunks[i]) < len(indices) // num_chunks:
            heapq.heappush(room, (total + lengths[index], i))
    return chunks


def get_length_grouped_indices(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Draw a random order in which every `batch_size` samples in a row are about equally long.

    Megabatches of `batch_size * world_size` samples are drawn; each is sorted, longest first, and dealt out so that all
    processes get as much. Without a generator torch's global one is used.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * world_size
    result = []
    for start in range(0, len(order), size):
        megabatch = sorted(order[start : start + size], key=lengths.__getitem__, reverse=True)
        for chunk in split_to_even_chunks(megabatch, lengths, world_size):
            result += chunk
    return result


def get_modality_length_grouped_indices(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """Draw an order as `get_length_grouped_indices` does, in megabatches of one modality each, in random order.

    Args:
        lengths: `modality_lengths` of the dataset: negative for samples without image.

    Returns:
        the order of all samples. The last megabatch of each modality may be incomplete: what the two hold comes at the
        end, in the order of the indices.
    """
    groups = [[i for i, length in enumerate(lengths) if (length > 0) is with_image] for with_image in (True, False)]
    if not all(groups):
        return get_length_grouped_indices(list(map(abs, lengths)), batch_size, world_size, generator)
    size = batch_size * world_size
    megabatches, rest = [], []
    for group in groups:
        of_group = [abs(lengths[i]) for i in group]
        order = [group[i] for i in get_length_grouped_indices(of_group, batch_size, world_size, generator)]
        *whole, last = [order[start : start + size] for start in range(0, len(order), size)]
        megabatches += whole
        rest += last
    shuffled = torch.randperm(len(megabatches), generator=generator).tolist()
    return [index for i in shuffled for index in megabatches[i]] + sorted(rest)


class LengthGroupedSampler(Sampler[int]):
    """Indices of an epoch, grouped by length. The order follows from `seed` and epoch alone, in every process.

    Args:
        batch_size: samples of one step of one process.
        world_size: processes, times the steps whose gradients are added up.
        lengths: of all samples; `modality_lengths` if `group_by_modality`.
        generator: draws the orders, in place of `seed` and epoch: each iteration then has one of its own.
        group_by_modality: keep samples with and without images apart.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int],
        generator: torch.Generator | None = None,
        group_by_modality: bool = False,
        seed: int = 0,
    ):
        self.batch_size, self.world_size, self.lengths = batch_size, world_size, lengths
        self.generator, self.group_by_modality, self.seed, self.epoch = generator, group_by_modality, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        group = get_modality_length_grouped_indices if self.group_by_modality else get_length_grouped_indices
        generator = self.generator or torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(group(self.lengths, self.batch_size, self.world_size, generator))
