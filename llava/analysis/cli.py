"""Options that the analyses share."""

import argparse

from llava.utils.cli import EXIT_STATUSES, add_verbose, positive


def make_parser(analysis: str, description: str, batch_of: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all analyses have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m llava.analysis.{analysis}", description=description, epilog=EXIT_STATUSES
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="folder or hub id; without it, the embedded model")
    add("--batch-size", type=positive, default=32, metavar="N", help=f"{batch_of} at a time (default: 32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--out", metavar="DIR", help=f"default: playground/results/analysis/{analysis}/CHECKPOINT")
    add_verbose(parser)
    return parser
