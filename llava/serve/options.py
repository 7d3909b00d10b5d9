"""Add the options that the commands of this package share. Imports nothing heavy, as `llava.utils.cli`."""

import argparse

from llava.utils.cli import add_conv_mode, not_negative, positive


def add_talk_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add options on which model answers, and how; `llava.serve.loading` reads them."""
    add = parser.add_argument_group("model").add_argument
    add("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU if there is one")
    add("--load-8bit", action="store_true", help="quantize the language model to 8 bits (bitsandbytes)")
    add("--load-4bit", action="store_true", help="quantize the language model to 4 bits (bitsandbytes)")

    group = parser.add_argument_group("answers")
    add_conv_mode(group)
    add = group.add_argument
    add("--suffix", metavar="TEXT", help="a line under every question (default: none, but for the embedded model)")
    add(
        "--temperature",
        type=not_negative,
        default=0.0,
        help="above 0, answers are sampled (default: 0, likeliest words)",
    )
    add(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help=f"longest answer, in tokens (default: {max_new_tokens})",
    )
