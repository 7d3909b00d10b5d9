"""Measure and draw the accuracy by who chooses the patches: the work of `llava.analysis.misalignment`."""

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from llava.analysis.common import begin, write_csv, write_figure
from llava.analysis.in_memory import prepare
from llava.analysis.misalignment.measure import MaskedEval, choose, prepare_masked, top_mask
from llava.analysis.sweep import SHARES
from llava.eval.tasks import TASKS
from llava.utils.tables import to_table
from visionzip_patch.selectors import SELECTORS

CHOOSERS = {  # who chooses the patches; only the last is a selector of VisionZip's table
    "tower": "vision tower",
    "last": "language model, last token",
    "text": "language model, mean of text",
    "random": SELECTORS["random"].label,
}
COLORS = {"tower": "tab:blue", "last": "tab:orange", "text": "tab:green", "random": "tab:grey"}


class MisalignmentRow(NamedTuple):
    """One line of misalignment.csv: accuracies in % of the questions, the last two in % of the chosen patches."""

    selector: str  # "all" for the picture as it is
    masked: int  # patches of an image that may not be chosen; on average where images have several crops
    tokens: int  # per image, likewise
    accuracy: float
    lowest: float  # accuracy of the worst and the best seed
    highest: float
    as_tower: float  # that are also among as many of the tower's favourites
    on_signs: float | None  # that lie on an object, where the places of objects are known: signs in the embedded data


def analyse(args: argparse.Namespace) -> int:
    """Measure every choice and write the results; returns the exit status."""
    job = begin("misalignment", args, {"misalignment": MisalignmentRow})
    evaluation = prepare(args, job.checkpoint, TASKS["textvqa"])
    depth = len(evaluation.model.get_model().layers)
    if args.llm_layer > depth:
        raise ValueError(f"--llm-layer {args.llm_layer}: the language model has {depth} layers; choose 1 to {depth}.")
    rows = list(measure(prepare_masked(evaluation), args))
    write_csv(job.out / "misalignment.csv", rows)
    title = (
        f"{job.name}: {len(evaluation.questions)} questions, attention of the language model in layer {args.llm_layer}"
    )
    write_figure(job.plt, draw(job.plt, rows, title), job.out / "misalignment.png")
    print(f"{title}\n\n{to_markdown(rows)}\n\nWritten: {job.out}/misalignment.{{csv,png}}")
    return 0


def measure(masked_eval: MaskedEval, args: argparse.Namespace) -> Iterator[MisalignmentRow]:
    """Measure with all tokens, then at every budget with every selector, without the mask and with it."""
    saliency = [masked_eval.images[prompt.image].saliency for prompt in masked_eval.prompts]
    passes = 2 + 2 * len(SHARES) * (len(CHOOSERS) - 1 + args.seeds)  # one to look, one with all patches
    with tqdm(total=passes * len(saliency), unit="question", dynamic_ncols=True) as bar:
        attention = masked_eval.text_attention(args.llm_layer, bar)
        scores = {
            "tower": [saliency],
            "last": [[one.last for one in attention]],
            "text": [[one.mean for one in attention]],
            "random": [random_scores(masked_eval, seed) for seed in range(args.seeds)],
        }
        nothing = [torch.zeros_like(own, dtype=torch.bool) for own in saliency]
        masks = nothing, [top_mask(own, max(1, len(own) // args.mask_one_in)) for own in saliency]
        yield measure_choice(masked_eval, "all", [saliency], nothing, 1, bar)
        for share in SHARES:
            for masked in masks:
                for selector, seeds in scores.items():
                    bar.set_description(f"{CHOOSERS[selector]}, 1/{share} of the patches")
                    yield measure_choice(masked_eval, selector, seeds, masked, share, bar)


def measure_choice(
    masked_eval: MaskedEval,
    selector: str,
    seeds: Sequence[Sequence[Tensor]],
    masked: Sequence[Tensor],
    share: int,
    bar: tqdm,
) -> MisalignmentRow:
    """Measure one selector at one budget, averaged over seeds.

    Args:
        masked_eval: what is asked.
        selector: its name in the result.
        seeds: for each seed, the scores of each question's image, (n,).
        masked: for each question, the patches that may not be chosen, (n,) bool.
        share: one patch in so many is chosen.
        bar: is moved on by each question.
    """
    accuracy, as_tower, on_objects = [], [], []
    counts = [max(1, len(mask) // share) for mask in masked]
    for scores in seeds:
        chosen = [choose(*one) for one in zip(scores, counts, masked, strict=True)]
        accuracy.append(masked_eval.accuracy(chosen, bar))
        favourites = [
            top_mask(masked_eval.images[prompt.image].saliency, count)
            for prompt, count in zip(masked_eval.prompts, counts, strict=True)
        ]
        as_tower.append(share_within(chosen, favourites))
        if masked_eval.evaluation.on_object is not None:
            objects = dict(zip(masked_eval.images, masked_eval.evaluation.on_object, strict=True))
            on_objects.append(share_within(chosen, [objects[prompt.image] for prompt in masked_eval.prompts]))
    return MisalignmentRow(
        selector,
        round(fmean(int(mask.sum()) for mask in masked)),
        round(fmean(counts)),
        fmean(accuracy),
        min(accuracy),
        max(accuracy),
        fmean(as_tower),
        fmean(on_objects) if on_objects else None,
    )


def random_scores(masked_eval: MaskedEval, seed: int) -> list[Tensor]:
    """Draw scores of each image at random; returns, for each question, those of its image, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(len(seen.tokens), generator=generator) for name, seen in masked_eval.images.items()}
    return [scores[prompt.image] for prompt in masked_eval.prompts]


def share_within(chosen: Sequence[Tensor], places: Sequence[Tensor]) -> float:
    """Return how many % of the chosen positions, (k,) each, are marked in `places`, (n,) bool each."""
    within = sum(int(own[positions].sum()) for own, positions in zip(places, chosen, strict=True))
    return 100 * within / sum(map(len, chosen))


def to_markdown(rows: Sequence[MisalignmentRow]) -> str:
    """Write a table of accuracy by tokens and selector, in brackets the part of the choice that is also the tower's."""
    full, *others = rows
    lines = [["tokens", "masked", *CHOOSERS.values()]]
    for first in range(0, len(others), len(CHOOSERS)):
        group = others[first : first + len(CHOOSERS)]
        cells = [f"{row.accuracy:.1f} ({row.as_tower:.0f})" for row in group]
        lines.append([f"{group[0].tokens}", f"{group[0].masked or '–'}", *cells])
    head = f"Accuracy in %, {full.accuracy:.1f} with all {full.tokens} patches; in brackets, how many % of the chosen"
    return f"{head} patches\nare also among as many of the tower's favourites.\n\n{to_table(lines, left=0)}"


def draw(plt, rows: Sequence[MisalignmentRow], title: str):
    """Draw accuracy without and with the mask, and the share of each choice that is also the tower's."""
    full, *others = rows
    free = [row for row in others if not row.masked]
    masked = [row for row in others if row.masked]
    panels = (
        (free, "accuracy", "accuracy (%)", "any patch may be chosen"),
        (masked, "accuracy", "accuracy (%)", f"the tower's top {max(row.masked for row in rows)} are masked"),
        (free, "as_tower", "chosen by the tower too (%)", "agreement with the tower, any patch"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for axis, (shown, field, label, heading) in zip(axes, panels, strict=True):
        for selector, name in CHOOSERS.items():
            line = [row for row in shown if row.selector == selector]
            tokens = [row.tokens for row in line]
            values = [getattr(row, field) for row in line]
            axis.plot(tokens, values, marker="o", markersize=4, color=COLORS[selector], label=name)
            if field == "accuracy" and any(row.lowest != row.highest for row in line):
                low, high = [row.lowest for row in line], [row.highest for row in line]
                axis.fill_between(tokens, low, high, color=COLORS[selector], alpha=0.2, linewidth=0)
        if field == "accuracy":
            axis.axhline(full.accuracy, color="black", linestyle="--", linewidth=1, label=f"all {full.tokens} patches")
        ticks = sorted({row.tokens for row in others})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(xlabel=f"tokens per image, of {full.tokens}", ylabel=label)
        axis.set_title(heading, fontsize="medium")
        axis.grid(alpha=0.3)
    axes[1].sharey(axes[0])
    axes[2].set_ylim(0, 103)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(title, fontsize="medium")
    return figure
