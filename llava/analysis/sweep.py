"""Measure accuracy at few tokens, by how the tokens are chosen: `python -m llava.analysis.sweep [CHECKPOINT]`.

Runs TextVQA questions at five budgets with several selectors, by default VisionZip's own, at random and uniformly. A
budget is split 54 : 10 into kept and merged tokens, rounded. Where the places of objects are known, it also counts how
many of the kept patches lie on them. Writes sweep.csv, sweep.json and sweep.png.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from llava.eval.data_options import add_data_options
from llava.eval.tasks import TASKS
from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.utils.cli import add_conv_mode, add_verbose, positive, program, run_command
from llava.utils.files import make_folder, require_own, write_json, write_text
from llava.utils.plots import pyplot
from visionzip_patch.selectors import SELECTORS

if TYPE_CHECKING:
    from llava.analysis.in_memory import InMemoryEval

USUAL = "visionzip,random,uniform"
SHARES = (2, 4, 8, 16, 32)  # of the tower's patches: a half to a thirty-second


class SweepRow(NamedTuple):
    """One line of sweep.csv; accuracies are % of the questions, `on_signs` % of the kept patches."""

    selector: str
    tokens: int  # per image
    dominant: int
    contextual: int
    accuracy: float
    lowest: float  # accuracy of the worst and the best seed
    highest: float
    on_signs: float | None  # that lie on an object, where the places of objects are known: signs in the embedded data


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(sweep, parse_arguments(argv))


def sweep(args: argparse.Namespace) -> int:
    """Measure every setting and write the results; returns the exit status."""
    from llava.analysis.in_memory import prepare  # torch and all: not before the flags are known to be right
    from llava.mm_utils import get_model_name_from_path

    plt = pyplot()
    if plt is None:  # before the work
        raise ValueError("The plot needs matplotlib: pip install matplotlib.")
    checkpoint = args.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    name = get_model_name_from_path(checkpoint)
    out = make_folder(args.out or playground() / "results/sweep" / name)
    require_own([out / f"sweep.{kind}" for kind in ("csv", "json", "png")], ",".join(SweepRow._fields))
    evaluation = prepare(args, checkpoint, TASKS["textvqa"])

    full = evaluation.measure(None)
    rows = [SweepRow("full", full.tokens, full.tokens, 0, full.accuracy, full.accuracy, full.accuracy, full.on_objects)]
    settings = [(selector, evaluation.patches // share) for share in SHARES for selector in args.selectors]
    with tqdm(settings, unit="setting", dynamic_ncols=True) as bar:
        for selector, tokens in bar:
            bar.set_description(f"{SELECTORS[selector].label}, {tokens} tokens")
            seeds = args.seeds if "seed" in SELECTORS[selector].parameters else 1
            rows.append(measure_selector(evaluation, selector, tokens, seeds))

    write_text(out / "sweep.csv", to_csv(rows))
    write_json(out / "sweep.json", describe(args, name, evaluation, rows))
    draw(plt, rows, evaluation, out / "sweep.png")
    print(to_markdown(rows, evaluation.patches))
    print(f"\nWritten: {', '.join(str(out / f'sweep.{kind}') for kind in ('csv', 'json', 'png'))}")
    return 0


def measure_selector(evaluation: "InMemoryEval", selector: str, tokens: int, seeds: int) -> SweepRow:
    """Measure one selector at one budget, averaged over seeds."""
    from visionzip_patch import VisionZipConfig

    budgets = [VisionZipConfig(tokens_per_image=tokens, selector=selector, seed=seed) for seed in range(seeds)]
    measured = [evaluation.measure(budget) for budget in budgets]
    accuracy = [one.accuracy for one in measured]
    on_objects = [one.on_objects for one in measured if one.on_objects is not None]
    split = budgets[0].per_crop(1, evaluation.patches)
    return SweepRow(
        selector,
        measured[0].tokens,
        *split,
        fmean(accuracy),
        min(accuracy),
        max(accuracy),
        fmean(on_objects) if on_objects else None,
    )


def describe(args: argparse.Namespace, name: str, evaluation: "InMemoryEval", rows: list[SweepRow]) -> dict:
    """Describe the sweep and its results, ready for JSON."""
    from llava.utils.environment import versions

    return {
        "checkpoint": name,
        "questions": len(evaluation.questions),
        "images": len(evaluation.pictures),
        "random_seeds": args.seeds,
        "rows": [row._asdict() for row in rows],
        "versions": versions(),
    }


def to_csv(rows: list[SweepRow]) -> str:
    """Write the rows as CSV, floats with three digits after the point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SweepRow._fields)
    writer.writerows([f"{value:.3f}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()


def names_in(rows: list[SweepRow]) -> list[str]:
    """List the selectors that were measured, in their order."""
    return list(dict.fromkeys(row.selector for row in rows))


def to_markdown(rows: list[SweepRow], patches: int) -> str:
    """Write a table, a line per budget: accuracy by selector in %, in brackets the share of kept patches on a sign."""

    def cell(row: SweepRow) -> str:
        return f"{row.accuracy:.1f}" + ("" if row.on_signs is None else f" ({row.on_signs:.0f})")

    full, *others = rows
    labels = [SELECTORS[name].label for name in names_in(others)]
    lines = [
        "Accuracy in %" + ("" if full.on_signs is None else " (in brackets: % of kept patches on a sign)"),
        "",
        "| tokens per image | kept + merged | " + " | ".join(labels) + " |",
        "|---:|---:|" + "---:|" * len(labels),
        f"| {full.tokens} (all {patches} patches) | | " + " | ".join([cell(full)] * len(labels)) + " |",
    ]
    for first in range(0, len(others), len(labels)):
        group = others[first : first + len(labels)]
        split = f"{group[0].dominant} + {group[0].contextual}"
        lines.append(f"| {group[0].tokens} | {split} | " + " | ".join(map(cell, group)) + " |")
    return "\n".join(lines)


def draw(plt, rows: list[SweepRow], evaluation: "InMemoryEval", path: Path) -> None:
    """Draw accuracy and, where known, the share of kept patches on objects, over the tokens per image."""
    full, *others = rows
    panels = 1 if evaluation.on_object is None else 2
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), squeeze=False, layout="constrained")
    for selector in names_in(others):
        line, label = [row for row in others if row.selector == selector], SELECTORS[selector].label
        tokens = [row.tokens for row in line]
        (curve,) = axes[0, 0].plot(tokens, [row.accuracy for row in line], marker="o", label=label)
        if any(row.lowest != row.highest for row in line):
            low, high = [row.lowest for row in line], [row.highest for row in line]
            axes[0, 0].fill_between(tokens, low, high, color=curve.get_color(), alpha=0.2, linewidth=0)
        if panels == 2:
            axes[0, 1].plot(tokens, [row.on_signs for row in line], marker="o", label=label)
    axes[0, 0].axhline(full.accuracy, color="grey", linestyle="--", label=f"all {full.tokens} tokens")
    axes[0, 0].set(ylabel="accuracy (%)", title=f"{len(evaluation.questions)} questions")
    if panels == 2:
        axes[0, 1].axhline(full.on_signs, color="grey", linestyle="--", label="all patches")
        axes[0, 1].set(ylabel="kept patches on a sign (%)", title=f"{len(evaluation.pictures)} images", ylim=(0, 103))
    ticks = sorted({row.tokens for row in others})
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel(f"tokens per image, of {full.tokens}")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def read_selectors(text: str) -> list[str]:
    """Read names between commas. Raises ArgumentTypeError for one that is unknown, or comes twice."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in SELECTORS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no selector; choose of {', '.join(SELECTORS)}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} names a selector twice")
    return names


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.analysis.sweep"),
        description="Accuracy at a half to a thirty-second of an image's tokens, as several selectors choose them.",
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="folder or hub id; without it, the embedded model and data")
    add(
        "--selectors",
        type=read_selectors,
        default=USUAL,
        metavar="LIST",
        help=f"what to compare, of {', '.join(SELECTORS)} (default: {USUAL})",
    )
    add("--seeds", type=positive, default=3, metavar="N", help="random selections to average (default: 3)")
    add("--max-new-tokens", type=positive, default=32, metavar="N", help="longest answer, in tokens (default: 32)")
    add("--batch-size", type=positive, default=32, metavar="N", help="questions at a time (default: 32)")
    add_conv_mode(parser)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--out", metavar="DIR", help="default: playground/results/sweep/CHECKPOINT")
    add_data_options(parser)
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
