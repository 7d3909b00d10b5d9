"""Parts of a question list: `--num-chunks N --chunk-idx K`."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split_list(lst: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cut `lst` into `n` runs of ceil(len / n) items; the last ones are shorter, or empty where items run out.

    Raises:
        ValueError: `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"Cannot split {len(lst)} items into {n} chunks; ask for 1 or more.")
    size = max(1, -(-len(lst) // n))
    return [lst[i * size : (i + 1) * size] for i in range(n)]


def get_chunk(lst: Sequence[T], n: int, k: int) -> Sequence[T]:
    """The `k`-th of `n` chunks, counted from 0.

    Raises:
        ValueError: `n` is not positive or there is no `k`-th chunk.
    """
    chunks = split_list(lst, n)
    if not 0 <= k < n:
        raise ValueError(f"There is no chunk {k} among {n}: the first is 0, the last {n - 1}.")
    return chunks[k]
