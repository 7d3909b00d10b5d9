"""Report on a training run: its speed while it runs, and `training.json` and `loss.png` next to its result."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import torch

from llava.utils.environment import describe_device, versions
from llava.utils.files import read_json, write_json
from llava.utils.processes import current_shard

logger = logging.getLogger(__name__)

OPTIONAL = ("accelerate", "deepspeed", "datasets", "peft", "bitsandbytes")
SPENT_FILE = "spent.json"  # in a checkpoint
PANELS = {"loss": "loss", "learning_rate": "learning rate", "samples_per_second": "samples per second"}


class Throughput:
    """Measures samples per second from one log line to the next; the time before the first step does not count.

    Args:
        clock: seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._samples = clock, 0
        self._since: float | None = None

    def tick(self, samples: int) -> None:
        """Count the samples, of all processes together, of a step that begins."""
        if self._since is None:
            self._since = self._clock()
        self._samples += samples

    def rate(self) -> float:
        """Return samples per second since the last call, or since the first step."""
        assert self._since is not None, "no step has begun"
        now = self._clock()
        rate = self._samples / (now - self._since)
        self._since, self._samples = now, 0
        return rate


class Spent(NamedTuple):
    """What a training run has taken over all its starts, without steps that were lost when it was stopped."""

    seconds: float = 0.0
    loss: float = 0.0  # sum over steps
    skipped: int = 0  # samples whose image could not be read


def write_spent(folder: Path, spent: Spent) -> None:
    """Write into a checkpoint what it took to get there."""
    write_json(folder / SPENT_FILE, spent._asdict())


def read_spent(folder: Path) -> Spent:
    """Read what it took to get to a checkpoint; nothing, if it does not say so."""
    try:
        return Spent(**read_json(folder / SPENT_FILE))
    except (TypeError, ValueError) as error:
        logger.debug("What came before %s is not known: %s", folder, error)
        return Spent()


def gather_facts() -> dict:
    """Describe this process and its machine: peak memory (GiB, of the GPU if there is one), device, versions."""
    optional = {}
    for name in OPTIONAL:
        with suppress(PackageNotFoundError):
            optional[name] = version(name)
    return {
        "device": describe_device("cuda" if torch.cuda.is_available() else "cpu"),
        "processes": current_shard().count,
        "peak_memory_gib": round(peak_memory() / 2**30, 3),
        "versions": versions() | optional,
    }


def peak_memory() -> int:
    """Return the most bytes this process has held so far: on its GPU, or else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_report(folder: Path, *, history: Sequence[dict], facts: dict) -> None:
    """Write `loss.png` and then `training.json`, which marks a run as finished.

    Args:
        history: transformers' `trainer.state.log_history`; of a resumed run it has the steps before, too.
        facts: what else goes into `training.json`.
    """
    draw(history, folder / "loss.png")
    write_json(folder / "training.json", {**facts, **summarize(history), "history": list(history)})


def summarize(history: Sequence[dict]) -> dict:
    """Summarize steps, speed and losses; `seconds` are those of all starts, without steps that were lost."""
    steps, losses = series(history, "loss")
    _, rates = series(history, "samples_per_second")
    _, seconds = series(history, "train_runtime")
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "steps": max(steps, default=0),
        "seconds": seconds[-1] if seconds else None,
        "samples_per_second": median(rates) if rates else None,
        "loss": {"first": losses[0], "last": losses[-1], "mean_of_last_tenth": fmean(last)} if losses else None,
    }


def series(history: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which `name` was logged, and its values."""
    lines = [line for line in history if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def draw(history: Sequence[dict], path: Path) -> None:
    """Draw loss, learning rate and samples per second over the steps, as a PNG. Without matplotlib, nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn: that needs matplotlib.", path.name)
        return
    panels = {label: series(history, name) for name, label in PANELS.items()}
    panels = {label: curve for label, curve in panels.items() if curve[0]}
    if not panels:
        return
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (label, (steps, values)) in zip(axes, panels.items(), strict=True):
        axis.plot(steps, values, alpha=0.4 if label == "loss" else 1)
        if label == "loss":
            window = max(2, len(values) // 8)
            axis.plot(steps, smooth(values, window), color="C0", label=f"mean of {window} lines of the log")
            axis.legend()
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    axes[-1].set(xlabel="step")
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, format="png", dpi=130)
    draft.replace(path)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to `window` - 1 before it."""
    return [fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
