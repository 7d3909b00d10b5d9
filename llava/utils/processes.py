"""Which of several processes this one is, as a launcher such as torchrun numbers them."""

import os
from typing import NamedTuple


class Shard(NamedTuple):
    """Which part of a run this process is."""

    index: int = 0
    count: int = 1


ALONE = Shard()


def current_shard() -> Shard:
    """This process as a launcher such as torchrun numbers it (RANK, WORLD_SIZE); alone without one."""
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ValueError(f"RANK={rank} of WORLD_SIZE={count} is no process: let torchrun set both, or unset them.")
    return Shard(int(rank), int(count))
