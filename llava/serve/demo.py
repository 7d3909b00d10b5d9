"""Serve a web page to compare all tokens with few: `python -m llava.serve.demo [CHECKPOINT]`.

Needs the `demo` extra. Serves this machine only, unless --host says otherwise; the page makes no requests elsewhere.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.inference.budget import add_budget_options
from llava.serve.options import add_talk_options
from llava.utils.cli import EXIT_STATUSES, add_verbose, positive, program, run_command

LAST_PORT = 65535


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    from llava.serve.web import serve  # torch and all: not before the flags are known to be right

    return serve(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.serve.demo"),
        description="Serve a web page: one picture, two conversations about it, with all its tokens and with few. "
        "Ctrl-C ends it.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", metavar="CHECKPOINT", help="folder or hub id (default: the embedded model)")
    add("--pictures", metavar="DIR", help="folder of pictures to pick from (default: some of the embedded ones)")
    add("--host", default="127.0.0.1", help="address to serve (default: 127.0.0.1, this machine only; 0.0.0.0 all)")
    add("--port", type=port, default=7860, help="default: 7860")
    add(
        "--visitors",
        type=positive,
        default=8,
        metavar="N",
        help="at most so many at once, each with two caches; one more, and who was idle longest goes (default: 8)",
    )
    add_verbose(parser)
    add_budget_options(parser, default="at first what the checkpoint carries, else a ninth of the patches")
    add_talk_options(parser, max_new_tokens=256)
    return parser.parse_args(argv)


def port(text: str) -> int:
    """Read the number of a port from the command line."""
    number = positive(text)
    if number > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text}: ports are numbers from 1 to {LAST_PORT}")
    return number


if __name__ == "__main__":
    sys.exit(main())
