"""Find out which of several processes this one is, as a launcher such as torchrun numbers them."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The number of a process among those that share a run, and how many they are."""

    index: int = 0
    count: int = 1


ALONE = Shard()


def current_shard() -> Shard:
    """Return the number of this process from RANK and WORLD_SIZE, as torchrun sets them; alone without them.

    Raises:
        ValueError: they are no number and count.
    """
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ValueError(f"RANK={rank} of WORLD_SIZE={count} is no process: let torchrun set both, or unset them.")
    return Shard(int(rank), int(count))
