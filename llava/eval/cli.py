"""What the commands of this package share: options, what the user is told, exit statuses.

Imports nothing heavy, so that a wrong flag is told at once; torch and transformers follow once the command is read.
"""

import argparse
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llava.eval.chunks import current_shard
from llava.eval.questions import Question, missing_images
from llava.eval.tasks import Data, Task, playground

QUESTIONS_REFUSED, BAD_REQUEST, BUG, INTERRUPTED = 1, 2, 70, 130  # exit statuses
EXIT_STATUSES = "Exit status: 0 done, 1 some questions not answered, 2 bad request, 70 a bug, 130 interrupted."

logger = logging.getLogger(__name__)


def status_of(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit status of a command; what the user can mend is told in words, its trace only with --verbose."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    if args.verbose:
        for package in ("llava", "visionzip_patch"):
            logging.getLogger(package).setLevel(logging.DEBUG)
    try:
        hide_loading_bars()
        return command(args)
    except KeyboardInterrupt:
        return exit_with("Stopped.", INTERRUPTED)
    except (ValueError, OSError, ImportError) as error:  # a full disk, a hub that cannot be reached, no bitsandbytes
        logger.debug("Where it comes from:", exc_info=True)
        return exit_with(error, BAD_REQUEST)
    except Exception as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            traceback.print_exc()
            return exit_with("This is a mistake of the program, not yours: the lines above say where.", BUG)
        logger.debug("Where it comes from:", exc_info=True)
        return exit_with(f"Out of memory at --batch-size {args.batch_size}. Run again with half of it.", BAD_REQUEST)


def hide_loading_bars() -> None:
    """Switch off transformers' bar over the weights it loads; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    downloads_hidden = are_progress_bars_disabled()
    disable_progress_bar()
    if not downloads_hidden:
        enable_progress_bars()


def exit_with(message, status: int) -> int:
    """Say why it ends; any process may have reasons of its own, but an interruption concerns them all."""
    try:
        index = current_shard().index
    except ValueError:
        index = 0
    if index == 0 or status != INTERRUPTED:
        print(f"{f'[process {index}] ' * (index > 0)}{message}", file=sys.stderr)
    return status


def tell(message: str) -> None:
    """Say something once, however many processes run."""
    if current_shard().index == 0:
        print(message, file=sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings from anyone."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="say more, and where an error comes from")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data (default: LLaVA's layout under playground/data)").add_argument
    add("--question-file", metavar="FILE", help="JSONL with question_id, image, text")
    add("--image-folder", metavar="DIR", help="what `image` is relative to")
    add("--annotation-file", metavar="FILE", help="the true answers")
    add("--limit", type=positive, metavar="N", help="only the first N questions")


def choose_data(args: argparse.Namespace, task: Task) -> Data:
    """The files to use, all of which exist, for the options of `add_data_options`."""
    default = task.data if args.checkpoint else task.embedded
    names = ("question_file", "image_folder", "annotation_file")
    paths = [Path(getattr(args, name) or playground() / getattr(default, name)) for name in names]
    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(
            f"{task.name} needs files that are not there: {', '.join(map(str, missing))}. {default.how_to_fetch()}\n"
            f"Or name other places with --question-file, --image-folder and --annotation-file."
        )
    return Data(*paths, fetch=default.fetch)


def require_images(questions: Iterable[Question], question_file: str | Path, folder: str | Path, ways_out: str) -> None:
    """Raises ValueError, which ends in `ways_out`, if an image is not in `folder`."""
    if missing := missing_images(questions, folder):
        raise ValueError(
            f"Not all images are in {folder}: {len(missing)} missing, the first of them {missing[0].image} "
            f"({question_file}, line {missing[0].line}). {ways_out}"
        )
