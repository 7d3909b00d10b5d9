"""Run a benchmark: `python -m llava.eval.run textvqa [CHECKPOINT] [--dominant D --contextual C]`.

Without CHECKPOINT the embedded model answers the embedded questions, with all tokens and zipped, on any machine.
Started by torchrun, every process answers its part; the first one brings the parts together and scores.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.eval.data_options import add_data_options
from llava.eval.tasks import TASKS
from llava.inference.budget import add_budget_options
from llava.utils.cli import EXIT_STATUSES, add_conv_mode, add_verbose, positive, program, run_command, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Answer the questions and score the answers; returns the exit status."""
    # torch and all: not before the flags are known to be right
    from llava.eval.benchmark import run_benchmark
    from llava.eval.options import EvalOptions

    return run_benchmark(EvalOptions.of(args))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("llava.eval.run"),
        usage="%(prog)s TASK [CHECKPOINT] [--dominant D --contextual C] [option ...]; --help lists them",
        description="Answer the questions of a benchmark with a LLaVA checkpoint and score them.\n"
        "An interrupted run goes on with the same command; one of the embedded model starts again.",
        epilog=f"tasks:\n{list_tasks()}\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=sorted(TASKS), metavar="TASK", help="a benchmark; the list is below")
    parser.add_argument("checkpoint", nargs="?", help="folder or hub id; without it, the embedded model and data")
    parser.add_argument("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and count, questions with unusable images")
    add_verbose(parser)

    add = add_budget_options(parser, default="what the checkpoint carries, else all tokens").add_argument
    add("--budgets", metavar="LIST", help="several, one after the other: full,192,128,64 per image, or 54+10 per crop")
    add("--compare-full", action="store_true", help="run with all tokens too, for a row of the same table")

    add_data_options(parser)

    add = parser.add_argument_group("output (default: playground/results/TASK/CHECKPOINT/BUDGET.jsonl)").add_argument
    add("--answers-file", metavar="FILE", help="JSONL of the answers; FILE.result.json gets the score")
    add("--out", metavar="DIR", help="folder for BUDGET.jsonl and its result")
    add("--overwrite", action="store_true", help="discard earlier answers instead of going on from them")

    group = parser.add_argument_group("model")
    add_conv_mode(group)
    add = group.add_argument
    add("--max-new-tokens", type=positive, metavar="N", help="longest answer, in tokens (default: the task's)")
    add("--batch-size", type=positive, default=16, metavar="N", help="questions at a time (default: 16)")
    add("--num-workers", type=whole, metavar="N", help="processes for images (default: one per free core, at most 8)")
    ways = ("static", "graphs", "compile", "off")
    add("--fast", choices=ways, help="plain steps (default), CUDA graphs, Inductor, or off: transformers' loop")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--dtype", choices=("float16", "bfloat16", "float32"), help="default: float16 on a GPU, float32 on a CPU")
    add("--load-8bit", action="store_true", help="quantize the language model to 8 bits (bitsandbytes)")
    add("--load-4bit", action="store_true", help="quantize the language model to 4 bits (bitsandbytes)")
    add("--flash-attn", action="store_true", help="flash-attn 2 in the language model instead of SDPA")
    return parser.parse_args(argv)


def list_tasks() -> str:
    """List the tasks, a line each: name, benchmark, what it asks for."""
    width = max(map(len, TASKS))
    return "\n".join(f"  {name:{width}}  {task.title}: {task.about}" for name, task in TASKS.items())


if __name__ == "__main__":
    sys.exit(main())
