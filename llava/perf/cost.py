"""Calculate what a request costs: `python -m llava.perf.cost --model llava-next-7b --dominant 27 --contextual 5`.

Prints a Markdown table: for each stage of a request, with all tokens and with VisionZip, floating-point operations,
bytes moved, size of the KV cache, the least time that a device could take, and the time to expect of it. The limit
counts as bytes only weights and KV cache; a prediction counts every result on its way to memory and back.

Each stage is a list of operations as transformers runs them: one by one, results written to memory and read again.
An operation takes as long as its arithmetic or its bytes, whichever is longer; the arithmetic of attention includes a
part for each weight of its map (`Device.per_score`). Starting an operation takes time of the host.

Left out: preprocessing, embedding and splicing of prompts, choice of the next token; that small tensors stay in caches;
that kernels of causal attention also compute some blocks that are masked.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llava.inference.budget import add_budget_options, counts_per_crop
from llava.perf.devices import (
    ATTENTION_SHARE,
    BANDWIDTH_SHARE,
    DEVICES,
    GPU_LAUNCH,
    GPU_LEAST,
    MATMUL_SHARE,
    Device,
    attainable,
)
from llava.perf.measure import measure_device
from llava.perf.roofline import (
    Op,
    decode_ops,
    kv_bytes,
    predicted,
    prefill_ops,
    project_ops,
    roofline,
    select_ops,
    tower_ops,
)
from llava.perf.sizes import SIZES, ModelSize, find_size
from llava.utils.cli import add_verbose, positive, program, run_command
from llava.utils.tables import format_number, to_table

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Request(NamedTuple):
    """The size of a batch of requests, the same with all tokens and with VisionZip."""

    text: int = 60  # tokens of the prompt without its image, the system's words included
    answer: int = 16  # new tokens
    batch: int = 1  # requests at a time, of one image each
    dtype_bytes: int = 2


class Stage(NamedTuple):
    """The operations of a stage of a request."""

    tokens: int
    parts: list[list[Op]]  # the host waits for the end of each before it starts the next
    kv: int = 0  # bytes of keys and values in the cache at its end

    def total(self, field: str) -> float:
        """Sum a field over all operations: "flops" or "bytes"."""
        return sum(op.count * getattr(op, field) for part in self.parts for op in part)


def stages(
    size: ModelSize, request: Request, image_tokens: int, budget: tuple[int, int] | None = None, *, growing: bool = True
) -> dict[str, Stage]:
    """List the stages of a batch of requests, by name.

    Args:
        size: of the model.
        request: prompts and answers.
        image_tokens: of an image, that the language model gets.
        budget: dominant and contextual tokens of a crop; None selects nothing.
        growing: see `decode_ops`.
    """
    text, answer, batch, dtype_bytes = request
    crops, visual, prompt = batch * size.crops, batch * image_tokens, image_tokens + text
    last = prompt + answer - 1  # tokens in the cache at the end; the answer's last never gets there
    tower, project = tower_ops(size, crops, dtype_bytes), project_ops(size, visual, dtype_bytes)
    select = select_ops(size, crops, *budget, dtype_bytes) if budget else []
    prefill, kv = prefill_ops(size, prompt, batch, dtype_bytes), kv_bytes(size, prompt, batch, dtype_bytes)
    first = [*tower, *select, *project, *prefill]
    step = decode_ops(size, (prompt + last) // 2, batch, dtype_bytes, growing=growing)
    steps = [replace(op, count=op.count * (answer - 1)) for op in step]
    return {
        "tower": Stage(crops * size.tower_length, [tower]),
        **({"select + merge": Stage(visual, [select])} if budget else {}),
        "project": Stage(visual, [project]),
        "prefill": Stage(batch * prompt, [prefill], kv),
        "first token": Stage(batch * prompt, [first], kv),
        "per token": Stage(batch, [step]),
        "answer": Stage(batch * (prompt + answer), [first, steps], kv_bytes(size, last, batch, dtype_bytes)),
    }


def to_markdown(
    full: dict[str, Stage], zipped: dict[str, Stage], limits: Device, speeds: Device, *, launches: bool = True
) -> str:
    """Write a table of the stages, with all tokens and zipped.

    Args:
        full, zipped: from `stages`.
        limits: the device whose speeds give the lower bounds: peaks.
        speeds: the device whose speeds give the predictions: what is attained.
        launches: whether starting an operation takes time.
    """
    lines = [["stage", "way", "tokens", "GFLOP", "MB moved", "KV MB", "limit ms", "predicted ms", "all ÷ zipped"]]
    for name, few in zipped.items():
        whole = full.get(name)
        ways = {"both": few} if few == whole else {"all": whole, "zipped": few}
        ways = {way: stage for way, stage in ways.items() if stage}  # with all tokens, nothing is selected
        seconds = {way: sum(predicted(ops, speeds, launches) for ops in stage.parts) for way, stage in ways.items()}
        for way, stage in ways.items():
            ratio = f"{seconds['all'] / seconds[way]:.2f}" if way == "zipped" and whole else ""
            lines.append([name, way, *cells(stage, limits), format_number(1e3 * seconds[way]), ratio])
    return to_table(lines, left=2)


def cells(stage: Stage, limits: Device) -> list[str]:
    """Format tokens, GFLOP, MB moved, MB of KV cache, and the lower bound in ms."""
    limit = sum(roofline(part, limits) for part in stage.parts)
    kv = format_number(stage.kv / 1e6) if stage.kv else ""
    counts = (format_number(stage.total("flops") / 1e9), format_number(stage.total("bytes") / 1e6))
    return [f"{stage.tokens:,}", *counts, kv, format_number(1e3 * limit)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Calculate and print the table; returns the exit status."""
    name, size = find_size(args.model)
    budget = counts_per_crop(args, size.budgets[0], crops=size.crops, available=size.tower_length)
    limits, speeds, dtype, source = find_device(args.device, args.dtype)
    request = Request(args.text, args.answer, args.batch, DTYPE_BYTES[dtype])
    tokens, few = args.all_tokens or size.crops * size.patches, size.crops * sum(budget)
    if tokens < few:
        raise ValueError(f"--all-tokens {tokens} is fewer than VisionZip keeps of an image: {few}.")
    full = stages(size, request, tokens, growing=not args.graphs)
    zipped = stages(size, request, few, budget, growing=not args.graphs)
    loop = "with a fixed cache and CUDA graphs" if args.graphs else "by transformers' loop"
    print(
        f"{name} in {dtype} on {limits.name}, {loop}; batch {args.batch}, {args.text} tokens of text, an answer of "
        f"{args.answer}.\nVisual tokens of an image: {tokens:,} → {few:,} ({size.crops} × ({budget[0]} + "
        f"{budget[1]})).\n{source}\n\n{to_markdown(full, zipped, limits, speeds, launches=not args.graphs)}"
    )
    return 0


def find_device(name: str, dtype: str | None) -> tuple[Device, Device, str, str]:
    """Look up or measure a device: its limits, the speeds to expect, the data type, and a sentence on their source."""
    if name.lower() == "this":
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
        found = measure_device(device, getattr(torch, dtype))
        return found, found, dtype, f"Measured now: {describe(found)}."
    by_name = {known.lower(): peak for known, peak in DEVICES.items()}
    if name.lower() not in by_name:
        raise ValueError(f"--device {name!r} is unknown; choose one of {', '.join(DEVICES)}, or this to measure it.")
    if dtype == "float32":
        raise ValueError(
            f"--dtype float32 with --device {name}: its data sheet is known for bfloat16 and float16. "
            f"Choose one of them, or --device this to measure this machine."
        )
    peak = by_name[name.lower()]
    source = (
        f"Limits by its data sheet: {peak.matmul / 1e12:.4g} TFLOP/s, {peak.bandwidth / 1e9:.4g} GB/s.\n"
        f"Predictions assume {MATMUL_SHARE:.0%} of the arithmetic in matrix products, {ATTENTION_SHARE:.0%} in "
        f"attention, {BANDWIDTH_SHARE:.0%} of the bandwidth,\n{GPU_LAUNCH * 1e6:.0f} µs of the host to start an "
        f"operation, and {GPU_LEAST * 1e6:.0f} µs for the shortest one."
    )
    return peak, attainable(peak), dtype or "bfloat16", source


def describe(device: Device) -> str:
    """Write the speeds of a device as two lines of text."""
    return (
        f"{device.matmul / 1e12:.3g} TFLOP/s in matrix products, {device.attention / 1e12:.3g} in attention,\n"
        f"{device.bandwidth / 1e9:.3g} GB/s copied, {device.stream / 1e9:.3g} GB/s of weights for one row, "
        f"{device.launch * 1e6:.3g} µs to start an operation"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.perf.cost"),
        description="Calculate what a request costs with all tokens and with VisionZip.",
    )
    add = parser.add_argument
    names = ", ".join(SIZES)
    add("--model", default="llava-next-7b", metavar="NAME", help=f"{names}, or a checkpoint (default: llava-next-7b)")
    add(
        "--all-tokens", type=positive, metavar="N", help="of an image without VisionZip (default: patches of all crops)"
    )
    add("--text", type=positive, default=60, metavar="N", help="tokens of the prompt without its image (default: 60)")
    add("--answer", type=positive, default=16, metavar="N", help="new tokens (default: 16)")
    add("--batch", type=positive, default=1, metavar="N", help="requests at a time (default: 1)")
    add("--dtype", choices=DTYPE_BYTES, help="default: bfloat16; float32 where this machine has no GPU")
    add("--device", default="H100", metavar="NAME", help=f"{', '.join(DEVICES)}, or this (default: H100)")
    add("--graphs", action="store_true", help="a cache of fixed size, and operations started by CUDA graphs")
    add_budget_options(parser, default="the paper's smallest for the model", counts_only=True)
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
