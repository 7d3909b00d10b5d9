"""Do many calls at a time, in threads."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)


def for_all(
    items: Sequence,
    work: Callable[[Any], None],
    *,
    parallel: int,
    stopped: threading.Event,
    progress: Callable[[], object],
) -> None:
    """Do `work` on all items, several at a time. When one fails, or at Ctrl-C, no more are begun.

    Those begun are still finished, unless Ctrl-C comes again.

    Args:
        items: what `work` is called with.
        work: called in a thread.
        parallel: how many threads.
        stopped: set when nothing more is to be begun, for `work` to see.
        progress: called after each.
    """
    todo, done = queue.SimpleQueue(), queue.SimpleQueue()
    for item in items:
        todo.put(item)
    # Daemons, which the interpreter does not wait for at its end, as it does for those of a ThreadPoolExecutor.
    threads = [
        threading.Thread(target=work_off, args=(todo, done, work, stopped), daemon=True)
        for _ in range(min(parallel, len(items)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            if error := done.get():
                raise error
            progress()
    except BaseException:
        stopped.set()
        wait_for([thread for thread in threads if thread.ident is not None])  # those that were started
        raise


def work_off(
    todo: queue.SimpleQueue, done: queue.SimpleQueue, work: Callable[[Any], None], stopped: threading.Event
) -> None:
    """Do `work` on items of `todo` until it is empty or `stopped` is set; puts None or the error of each in `done`."""
    while not stopped.is_set():
        try:
            item = todo.get_nowait()
        except queue.Empty:
            return
        try:
            work(item)
            done.put(None)
        except BaseException as error:  # raised again where it is waited for
            done.put(error)


def wait_for(threads: Sequence[threading.Thread]) -> None:
    """Wait for threads to end, and say so if that takes a moment."""
    for thread in threads:
        thread.join(0.1 / len(threads))
    if any(thread.is_alive() for thread in threads):
        logger.warning("Stopping; what is on its way still comes in. Ctrl-C stops at once.")
    for thread in threads:
        thread.join()
