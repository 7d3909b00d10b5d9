"""Measure how a vision tower's attention is distributed: `python -m llava.analysis.attention [CHECKPOINT]`.

VisionZip (arXiv 2412.04467) rests on one observation: most visual tokens get hardly any attention, and a few hold most
of it. One pass over the pictures measures it in three ways:

- distribution: how the attention in the layer that LLaVA reads is distributed over patches (the paper's figure 2);
- layers: from which layer on it is concentrated, by what the most attended tenth of the patches holds, and by the
  effective number of patches, exp of the entropy;
- mass: how much of it the k most attended patches hold, with what the paper's budgets keep marked.

`llava.analysis.attention.measure` defines a patch's share of the attention; measuring in shares, the binning,
and the two measures of concentration are this project's choice. Each crop of an anyres model counts as a picture of its
own. Writes attention-distribution, attention-layers and attention-mass, each as .csv and .png.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.analysis.cli import make_parser
from llava.utils.cli import positive, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    from llava.analysis.attention.report import analyse  # torch and all: not before the flags are known to be right

    return analyse(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("attention", "How a vision tower spreads its attention over patches and layers.", "images")
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of pictures, with its subfolders (default: the embedded ones)")
    add("--limit", type=positive, metavar="N", help="only the first N pictures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
