"""Measure time and memory of functions: in one process and in turns, so that a machine's load affects all alike."""

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
    """What several calls of a function took, in seconds and bytes."""

    seconds: float  # median
    fastest: float
    slowest: float
    calls: int
    peak: int | None  # the most bytes in use, less those before the call; None if the system does not tell


def compare(
    preparations: Mapping[str, Callable[[], Callable]], device: torch.device, patience: float
) -> dict[str, Timing | None]:
    """Time functions in turns, after a first call of each.

    Args:
        preparations: by name, what makes the function that is timed.
        device: what is waited for, and whose memory counts.
        patience: seconds after which no further round begins, once ROUNDS[0] are done.

    Returns:
        By name, what the function took; None if it ran out of memory.
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
    """Time one call, and wait for the device to finish it."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(function: Callable, device: torch.device) -> int | None:
    """Return the most bytes that a call takes: of tensors on a GPU, of the process on a CPU, as Linux counts them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed before is used again, and the peak stays
        Path("/proc/self/clear_refs").write_text("5")  # "the peak begins here"
        before = resident("VmRSS")
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
    function()
    return max(0, resident("VmHWM") - before)


def resident(field: str) -> int:
    """Read a memory field of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
