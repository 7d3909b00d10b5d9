"""Let several processes work together: wait for each other, and exchange what they know."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from llava.utils.processes import Shard

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=24)  # processes may finish their parts far apart


@contextmanager
def process_group(shard: Shard) -> Iterator[None]:
    """Connect the processes of a shared run for the length of a `with` block, as `AnswerFile` needs it.

    Raises:
        ValueError: there are several processes, but they were not started by torchrun.
    """
    if shard.count == 1:
        yield
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={shard.count} is set without {' and '.join(missing)}: the processes cannot talk. Start them "
            f"with torchrun, which sets all of these, or unset RANK and WORLD_SIZE to answer in one process."
        )
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def first_process_first(shard: Shard) -> Iterator[None]:
    """Run the block in process 0 before the others, which only run it if it succeeds there.

    Otherwise the others would continue a run that process 0 refuses.
    """
    if shard.index > 0 and (reason := from_first(None)):
        raise ValueError(reason)
    reason = "The first process has stopped."
    try:
        yield
        reason = None
    except ValueError as error:
        reason = str(error)
        raise
    finally:
        if shard.index == 0 and shard.count > 1:
            from_first(reason)


def from_first(content):
    """Send an object from process 0 to all; returns it in every process."""
    box = [content]
    collective(distributed.broadcast_object_list, box)
    return box[0]


def gather(content, shard: Shard) -> list | None:
    """Collect an object of each process, in their order; returns the list in process 0, None in the others."""
    everyones = [None] * shard.count if shard.index == 0 else None
    collective(distributed.gather_object, content, everyones)
    return everyones


def collective(operation: Callable, *arguments) -> None:
    """Call an operation that all processes take part in. Raises ValueError if one of them has ended."""
    try:
        operation(*arguments)
    except RuntimeError as error:
        logger.debug("%s: %s", operation.__name__, error)
        raise ValueError(
            "Another process of this run has ended, and said why. Finished answers are kept: fix that, then run the "
            "same command again."
        ) from None
