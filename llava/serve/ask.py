"""Ask one question about pictures: `python -m llava.serve.ask QUESTION [PICTURE ...] [--model CHECKPOINT]`.

The answer is printed as it comes. Without --model the embedded model answers, about one of its own pictures if none is
named.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.inference.budget import add_budget_options, choose_budget
from llava.serve.options import add_talk_options
from llava.utils.cli import EXIT_STATUSES, add_verbose, program, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Load the model, and print the answer as it comes; returns the exit status."""
    # torch and all: not before the flags are known to be right
    from llava.inference.chat import ChatSession
    from llava.inference.embedded import EMBEDDED_PICTURE, playground
    from llava.mm_utils import fetch_image
    from llava.serve.loading import read_options

    if not args.question.strip():
        raise ValueError("The question is empty. Write it in quotes: visionzip ask 'What is this?' PICTURE.")
    options = read_options(args)
    names = args.pictures or [str(playground() / EMBEDDED_PICTURE)] * options.is_embedded
    pictures = [fetch_image(name) for name in names]  # before the model, which may have to be fetched
    budget = choose_budget(args, options.config, options.tower, usual=False)
    tokenizer, model, processor = options.load(visionzip=budget)
    with ChatSession(model, tokenizer, processor, options.decoding) as session:
        for piece in session.ask("\n".join(filter(None, [args.question, options.suffix])), pictures):
            print(piece, end="", flush=True)
    print()
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=program("llava.serve.ask"),
        description="Ask a LLaVA checkpoint one question about pictures; the answer is printed as it comes.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("question", metavar="QUESTION", help="in quotes")
    add(
        "pictures", nargs="*", metavar="PICTURE", help="files or URLs (default with the embedded model: one of its own)"
    )
    add("--model", dest="checkpoint", metavar="CHECKPOINT", help="folder or hub id (default: the embedded model)")
    add_verbose(parser)
    add_budget_options(parser, default="what the checkpoint carries, else all tokens")
    add_talk_options(parser, max_new_tokens=512)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
