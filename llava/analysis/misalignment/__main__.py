"""Compare tokens chosen by the vision tower with tokens chosen by the text: `python -m llava.analysis.misalignment`.

VisionZip chooses by the tower's attention alone; FastV and SparseVLM choose by how much the text looks at each visual
token inside the language model. The paper (arXiv 2412.04467, table 5) explains by feature
misalignment why the first does better: the tower gathers what it knows of an object in few tokens, which need not lie
on the object, so the tokens that a question attends to may say little. Two predictions follow, and both are measured
on TextVQA's questions, at equal numbers of tokens:

1. Tokens chosen by the tower answer more questions than tokens chosen by the text.
2. Where the patches that the tower scores highest are masked, no choice among the others makes up for them.

Each question is asked with a picture of which only k patches are left; they are gathered from the tower's output in
raster order and projected as usual. Who chooses:

    tower   the k highest scores of the layer that LLaVA reads: attention from CLS, or received (`visionzip_patch`)
    last    attention of the prompt's last token to the patches, in layer --llm-layer of the language model
    text    the same, averaged over all tokens after the picture
    random  k patches at random, drawn for each picture; averaged over --seeds

`last` and `text` are computed once, with all patches present; attention is averaged over heads. All of that is this
project's reading, as are these: nothing is merged and CLS is left out, so that the choice alone makes the difference
(VisionZip itself is `python -m llava.analysis.sweep`); k is a half to a thirty-second of the patches; the mask covers
one patch in nine, as many as the paper's smallest budget for LLaVA-1.5 keeps (64 of 576); layer 2 is where FastV looks.
Crops of an anyres model count as one long picture, without ends of rows between.

Writes misalignment.csv and misalignment.png.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from llava.analysis.cli import make_parser
from llava.eval.data_options import add_data_options
from llava.utils.cli import add_conv_mode, at_least, positive, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    from llava.analysis.misalignment.report import analyse  # torch and all: not before the flags are known to be right

    return analyse(args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(
        "misalignment",
        "Accuracy when the tower's attention, the language model's or chance chooses the patches that are seen, with "
        "and without the tower's favourites. All pictures stay in memory: at 336 pixels 1.4 MB for each, 2.4 MB on a "
        "CPU, so 4.3 or 7.5 GB for all of TextVQA, less with --limit; of several crops, so many times as much.",
        "questions",
    )
    add = parser.add_argument
    add("--llm-layer", type=positive, default=2, metavar="N", help="whose attention chooses, from 1 (default: 2)")
    add(
        "--mask-one-in",
        type=partial(at_least, 3),
        default=9,
        metavar="N",
        help="mask this part of the patches, the tower's favourites (default: 9, a ninth; at least 3)",
    )
    add("--seeds", type=positive, default=3, metavar="N", help="random choices to average (default: 3)")
    add("--max-new-tokens", type=positive, default=32, metavar="N", help="longest answer, in tokens (default: 32)")
    add_conv_mode(parser)
    add_data_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
