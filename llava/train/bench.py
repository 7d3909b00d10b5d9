"""Measure speed and memory of tuning a projector: one optimizer step, done plainly and our way.

    python -m llava.train.bench                                             a small model, minutes on a CPU
    python -m llava.train.bench --shape 7b --batch-size 8 --out docs/bench    LLaVA-1.5-7B's size, one GPU of 80 GB

Weights are random: neither time nor memory depends on them. Each variant runs in processes of its own, so that no other
one adds to its memory, and in turns, so that the machine's load affects all alike.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tqdm import tqdm

from llava.inference.budget import USUAL, add_budget_options, counts_per_crop
from llava.perf import sizes
from llava.utils.cli import add_verbose, positive, run_command
from llava.utils.files import make_folder, require_own, write_json, write_text

PREFIX = 35  # tokens before the image, as in LLaVA-1.5's prompt
FAILED = "out of memory"
SPEED = "samples/s (slowest – fastest)"


class StepVariant(NamedTuple):
    """One way to do a step; from the second on, each variant adds one measure to the one before it."""

    name: str
    zipped: bool = True
    labelled_logits: bool = True
    checkpointing: bool = False
    cached: bool = False
    frozen: bool = True  # else every weight gets a gradient, and all but the projector's are discarded


VARIANTS = (
    StepVariant("all tokens, plain", zipped=False, labelled_logits=False, checkpointing=True, frozen=False),
    StepVariant("zipped, plain", labelled_logits=False, checkpointing=True, frozen=False),
    StepVariant("+ frozen weights without gradients", labelled_logits=False, checkpointing=True),
    StepVariant("+ logits where there are labels", checkpointing=True),
    StepVariant("+ no gradient checkpointing"),
    StepVariant("+ cached features", cached=True),
)
PLAIN = VARIANTS[1]  # what ours is compared with

SIZES = {
    "small": sizes.SIZES["tiny"]._replace(crops=1),
    "7b": sizes.SIZES["llava-1.5-7b"],
    "13b": sizes.SIZES["llava-1.5-13b"],
}


class StepMeasurement(NamedTuple):
    """What one process measured of one variant."""

    seconds: list[float]  # of each step
    peak_gb: float  # the most memory in use: of tensors on a GPU, of the process on a CPU
    loaded_gb: float  # of it, before the first step
    tokens: int  # of a sample, that the language model saw
    tflops: float  # of a step, as counted by torch's FlopCounterMode


def compare(args: argparse.Namespace) -> int:
    """Measure every variant and print the table; returns the exit status."""
    if args.out:
        require_own([make_folder(args.out) / name for name in ("training.json", "training.md")], SPEED)
    results: dict[str, list[StepMeasurement]] = {variant.name: [] for variant in VARIANTS}
    turns = [variant for _ in range(args.rounds) for variant in VARIANTS]
    with tqdm(turns, unit="run", dynamic_ncols=True) as bar:
        for variant in bar:
            bar.set_description(variant.name)
            if measurement := run_alone(variant, args):
                results[variant.name].append(measurement)
    table = to_markdown(results, args.batch_size)
    print(f"{describe(args)}\n\n{table}")
    if args.out:
        rounds = {name: [one._asdict() for one in each] for name, each in results.items()}
        write_json(args.out / "training.json", {"settings": settings(args), "ways": rounds})
        write_text(args.out / "training.md", f"{describe(args)}\n\n{table}\n")
    return 0


def run_alone(variant: StepVariant, args: argparse.Namespace) -> StepMeasurement | None:
    """Measure a variant in a process of its own; returns None if it ran out of memory."""
    options = [word for name, value in settings(args).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "llava.train.bench", *options, "--only", variant.name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return StepMeasurement(**json.loads(done.stdout.splitlines()[-1]))
    if FAILED in done.stderr.lower():
        return None
    raise ValueError(f"{variant.name!r} ended with status {done.returncode}:\n{done.stderr.strip()}")


def settings(args: argparse.Namespace) -> dict:
    """Return the options that the measurements depend on."""
    names = ("shape", "dominant", "contextual", "batch_size", "text_tokens", "labelled", "steps", "device")
    return {name: getattr(args, name) for name in names}


def measure(args: argparse.Namespace) -> int:
    """Measure one variant in this process and print it as JSON; returns the exit status."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    (variant,) = (variant for variant in VARIANTS if variant.name == args.only)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = make_model(args.shape, device, dtype)
    batch = make_batch(model, variant, args, device, dtype)
    if variant.checkpointing:
        model.gradient_checkpointing_enable()
    if not variant.frozen:
        model.requires_grad_(True)
    model.train()
    projector = model.get_model().mm_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-4)

    def step() -> None:
        model(**batch, use_cache=False, loss_only=variant.labelled_logits).loss.backward()
        optimizer.step()
        model.zero_grad()

    def finish() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    loaded = memory_gb(device)
    for _ in range(2):
        step()
    seconds = []
    for _ in range(args.steps):
        start = finish()
        step()
        seconds.append(finish() - start)
    peak = memory_gb(device)
    with FlopCounterMode(display=False) as counter:
        step()
    tokens = args.text_tokens + (
        args.dominant + args.contextual if variant.zipped else model.get_vision_tower().num_patches
    )
    print(json.dumps(StepMeasurement(seconds, peak, loaded, tokens, counter.get_total_flops() / 1e12)._asdict()))
    return 0


def memory_gb(device: str) -> float:
    """Return the most memory that was in use so far: by tensors on a GPU, by the process on a CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def make_model(size: str, device: str, dtype):
    """Build a LLaVA of that size with random weights, all frozen but the projector, which is in fp32."""
    model = sizes.build_model(SIZES[size], device, dtype).requires_grad_(False)
    model.get_model().mm_projector.float().requires_grad_(True)
    return model


def make_batch(model, variant: StepVariant, args: argparse.Namespace, device: str, dtype) -> dict:
    """Make random prompts of one image each, their last tokens labelled; returns arguments of `model`."""
    import torch

    from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
    from visionzip_patch import visionzip

    if variant.zipped:
        visionzip(model, dominant=args.dominant, contextual=args.contextual)
    torch.manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (args.batch_size, args.text_tokens + 1), device=device)
    ids[:, PREFIX] = IMAGE_TOKEN_INDEX
    labels = ids.clone()
    labels[:, : -args.labelled] = IGNORE_INDEX
    images = torch.randn(args.batch_size, 3, 336, 336, device=device, dtype=dtype)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    if not variant.cached:
        return {**batch, "images": images}
    with torch.no_grad():
        features = model.get_vision_tower().features(images)
    tokens = [crop[None].clone() for crop in features.tokens]
    positions = [crop[None].clone() for crop in features.position]
    model.get_vision_tower().drop()  # as in training with a full cache
    return {**batch, "vision_tokens": tokens, "vision_positions": positions}


def describe(args: argparse.Namespace) -> str:
    """Describe the setting in a sentence."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else "CPU, fp32"
    return (
        f"{args.shape}, {where}: batch {args.batch_size}, {args.text_tokens} text tokens of which {args.labelled} are "
        f"labelled, budget {args.dominant} + {args.contextual}; medians over {args.rounds} × {args.steps} steps."
    )


def to_markdown(results: dict[str, list[StepMeasurement]], batch_size: int) -> str:
    """Write a table, a line per variant: speed, also as a ratio to the plain zipped run, counted work, memory."""
    lines = [
        f"| way | tokens | {SPEED} | × zipped, plain | TFLOP a sample | × by count | peak GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain = results[PLAIN.name]
    for name, runs in results.items():
        if not runs:
            lines.append(f"| {name} | | {FAILED} | | | | |")
            continue
        seconds = [second for run in runs for second in run.seconds]
        speed = batch_size / median(seconds)
        span = f"{batch_size / max(seconds):.2f} – {batch_size / min(seconds):.2f}"
        ratio = count = "–"
        if plain:
            ratio = f"{median(s for run in plain for s in run.seconds) / median(seconds):.2f}"
            count = f"{plain[0].tflops / runs[0].tflops:.2f}"
        work = f"{runs[0].tflops / batch_size:.4g}"
        peak = f"{max(run.peak_gb for run in runs):.2f}"
        lines.append(f"| {name} | {runs[0].tokens} | {speed:.2f} ({span}) | {ratio} | {work} | {count} | {peak} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Measure one variant here, or compare them all; returns the exit status."""
    size = SIZES[args.shape]
    budget = counts_per_crop(args, USUAL, crops=size.crops, available=size.tower_length)
    args.dominant, args.contextual = budget
    return measure(args) if args.only else compare(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.train.bench",
        description="Speed and memory of one optimizer step of projector tuning, the plain way and ours.",
    )
    add = parser.add_argument
    add("--shape", choices=SIZES, default="small", help="sizes of the model (default: small)")
    add("--batch-size", type=positive, default=4, metavar="N", help="samples per step (default: 4)")
    add("--text-tokens", type=positive, default=256, metavar="N", help="of a sample (default: 256)")
    add("--labelled", type=positive, default=128, metavar="N", help="of these, with a label (default: 128)")
    add("--steps", type=positive, default=10, metavar="N", help="timed steps of a run, after 2 more (default: 10)")
    add("--rounds", type=positive, default=3, metavar="N", help="runs of each way (default: 3)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--out", type=Path, metavar="DIR", help="also write training.json and training.md there")
    add(
        "--only", choices=[variant.name for variant in VARIANTS], help="run one way here and print what it took as JSON"
    )
    add_budget_options(parser, default="54 + 10", counts_only=True)
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
