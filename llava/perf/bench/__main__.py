"""Measure requests stage by stage, whole runs, and growth, side by side: `python -m llava.perf.bench`.

Without a checkpoint, weights are random: neither time nor memory depends on them.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

from llava.perf.sizes import SIZES
from llava.utils.cli import add_verbose, not_negative, positive, print_once, program, run_command
from llava.utils.files import make_folder, require_own, write_json, write_text

PARTS = ("stages", "workload", "growth")
COMMAND = "python -m llava.perf.bench"
EMBEDDED = "the embedded model"
GPU_PLAN = {  # what is measured on which model unless models are named
    "llava-next-7b": PARTS,
    "llava-next-13b": ("stages", "workload"),
    "llava-1.5-7b": ("stages",),
    "llava-1.5-13b": ("stages",),
}
CPU_PLAN = {"tiny": ("stages", "workload"), EMBEDDED: ("workload", "growth")}
QUICK_PLAN = {"tiny": ("stages",), EMBEDDED: ("workload", "growth")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(bench, parse_arguments(argv))


def bench(args: argparse.Namespace) -> int:
    """Measure what was asked for, one model after the other, and write it down after each; returns the exit status."""
    import torch  # torch and all: not before the flags are known to be right

    from llava.perf.bench.growth import double_processes
    from llava.perf.measure import measure_device
    from llava.utils.environment import device_of, versions
    from llava.utils.processes import ALONE

    require_possible(args)
    device = torch.device(device_of(args.device, ALONE))
    is_gpu = device.type == "cuda"
    dtype = getattr(torch, args.dtype or ("bfloat16" if is_gpu else "float32"))
    out = make_folder(args.out)
    require_own([out / "bench.json", out / "bench.md"], COMMAND)
    peaks = measure_device(device, dtype)
    about = {
        "command": " ".join([COMMAND, *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "on": device.type,
        "device": peaks._asdict(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    results: dict[str, list] = {part: [] for part in PARTS}
    for name, parts in plan_of(args, is_gpu).items():
        measure_model(args, name, parts, device, dtype, peaks, results)
        gc.collect()
        write(out, about, peaks, results)
    if "growth" in args.parts and not is_gpu:
        results["growth"].append(double_processes())
    text = write(out, about, peaks, results)
    print(text)
    print_once(f"\nWritten: {', '.join(str(path) for path in sorted(out.glob('bench*')))}")
    return 0


def require_possible(args: argparse.Namespace) -> None:
    """Raise ValueError for options that exclude each other, or a checkpoint that cannot be read, before measuring."""
    from llava.perf.sizes import find_size

    if args.checkpoint and (args.shape or args.layers):
        raise ValueError("A checkpoint has a shape: leave --shape and --layers out, or the checkpoint.")
    if args.answer < 2:
        raise ValueError(f"--answer {args.answer}: a decoding step lies between two tokens; ask for 2 or more.")
    if args.checkpoint:
        find_size(args.checkpoint)


def plan_of(args: argparse.Namespace, is_gpu: bool) -> dict[str, list[str]]:
    """Choose the models, and what is measured on each."""
    named = [args.checkpoint] if args.checkpoint else args.shape
    usual = GPU_PLAN if is_gpu else QUICK_PLAN if args.quick else CPU_PLAN
    plan = dict.fromkeys(named, PARTS) if named else usual
    plan = {name: [part for part in parts if part in args.parts] for name, parts in plan.items()}
    return {name: parts for name, parts in plan.items() if parts}


def measure_model(args, name: str, parts: Sequence[str], device, dtype, peaks, results: dict[str, list]) -> None:
    """Add what is measured on one model to `results`."""
    import torch

    from llava.inference.decoding import Decoding
    from llava.perf.bench.growth import measure_growth
    from llava.perf.bench.workload import Endless

    setting, tokenizer = open_model(args, name, device, dtype)
    is_gpu, is_random = device.type == "cuda", name in SIZES
    budgets = args.budgets or setting.size.budgets
    fast = args.fast or ["graphs" if is_gpu else "static"]
    batches = args.batch_sizes or ([1] if args.quick else [1, 4, 16] if is_gpu else [1, 4])
    setting = setting._replace(patience=args.patience / len(batches))
    kind = partial(Endless, "vicuna_v1") if is_random else Decoding
    brief = kind(max_new_tokens=2 if is_random else 8).settled(setting.model.config, tokenizer)  # "Yes" and the end
    if "stages" in parts:
        results["stages"] += measure_stages(setting, budgets, batches, fast, peaks)
    if "workload" in parts:
        long = replace(brief, max_new_tokens=5) if is_random else brief
        results["workload"] += measure_workloads(args, setting, tokenizer, budgets[0], fast[0], brief, long)
    if "growth" in parts:
        results["growth"] += measure_growth(setting, tokenizer, budgets[0], fast[0], brief, max(2, args.images // 4))
    if is_gpu:
        torch.cuda.empty_cache()


def measure_stages(setting, budgets, batches: Sequence[int], fast: Sequence[str], peaks) -> list:
    """Measure single requests stage by stage, at each batch size."""
    from llava.perf.bench.stages import measure_batch, variants_of

    rows = []
    for batch in batches:
        rows += measure_batch(setting, variants_of(setting.size, budgets, batch, fast), batch, peaks)
        for mode in fast:
            setting.model.engine(mode).clear()
    return rows


def measure_workloads(args, setting, tokenizer, budget: tuple[int, int], fast: str, brief, long) -> list:
    """Time whole runs of questions; `brief` and `long` say how those like POPE's and like TextVQA's are answered."""
    from llava.perf.bench.workload import compare_runs, draw_images, pope_shaped, textvqa_shaped

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        images = draw_images(Path(folder), args.images)
        workloads = (pope_shaped(Path(folder), images, brief), textvqa_shaped(Path(folder), images, long))
        for workload in workloads:
            runs += compare_runs(setting, tokenizer, workload, budget, fast, batch_size=16, sample=args.sample)
    return runs


def open_model(args: argparse.Namespace, name: str, device, dtype) -> tuple:
    """Build a model of random weights, or load a checkpoint; returns its setting and a tokenizer."""
    from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model
    from llava.model.tokenizer import load_tokenizer
    from llava.perf.bench.stages import Setting
    from llava.perf.sizes import ModelSize, build_model
    from visionzip_patch import unzip

    if name in SIZES:
        size = SIZES[name]
        if args.layers:
            size = size._replace(layers=args.layers)
        model = build_model(size, device, dtype)
        tokenizer = load_tokenizer(str(playground() / EMBEDDED_CHECKPOINT))
        label = f"{name}, {args.layers} layers" if args.layers else name
        processor = model.get_vision_tower().image_processor
        model.generation_config.eos_token_id = None  # random weights end anywhere
    else:
        name = str(playground() / EMBEDDED_CHECKPOINT) if name == EMBEDDED else name
        tokenizer, model, processor, _ = load_pretrained_model(name, device=device, dtype=dtype)
        unzip(model)
        size = ModelSize.from_config(model.config, model.get_vision_tower())
        label = get_model_name_from_path(name)
    return Setting(label, model, processor, size, device, dtype, args.text, args.answer, args.patience), tokenizer


def write(out: Path, about: dict, peaks, results: dict[str, list]) -> str:
    """Write bench.json, bench.md and charts, as far as there is something; returns the text."""
    from llava.perf.bench import report

    sections = [
        f"{report.describe_peaks(peaks)} {about['dtype']}, {about['date']}: `{about['command']}`",
        report.LEGEND,
    ]
    for name in dict.fromkeys(row.shape for row in results["stages"]):
        rows = [row for row in results["stages"] if row.shape == name]
        sections += [f"## {name}: a request, ms", report.stages_table(rows)]
        sections += [f"## {name}: memory and counted work", report.work_table(rows)]
        sections += [f"## {name}: measured ÷ calculated", report.calculation_table(rows)]
        report.draw(rows, f"{name}, {peaks.name}", out / f"bench-{name.replace(', ', '-').replace(' ', '-')}.png")
    for name in dict.fromkeys(run.shape for run in results["workload"]):
        runs = [run for run in results["workload"] if run.shape == name]
        sections += [f"## {name}: whole runs", report.workload_table(runs)]
    if results["growth"]:
        sections += ["## Growth", report.growth_table(results["growth"])]
    sections += ["## Goals", report.goals_table(*(results[part] for part in PARTS), is_gpu=about["on"] == "cuda")]
    text = "\n\n".join(sections)
    write_text(out / "bench.md", f"{text}\n")
    write_json(
        out / "bench.json", {**about, **{part: [to_dict(row) for row in rows] for part, rows in results.items()}}
    )
    return text


def to_dict(value):
    """Turn a tree of NamedTuples into a tree of dicts."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    return {key: to_dict(item) for key, item in value.items()} if isinstance(value, dict) else value


def budget(text: str) -> tuple[int, int]:
    """Read a budget such as 54+10 from the command line."""
    dominant, plus, contextual = text.partition("+")
    if not (plus and dominant.isdecimal() and contextual.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no budget; write 54+10 for 54 dominant and 10 contextual tokens")
    return int(dominant), int(contextual)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.perf.bench"),
        description="Time, memory and counted work of requests and of whole runs, several ways side by side.",
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="folder or hub id; without it, random weights of --shape")
    add(
        "--shape",
        nargs="+",
        choices=SIZES,
        metavar="NAME",
        help=f"of {', '.join(SIZES)} (default: tiny on a CPU, all others on a GPU)",
    )
    add("--layers", type=positive, metavar="N", help="of the language model, to cut a shape for a slow machine")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all of them")
    sizes = "requests at a time (default: 1 4 16; on a CPU 1 4; with --quick 1)"
    add("--batch-sizes", nargs="+", type=positive, metavar="N", help=sizes)
    add(
        "--budgets", nargs="+", type=budget, metavar="D+C", help="kept + merged tokens of a crop (default: the paper's)"
    )
    add("--fast", nargs="+", choices=("static", "graphs", "compile"), help="our ways (default: graphs; CPU: static)")
    add("--text", type=positive, default=60, metavar="N", help="tokens of a prompt without its image (default: 60)")
    add("--answer", type=positive, default=16, metavar="N", help="tokens of an answer, at least 2 (default: 16)")
    add("--images", type=positive, default=32, metavar="N", help="of a whole run (default: 32)")
    add(
        "--sample",
        type=positive,
        default=24,
        metavar="N",
        help="questions that upstream's way is timed on (default: 24)",
    )
    add(
        "--patience",
        type=not_negative,
        default=10,
        metavar="S",
        help="seconds for a stage in all ways and batches, if three rounds are done (default: 10)",
    )
    add("--quick", action="store_true", help="two minutes on a CPU: batch 1, few rounds, small runs")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--dtype", choices=("float16", "bfloat16", "float32"), help="default: bfloat16 on a GPU, float32 on a CPU")
    add(
        "--out",
        default="playground/results/bench",
        metavar="DIR",
        help="for bench.json, bench.md and charts (default: playground/results/bench)",
    )
    add_verbose(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.patience, args.images, args.sample = min(args.patience, 5), min(args.images, 8), min(args.sample, 12)
    return args


if __name__ == "__main__":
    sys.exit(main())
