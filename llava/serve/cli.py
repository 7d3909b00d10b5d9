"""Talk with a model about pictures in a terminal: `python -m llava.serve.cli [--model-path CHECKPOINT]`.

Without --model-path the embedded model answers, about an embedded picture if none is named. Questions may come from a
pipe, one a line.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.eval.run_llava import load_image as load_image  # upstream has it here
from llava.inference.budget import add_budget_options
from llava.serve.options import add_talk_options
from llava.utils.cli import EXIT_STATUSES, program, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    from llava.serve.terminal import talk  # torch and all: not before the flags are known to be right

    return talk(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.serve.cli"),
        description="Talk with a LLaVA checkpoint about pictures. /help in the chat lists its commands; questions may "
        "come from a pipe, one a line.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add(
        "--model-path",
        dest="checkpoint",
        metavar="CHECKPOINT",
        help="folder or hub id (default: the embedded model)",
    )
    add(
        "--image-file",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="files or URLs, shown with the first question (default with the embedded model: one of its pictures)",
    )
    modes = ("static", "graphs", "compile")
    add("--fast", choices=modes, default="static", help="plain steps (default), CUDA graphs, or Inductor")
    add("--debug", "--verbose", dest="verbose", action="store_true", help="show prompts, and where an error comes from")

    add_budget_options(parser, default="what the checkpoint carries, else all tokens")
    add_talk_options(parser, max_new_tokens=512)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
