"""Measure and draw how concentrated a vision tower's attention is: the work of `llava.analysis.attention`."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from llava.analysis.attention.measure import Bin, Spread, a_tenth, histogram, measure
from llava.analysis.common import Job, begin, write_csv, write_figure
from llava.eval.tasks import TASKS
from llava.inference.budget import usual_budget
from llava.inference.embedded import playground
from llava.inference.loading import load
from llava.inference.preprocess import free_workers, lost_workers, read_pictures
from llava.mm_utils import find_pictures
from llava.utils.environment import device_of, use_one_thread
from llava.utils.processes import ALONE
from llava.utils.tables import to_table

NINTHS = (1, 2, 3)  # of the patches: 64, 128 and 192 of 576, the paper's budgets for LLaVA-1.5
TOKENS, HELD = "tab:grey", "tab:blue"


class Layer(NamedTuple):
    """One line of attention-layers.csv; means and standard deviations over crops."""

    layer: int  # from 1
    is_read: bool  # whether LLaVA takes this layer's output
    top: float  # % of the attention, held by the most attended tenth of the patches
    top_std: float
    effective: float  # patches
    effective_std: float


class Mass(NamedTuple):
    """One line of attention-mass.csv: what the `patches` most attended hold, in % of the attention."""

    patches: int
    mean: float
    std: float  # over crops


class Budget(NamedTuple):
    """What VisionZip keeps of a crop, and the attention that its dominant patches hold."""

    tokens: int
    dominant: int
    contextual: int
    patches: int  # the dominant tokens without CLS
    mass: float  # %


def analyse(args: argparse.Namespace) -> int:
    """Measure and write; returns the exit status."""
    kinds = {"distribution": Bin, "layers": Layer, "mass": Mass}
    job = begin("attention", args, {f"attention-{kind}": row for kind, row in kinds.items()})
    folder = args.images or embedded_images()
    paths = find_pictures(folder, deep=True)[: args.limit]
    if args.checkpoint is None:
        use_one_thread()
    _, model, image_processor = load(job.checkpoint, device=device_of(args.device, ALONE))
    tower = model.get_vision_tower()
    spread = measure(tower, batches(paths, image_processor, model, args.batch_size))

    bins, layers, masses = histogram(spread.shares), to_layers(spread, tower.depth), to_masses(spread.shares)
    budgets = to_budgets(masses, tower)
    for kind, rows in zip(kinds, (bins, layers, masses), strict=True):
        write_csv(job.out / f"attention-{kind}.csv", rows)
    whose = "attention of CLS" if tower.has_cls else "attention received"
    crops = f"{len(spread.shares)} crops" if len(spread.shares) > len(paths) else f"{len(paths)} images"
    title = f"{job.name}: {whose}, {crops}"
    draw_distribution(job, bins, f"{title}, layer {tower.depth} of {len(layers)}")
    draw_layers(job, layers, tower.num_patches, title)
    draw_mass(job, masses, budgets, f"{title}, layer {tower.depth} of {len(layers)}")
    print(report(title, layers, budgets, bins))
    print(f"\nWritten: {job.out}/attention-{{distribution,layers,mass}}.{{csv,png}}")
    return 0


def embedded_images() -> Path:
    """Return the folder of the embedded pictures."""
    embedded = TASKS["textvqa"].embedded
    assert embedded, "this task's data comes with the project"
    return embedded.below(playground()).image_folder


def batches(paths: Sequence[Path], image_processor, model, batch_size: int) -> Iterator[Tensor]:
    """Yield the crops of `batch_size` pictures at a time, (crops, 3, S, S). Raises ValueError for a bad one."""
    names, workers = list(map(str, paths)), free_workers(model.device, len(paths))
    with lost_workers(), tqdm(total=len(names), unit="image", dynamic_ncols=True) as bar:
        crops = []
        pictures = read_pictures(names, "", image_processor, model.config, workers, batch_size)
        for number, found in enumerate(pictures, start=1):
            if isinstance(found, str):
                raise ValueError(f"{found} Take it out of the folder.")
            crops.append(found.pixels if found.pixels.ndim == 4 else found.pixels[None])
            if len(crops) == batch_size or number == len(names):
                yield torch.cat(crops)
                bar.update(len(crops))
                crops = []


def to_layers(spread: Spread, depth: int) -> list[Layer]:
    """Average over crops, layer by layer; `depth` is the layer that LLaVA reads, from 1."""
    columns = [column.tolist() for values in (100 * spread.top, spread.effective) for column in mean_and_std(values)]
    return [Layer(i, i == depth, *row) for i, row in enumerate(zip(*columns, strict=True), start=1)]


def to_masses(shares: Tensor) -> list[Mass]:
    """Sum the shares, (B, P), largest first, of the first 1 to P patches."""
    columns = [column.tolist() for column in mean_and_std(100 * shares.cumsum(1))]
    return [Mass(i, *row) for i, row in enumerate(zip(*columns, strict=True), start=1)]


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over crops: (B, n) -> (n,), (n,)."""
    return values.mean(0), values.std(0, correction=0)


def to_budgets(masses: Sequence[Mass], tower) -> list[Budget]:
    """List the paper's budgets, scaled to the tower's number of patches."""
    budgets = []
    for ninths in NINTHS:
        budget = usual_budget(tower, ninths)
        dominant, contextual = budget.per_crop(1, tower.num_patches + tower.has_cls)
        patches = dominant - tower.has_cls
        mass = masses[patches - 1].mean if patches else 0.0
        budgets.append(Budget(dominant + contextual, dominant, contextual, patches, mass))
    return budgets


def report(title: str, layers: Sequence[Layer], budgets: Sequence[Budget], bins: Sequence[Bin]) -> str:
    """Summarize the measurements as text."""
    below_half = 100 - next(one.patches_from for one in bins if one.lower >= 0.5)
    by_layer = [["layer", "top tenth %", "effective patches"]]
    by_layer += [
        [f"{one.layer}{' (read)' * one.is_read}", f"{one.top:.1f} ± {one.top_std:.1f}", f"{one.effective:.1f}"]
        for one in layers
    ]
    by_budget = [["tokens", "dominant + contextual", "dominant patches", "attention they hold %"]]
    by_budget += [
        [f"{one.tokens}", f"{one.dominant} + {one.contextual}", f"{one.patches}", f"{one.mass:.1f}"] for one in budgets
    ]
    sentence = f"{below_half:.0f} % of the patches get less than half of an even share."
    return "\n\n".join([title, to_table(by_layer), to_table(by_budget, left=0), sentence])


def draw_distribution(job: Job, bins: Sequence[Bin], title: str) -> None:
    """Draw how many patches have which share, and what they hold; next to it, how many have at least that share."""
    shown = bins[next(i for i, one in enumerate(bins) if one.patches) :]  # from the faintest patch on
    shown = shown[: max(i for i, one in enumerate(shown) if one.patches) + 1]
    edges = [shown[0].lower or shown[0].upper / 2, *(one.upper for one in shown)]
    figure, (left, right) = job.plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for color, label, field in ((TOKENS, "patches", "patches"), (HELD, "attention they hold", "attention")):
        values = [getattr(one, field) for one in shown]
        left.stairs(values, edges, fill=True, alpha=0.35, color=color, label=label)
        left.stairs(values, edges, color=color)
        right.plot(edges[:-1], [getattr(one, f"{field}_from") for one in shown], color=color, label=label)
    left.set(ylabel="% of all, per bin", ylim=(0, None))
    right.set(ylabel="% with at least this share", ylim=(0, 103))
    for axis in (left, right):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.axvline(1, color="black", linestyle=":", linewidth=1, label="even share")
        axis.set_xlabel("share of the attention, × even share")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, fontsize="medium")
    write_figure(job.plt, figure, job.out / "attention-distribution.png")


def draw_layers(job: Job, layers: Sequence[Layer], patches: int, title: str) -> None:
    """Draw the concentration of attention in each layer."""
    number = [one.layer for one in layers]
    tenth = a_tenth(patches)
    figure, (left, right) = job.plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, field, even in ((left, "top", 100 * tenth / patches), (right, "effective", patches)):
        mean = [getattr(one, field) for one in layers]
        std = [getattr(one, f"{field}_std") for one in layers]
        low, high = zip(*((m - s, m + s) for m, s in zip(mean, std, strict=True)), strict=True)
        axis.plot(number, mean, marker="o", markersize=4, color=HELD, label="mean ± standard deviation over images")
        axis.fill_between(number, low, high, color=HELD, alpha=0.2, linewidth=0)
        axis.axhline(even, color="black", linestyle=":", linewidth=1, label="even spread")
        axis.axvline(next(one.layer for one in layers if one.is_read), color="tab:orange", label="layer read by LLaVA")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("layer of the vision tower")
        axis.grid(alpha=0.3)
    left.set(ylabel=f"attention on the top {tenth} of {patches} (%)", ylim=(0, 103))
    right.set(ylabel=f"effective number of patches, of {patches}", ylim=(0, 1.08 * patches))
    left.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    write_figure(job.plt, figure, job.out / "attention-layers.png")


def draw_mass(job: Job, masses: Sequence[Mass], budgets: Sequence[Budget], title: str) -> None:
    """Draw the attention held by the most attended patches, with the budgets marked on the curve."""
    count = [one.patches for one in masses]
    mean = [one.mean for one in masses]
    low, high = zip(*((one.mean - one.std, min(100, one.mean + one.std)) for one in masses), strict=True)
    figure, axis = job.plt.subplots(figsize=(5.5, 4), layout="constrained")
    axis.plot(count, mean, color=HELD, label="most attended patches")
    axis.fill_between(count, low, high, color=HELD, alpha=0.2, linewidth=0)
    axis.plot([0, count[-1]], [0, 100], color="black", linestyle=":", linewidth=1, label="even spread")
    for one in budgets:
        axis.plot(one.patches, one.mass, "o", color="tab:orange")
        axis.annotate(
            f"{one.tokens} tokens = {one.dominant} + {one.contextual}: {one.mass:.0f} %",
            (one.patches, one.mass),
            xytext=(10, -12),
            textcoords="offset points",
            fontsize="small",
        )
    axis.set(xlabel=f"patches kept, of {count[-1]}", ylabel="attention that they hold (%)", ylim=(0, 103))
    axis.set_xlim(0, count[-1])
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    axis.set_title(title, fontsize="medium")
    write_figure(job.plt, figure, job.out / "attention-mass.png")
