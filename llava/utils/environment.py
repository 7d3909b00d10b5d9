"""Look up where a program runs: devices, threads, and versions of packages."""

import os
import platform
from importlib.metadata import version

import torch

from llava.utils.processes import Shard


def device_of(device: str, shard: Shard) -> str:
    """Choose the torch device of a process for "auto", "cpu" or "cuda". Raises ValueError for "cuda" without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here. Use --device cpu, or leave it out.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', shard.index)}" if shard.count > 1 else "cuda"


def describe_device(device: str) -> str:
    """Name a GPU, or say how many threads torch uses on the CPU."""
    return torch.cuda.get_device_name(device) if device != "cpu" else f"CPU, torch threads: {torch.get_num_threads()}"


def use_one_thread() -> None:
    """Use one CPU thread, for the embedded model, unless OMP_NUM_THREADS says otherwise.

    It is too small to gain from more, and on a busy machine threads that wait for each other make it ten times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "pillow")}
    return {"python": platform.python_version(), **packages}
