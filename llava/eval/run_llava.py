"""Ask a model one question about images, with LLaVA's flags: `python -m llava.eval.run_llava`.

`eval_model(args)` is what the quick start of LLaVA's README calls.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.inference.budget import add_budget_options, choose_budget
from llava.utils.cli import EXIT_STATUSES, add_decoding_options, add_verbose, completed, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Ask the question of the command line; returns the exit status."""
    eval_model(args)
    return 0


def eval_model(args) -> str:
    """Print, and return, what a model says to a question about images.

    Args:
        args: upstream's `model_path`, `model_base`, `query`, `image_file`, `sep`, `conv_mode`, `temperature`, `top_p`,
            `num_beams`, `max_new_tokens`, as attributes; also those of the command line. `model_name` is not needed.
            Images stand where `query` says <image-placeholder>, else all of them before it.

    Raises:
        ValueError: no checkpoint or image that can be used, other numbers of images and placeholders, a bad setting.
    """
    # torch and all: not before the flags are known to be right
    from llava.inference.batch import generate_batch
    from llava.inference.decoding import Decoding
    from llava.inference.loading import load
    from llava.inference.preprocess import Picture
    from llava.mm_utils import process_images
    from llava.model.description import read_config
    from llava.utils.environment import device_of
    from llava.utils.processes import ALONE

    args = completed(args, parse_arguments(["--model-path", "", "--image-file", "", "--query", ""]))
    images = load_images(image_parser(args))
    question = args.query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    if (places := question.count(DEFAULT_IMAGE_TOKEN)) not in (0, len(images)):
        raise ValueError(f"The query has places for {places} images, but {len(images)} were given: {args.image_file}.")
    decoding = Decoding(args.conv_mode, args.max_new_tokens, args.temperature, args.top_p, args.num_beams)
    budget = choose_budget(args, *read_config(args.model_path, args.model_base), usual=False)
    options = {"model_base": args.model_base, "device": device_of("auto", ALONE), "visionzip": budget}
    tokenizer, model, processor = load(args.model_path, **options)
    pictures = [Picture(process_images(image, processor, model.config)[0], image.size) for image in images]
    (answer,) = generate_batch(model, tokenizer, [question], [pictures], decoding).texts
    print(answer)
    return answer


def image_parser(args) -> list[str]:
    """Split `args.image_file` into names at `args.sep`."""
    return args.image_file.split(args.sep)


def load_image(image_file: str):
    """Open an RGB image of a file or a http(s) URL. Raises ValueError if there is none that can be used."""
    from llava.mm_utils import fetch_image

    return fetch_image(image_file)


def load_images(image_files: Sequence[str]) -> list:
    """Open several images, each as `load_image` does."""
    return [load_image(name) for name in image_files]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava",
        description="Ask a LLaVA checkpoint one question about images.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("--model-path", required=True, metavar="CHECKPOINT", help="folder or hub id")
    add("--model-base", help="language model that a projector-only or LoRA checkpoint goes on")
    add("--image-file", required=True, metavar="FILE", help="files or URLs, with --sep between")
    add(
        "--query", required=True, metavar="TEXT", help=f"the question; {IMAGE_PLACEHOLDER} in it is where an image goes"
    )
    add("--sep", default=",", help="what separates the names of images (default: a comma)")
    add_decoding_options(parser, max_new_tokens=512)
    add_budget_options(parser, default="what the checkpoint carries, else all tokens")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
