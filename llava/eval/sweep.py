"""How far can an image be cut, and does it matter how: `python -m llava.eval.sweep`.

Runs TextVQA questions at five budgets with three ways to choose the kept tokens: VisionZip's attention, at random,
uniformly. A budget is split 54 : 10 into kept and merged tokens, rounded. Where the places of the signs are known, it
also counts how many of the kept patches lie on them. Writes sweep.csv, sweep.json and sweep.png.
"""

import argparse
import csv
import io
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from llava.eval.answers import ALONE, Question, read_questions
from llava.eval.files import make_folder, read_json, write_json, write_text
from llava.eval.generate import Decoding, Picture, generate_batch, make_batches, missing_images, read_picture
from llava.eval.run import choose_data, choose_threads, device_of, positive, quiet, status_of
from llava.eval.tasks import EMBEDDED_CHECKPOINT, TASKS, Task, playground
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from visionzip_patch import unzip, visionzip

SELECTORS = {"attention": "VisionZip", "random": "random", "uniform": "uniform"}
SHARES = (2, 4, 8, 16, 32)  # of the tower's patches: a half to a thirty-second
COVERED = 0.35  # a patch is on a sign if more than this share of it is covered
ENCODE = 32  # images at a time where only the selection is asked for


class Row(NamedTuple):
    """One line of the result; percentages of `accuracy` are over questions, of `on_signs` over kept patches."""

    selector: str
    tokens: int  # per image
    dominant: int
    contextual: int
    accuracy: float
    lowest: float  # accuracy of the worst and the best seed
    highest: float
    on_signs: float | None


class Bench(NamedTuple):
    """Everything that stays the same from setting to setting."""

    task: Task
    annotation_file: Path
    tokenizer: object
    model: object
    questions: list[Question]
    pictures: dict[str, Picture]
    on_sign: Tensor | None  # (images, patches) bool, in the order of `pictures`
    decoding: Decoding
    batch_size: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(sweep, parse_arguments(argv))


def sweep(args: argparse.Namespace) -> int:
    plt = import_pyplot()  # before the work, as it may not be installed
    checkpoint = args.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    name = get_model_name_from_path(checkpoint)
    out = make_folder(args.out or (playground() / "results/sweep" / name if args.checkpoint else "docs/embedded"))
    bench = prepare(args, checkpoint)
    patches = bench.model.get_vision_tower().num_patches

    full_tokens, full = measure(bench)
    base = None if bench.on_sign is None else 100 * bench.on_sign.float().mean().item()
    rows = [Row("full", full_tokens, full_tokens, 0, full, full, full, base)]
    settings = [(selector, patches // share) for share in SHARES for selector in SELECTORS]
    with tqdm(settings, unit="setting", dynamic_ncols=True) as bar:
        for selector, tokens in bar:
            bar.set_description(f"{SELECTORS[selector]}, {tokens} tokens")
            rows.append(measure_selector(bench, selector, tokens, args.seeds if selector == "random" else 1))
    unzip(bench.model)

    write_text(out / "sweep.csv", to_csv(rows))
    write_json(out / "sweep.json", describe(args, name, bench, rows))
    draw(plt, rows, bench, out / "sweep.png")
    print(to_markdown(rows, patches))
    print(f"\nWritten: {', '.join(str(out / f'sweep.{kind}') for kind in ('csv', 'json', 'png'))}")
    return 0


def prepare(args: argparse.Namespace, checkpoint: str) -> Bench:
    """Load the model; decode and prepare each image once, for all settings."""
    task = TASKS["textvqa"]
    data = choose_data(args, task)
    questions = read_questions(data.question_file, args.limit)
    if missing := missing_images(questions, data.image_folder):
        raise ValueError(f"{len(missing)} images are not in {data.image_folder}; the first is {missing[0].image}.")
    choose_threads(args)
    tokenizer, model, image_processor, _ = load_pretrained_model(checkpoint, device=device_of(args.device, ALONE))
    names = dict.fromkeys(question.image for question in questions)
    pictures = {name: read_picture(data.image_folder / name, image_processor, model.config) for name in names}
    boxes = data.question_file.parent / "signs.json"
    on_sign = sign_patches(read_json(boxes), pictures, model.get_vision_tower()) if boxes.exists() else None
    decoding = Decoding(max_new_tokens=args.max_new_tokens)
    return Bench(task, data.annotation_file, tokenizer, model, questions, pictures, on_sign, decoding, args.batch_size)


def sign_patches(scenes: dict, pictures: dict[str, Picture], tower) -> Tensor | None:
    """Which patches lie on a sign, (images, patches) bool; None if the tower sees the scenes on another grid."""
    scenes = [scenes[Path(name).stem] for name in pictures]
    side = tower.config.image_size
    same = all(
        (scene["width"], scene["height"], scene["patch"]) == (side, side, tower.config.patch_size) for scene in scenes
    )
    one_crop = all(picture.pixels.ndim == 3 for picture in pictures.values())
    return torch.stack([covered_patches(scene) for scene in scenes]) if same and one_crop else None


def covered_patches(scene: dict) -> Tensor:
    """Which patches of a scene lie on a sign: (patches,) bool, in raster order."""
    size, rows, columns = scene["patch"], scene["height"] // scene["patch"], scene["width"] // scene["patch"]

    def overlap(low: int, high: int, count: int) -> Tensor:
        """Pixels that the span low..high shares with each of `count` patches: (count,)."""
        edges = torch.arange(count + 1) * size
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0)

    area = torch.zeros(rows, columns)
    for sign in scene["signs"]:
        left, top, right, bottom = sign["box"]
        area += overlap(top, bottom, rows)[:, None] * overlap(left, right, columns)
    return (area > COVERED * size**2).flatten()


def measure_selector(bench: Bench, selector: str, tokens: int, seeds: int) -> Row:
    """Accuracy at one budget, averaged over seeds."""
    scores, shares = [], []
    for seed in range(seeds):
        visionzip(bench.model, tokens_per_image=tokens, selector=selector, seed=seed)
        seen, accuracy = measure(bench)
        scores.append(accuracy)
        if bench.on_sign is not None:
            shares.append(share_on_signs(bench))
    available = bench.model.get_vision_tower().num_patches
    dominant, contextual = bench.model.get_vision_tower().reducer.config.per_crop(1, available)
    on_signs = fmean(shares) if shares else None
    return Row(selector, seen, dominant, contextual, fmean(scores), min(scores), max(scores), on_signs)


def measure(bench: Bench) -> tuple[int, float]:
    """Tokens per image that the language model saw, rounded, and the accuracy in %."""
    rows, tokens = [], []
    for batch in make_batches(bench.questions, bench.batch_size):
        pictures = [bench.pictures[question.image] for question in batch]
        texts = [question.text + bench.task.prompt_suffix for question in batch]
        answers = generate_batch(bench.model, bench.tokenizer, texts, pictures, bench.decoding)
        tokens += answers.image_tokens
        for question, text in zip(batch, answers.texts, strict=True):
            rows.append({"question_id": question.question_id, "prompt": question.text, "text": text})
    with quiet():  # each setting would repeat the same remark on --limit
        scores = bench.task.metric(bench.annotation_file, rows)
    return round(fmean(tokens)), next(iter(scores.values()))


@torch.inference_mode()
def share_on_signs(bench: Bench) -> float:
    """How many % of the kept patches lie on a sign; CLS and merged tokens have no place and are not counted."""
    tower, hits, kept = bench.model.get_vision_tower(), 0, 0
    first = int(tower.has_cls)  # position of the first patch
    for pixels, on_sign in zip(stacks(bench.pictures), bench.on_sign.split(ENCODE), strict=True):
        patches = tower.select(pixels).kept[:, first:].cpu() - first  # (B, D), CLS left out
        hits += on_sign.gather(1, patches).sum().item()
        kept += patches.numel()
    return 100 * hits / kept if kept else float("nan")


def stacks(pictures: dict[str, Picture]) -> Iterator[Tensor]:
    pixels = [picture.pixels for picture in pictures.values()]
    for first in range(0, len(pixels), ENCODE):
        yield torch.stack(pixels[first : first + ENCODE])


def describe(args: argparse.Namespace, name: str, bench: Bench, rows: list[Row]) -> dict:
    return {
        "checkpoint": name,
        "questions": len(bench.questions),
        "images": len(bench.pictures),
        "random_seeds": args.seeds,
        "patch_on_sign_if_covered_more_than": None if bench.on_sign is None else COVERED,
        "rows": [row._asdict() for row in rows],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def to_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([f"{value:.3f}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()


def to_markdown(rows: list[Row], patches: int) -> str:
    """A line per budget, selectors side by side: accuracy %, and the share of kept patches on signs in brackets."""

    def cell(row: Row) -> str:
        return f"{row.accuracy:.1f}" + ("" if row.on_signs is None else f" ({row.on_signs:.0f})")

    full, *others = rows
    lines = [
        "Accuracy in %" + ("" if full.on_signs is None else " (in brackets: % of kept patches on a sign)"),
        "",
        "| tokens per image | kept + merged | " + " | ".join(SELECTORS.values()) + " |",
        "|---:|---:|" + "---:|" * len(SELECTORS),
        f"| {full.tokens} (all {patches} patches) | | " + " | ".join([cell(full)] * len(SELECTORS)) + " |",
    ]
    for first in range(0, len(others), len(SELECTORS)):
        group = others[first : first + len(SELECTORS)]
        split = f"{group[0].dominant} + {group[0].contextual}"
        lines.append(f"| {group[0].tokens} | {split} | " + " | ".join(map(cell, group)) + " |")
    return "\n".join(lines)


def import_pyplot():
    try:
        import matplotlib
    except ImportError:
        raise ValueError("The plot needs matplotlib: pip install matplotlib.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(plt, rows: list[Row], bench: Bench, path: Path) -> None:
    """Accuracy and, if known, the share of kept patches on signs, over the tokens per image."""
    full, *others = rows
    panels = 1 if bench.on_sign is None else 2
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.2), squeeze=False, layout="constrained")
    for selector, label in SELECTORS.items():
        line = [row for row in others if row.selector == selector]
        tokens = [row.tokens for row in line]
        (curve,) = axes[0, 0].plot(tokens, [row.accuracy for row in line], marker="o", label=label)
        if any(row.lowest != row.highest for row in line):
            low, high = [row.lowest for row in line], [row.highest for row in line]
            axes[0, 0].fill_between(tokens, low, high, color=curve.get_color(), alpha=0.2, linewidth=0)
        if panels == 2:
            axes[0, 1].plot(tokens, [row.on_signs for row in line], marker="o", label=label)
    axes[0, 0].axhline(full.accuracy, color="grey", linestyle="--", label=f"all {full.tokens} tokens")
    axes[0, 0].set(ylabel="accuracy (%)", title=f"{len(bench.questions)} questions")
    if panels == 2:
        axes[0, 1].axhline(full.on_signs, color="grey", linestyle="--", label="all patches")
        axes[0, 1].set(ylabel="kept patches on a sign (%)", title=f"{len(bench.pictures)} images", ylim=(0, 103))
    ticks = sorted({row.tokens for row in others})
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel(f"tokens per image, of {full.tokens}")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.sweep",
        description="Accuracy at a half to a thirty-second of an image's tokens: VisionZip, random, uniform.",
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="folder or hub id; without it, the embedded model and data")
    add("--question-file", metavar="FILE", help="JSONL with question_id, image, text (default: as llava.eval.run)")
    add("--image-folder", metavar="DIR", help="what `image` is relative to")
    add("--annotation-file", metavar="FILE", help="the true answers")
    add("--limit", type=positive, metavar="N", help="only the first N questions")
    add("--seeds", type=positive, default=3, metavar="N", help="random selections to average (default: 3)")
    add("--max-new-tokens", type=positive, default=32, metavar="N", help="longest answer, in tokens (default: 32)")
    add("--batch-size", type=positive, default=32, metavar="N", help="questions at a time (default: 32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--out", metavar="DIR", help="default: docs/embedded; with a checkpoint, playground/results/sweep/CHECKPOINT")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
