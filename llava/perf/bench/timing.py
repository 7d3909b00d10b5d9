"""Time and memory of functions that are compared: in one process, in turns, so a machine's moods meet all of them."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

ROUNDS = (3, 25)  # at least, at most


class Timing(NamedTuple):
    """What several calls of a function took."""

    seconds: float  # median
    fastest: float
    slowest: float
    calls: int
    peak: int | None  # bytes in use at the most, beyond what was before; None if the system does not say


def compare(
    preparations: Mapping[str, Callable[[], Callable]], device: torch.device, patience: float
) -> dict[str, Timing | None]:
    """Time functions in turns, after a first call of each; None for one that runs out of memory.

    Args:
        preparations: by name, what makes the function that is timed.
        device: what is waited for, and whose memory counts.
        patience: seconds that all of this may take, if at least ROUNDS[0] rounds are done.
    """
    functions: dict[str, Callable] = {}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int | None] = {}
    for name, prepare in preparations.items():
        try:
            function = prepare()
            function()  # libraries choose kernels, graphs are captured
            peaks[name] = peak_of(function, device)
            functions[name], seconds[name] = function, []
        except torch.OutOfMemoryError:
            function = None
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    deadline, rounds = time.perf_counter() + patience, 0
    while seconds and (rounds < ROUNDS[0] or (rounds < ROUNDS[1] and time.perf_counter() < deadline)):
        for name in seconds:
            seconds[name].append(seconds_of(functions[name], device))
        rounds += 1
    return {
        name: Timing(median(seconds[name]), min(seconds[name]), max(seconds[name]), rounds, peaks[name])
        if name in seconds
        else None
        for name in preparations
    }


def seconds_of(function: Callable, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(function: Callable, device: torch.device) -> int | None:
    """Bytes that a call takes at the most: by tensors on a GPU, by the process on a CPU, as Linux counts them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is taken again, and nothing shows
        Path("/proc/self/clear_refs").write_text("5")  # "the peak begins here"
        before = resident("VmRSS")
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
    function()
    return max(0, resident("VmHWM") - before)


def resident(field: str) -> int:
    """A memory field of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
