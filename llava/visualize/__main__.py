"""Draw what VisionZip sees and keeps: `python -m llava.visualize IMAGE [--model CHECKPOINT]`.

Draws the scores over the picture, the kept patches, and which patches each contextual token merges: as a PNG, and as an
interactive HTML page. Several images, a folder or a video are frames side by side.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.inference.budget import add_budget_options
from llava.utils.cli import EXIT_STATUSES, add_verbose, positive, program, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    from llava.visualize.render import draw  # torch and all: not before the flags are known to be right

    return draw(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("llava.visualize"),
        description="Draw what the vision tower looks at, and what VisionZip keeps and merges: a PNG and an HTML page. "
        "Several images, a folder or a video are frames side by side.",
        epilog=EXIT_STATUSES,
    )
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="image, folder of images, or video (needs PyAV)")
    parser.add_argument("--model", metavar="CHECKPOINT", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for IMAGE-visionzip.png and .html, several images: frames-visionzip; those of "
        "an earlier run are replaced (default: playground/results/pictures)",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="one map of all images: mean score of each patch, and how often it is kept. Shows what places the tower "
        "favours whatever is there",
    )
    parser.add_argument(
        "--frames",
        type=positive,
        default=8,
        metavar="N",
        help="at most so many, evenly spaced, of a folder or video (default: 8; --average takes all)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PX",
        help="side of each crop in the picture, in pixels, "
        "rounded to whole patches (default: 480 for one image, less for several)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_verbose(parser)
    add_budget_options(parser, default="what the checkpoint carries, else a ninth of the patches, 54 + 10 of 576")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
