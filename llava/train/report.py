"""What a run leaves to be looked at: `training.json`, `loss.png`, and the speed in its log lines."""

import logging
import platform
import resource
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean

import torch

from llava.files import write_json

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes")


class Throughput:
    """Samples per second since the last reading. The first batch, with what it sets up, is not counted."""

    def __init__(self):
        self._samples, self._since = 0, None

    def tick(self, samples: int) -> None:
        """`samples` are about to be learnt."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._samples += samples

    def rate(self) -> float:
        """Samples per second; 0 where none were counted."""
        now = time.perf_counter()
        seconds, samples = now - (self._since or now), self._samples
        self._samples, self._since = 0, now
        return samples / seconds if seconds > 0 else 0.0


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> float:
    """Most memory that this process had in use, in GB: of its GPU, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"


def write_report(folder: Path, *, history: list[dict], facts: dict) -> None:
    """Write `training.json` and `loss.png` into `folder`.

    Args:
        history: transformers' `log_history`; of a resumed run it goes back to the beginning.
        facts: what else there is to know about the run.
    """
    steps = [line for line in history if "loss" in line]
    losses = [line["loss"] for line in steps]
    tail = losses[-max(1, len(losses) // 10) :]
    loss = {"first": losses[0], "last": losses[-1], "mean_of_last_tenth": fmean(tail)} if losses else None
    if steps:
        draw(steps, folder / "loss.png")
    write_json(folder / "training.json", {**facts, "loss": loss, "history": history})  # last: it marks the run as done


def draw(steps: list[dict], path: Path) -> None:
    """Loss, learning rate and speed over the steps; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        logger.warning("No loss.png: it needs matplotlib (pip install matplotlib).")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [name for name in ("loss", "learning_rate", "samples_per_second") if any(name in line for line in steps)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], panels, strict=True):
        points = [(line["step"], line[name]) for line in steps if name in line]
        x, y = zip(*points, strict=True)
        axis.plot(x, y, alpha=0.4 if name == "loss" else 1, label="each line of the log")
        if name == "loss":
            axis.plot(x, smoothed(y), label="smoothed")
            axis.legend()
        axis.set(xlabel="step", ylabel=name.replace("_", " "), ylim=(0, None))
        axis.grid(alpha=0.3)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=110, format="png")
    draft.replace(path)
    pyplot.close(figure)


def smoothed(values, weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    total = norm = 0.0
    means = []
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        means.append(total / norm)
    return means
