"""Answer a JSONL file of questions, with LLaVA's flags: `python -m llava.eval.model_vqa`.

As `llava.eval.model_vqa_loader`, with room for longer answers.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.eval import model_vqa_loader
from llava.eval.model_vqa_loader import make_parser
from llava.utils.cli import completed, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(eval_model, parse_arguments(argv))


def eval_model(args) -> int:
    """Answer the questions that have no answer yet; see `llava.eval.model_vqa_loader.eval_model`."""
    return model_vqa_loader.eval_model(completed(args, parse_arguments([])))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    return make_parser("model_vqa", max_new_tokens=1024).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
