"""Share options, messages and exit statuses among commands.

Imports nothing heavy, so that a wrong flag is reported at once; torch and transformers follow once it has been read.
"""

import argparse
import contextlib
import logging
import math
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TextIO

from llava.utils.processes import current_shard

QUESTIONS_REFUSED, BAD_REQUEST, BUG, INTERRUPTED, NOBODY_READS = 1, 2, 70, 130, 141  # exit statuses
EXIT_STATUSES = "Exit status: 0 done, 1 some questions not answered, 2 bad request, 70 a bug, 130 interrupted."

PATHS = ("model_path", "model_base", "image_folder", "question_file", "answers_file")  # options of upstream's commands

logger = logging.getLogger(__name__)


_program: ContextVar[str | None] = ContextVar("program", default=None)


@contextlib.contextmanager
def named_program(name: str) -> Iterator[None]:
    """Let usage lines inside the block say `name`, as the user has typed it."""
    token = _program.set(name)
    try:
        yield
    finally:
        _program.reset(token)


def program(module: str) -> str:
    """Return how the user has called a command: by the name of `named_program`, else `python -m MODULE`."""
    return _program.get() or f"python -m {module}"


def run_command(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command and return its exit status; errors that the user can fix have a trace only with --verbose."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    if args.verbose:
        for package in ("llava", "visionzip_patch"):
            logging.getLogger(package).setLevel(logging.DEBUG)
    try:
        status = attempt(command, args)
        sys.stdout.flush()  # at the interpreter's end an error could not be caught
        return status
    except BrokenPipeError:
        return hang_up()


def attempt(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command, and print why it fails; returns the exit status. Raises BrokenPipeError if nobody reads it."""
    try:
        hide_loading_bars()
        return command(args)
    except KeyboardInterrupt:
        return exit_with("Stopped.", INTERRUPTED)
    except (ValueError, OSError, ImportError) as error:  # a full disk, a hub that cannot be reached, no bitsandbytes
        if isinstance(error, BrokenPipeError) and lost_streams():
            raise
        logger.debug("Where it comes from:", exc_info=True)
        return exit_with(error, BAD_REQUEST)
    except Exception as error:
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError):
            wait_for_first_process()
            traceback.print_exc()
            return exit_with("This is a mistake of the program, not yours: the lines above say where.", BUG)
        logger.debug("Where it comes from:", exc_info=True)
        return exit_with("Out of memory. Run again with half the batch size.", BAD_REQUEST)


def hang_up() -> int:
    """Close output that nobody reads; returns the exit status of a program that ends for that reason."""
    for stream in lost_streams():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return NOBODY_READS


def lost_streams() -> list[TextIO]:
    """List which of stdout and stderr have lost their reader, as when `head` has its lines and ends."""
    lost = []
    for stream in (sys.stdout, sys.stderr):
        events = select.poll()
        with contextlib.suppress(OSError, ValueError):  # a stand-in for a stream
            events.register(stream.fileno(), 0)  # asks for nothing: a lost reader is reported anyhow
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in events.poll(0)):
            lost.append(stream)
    return lost


def hide_loading_bars() -> None:
    """Switch off transformers' progress bar for loading weights; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    downloads_hidden = are_progress_bars_disabled()
    disable_progress_bar()
    if not downloads_hidden:
        enable_progress_bars()


def exit_with(message, status: int) -> int:
    """Print why the command ends, and return the status; an interruption is reported by the first process alone."""
    try:
        index = current_shard().index
    except ValueError:
        index = 0
    wait_for_first_process()
    if index == 0 or status != INTERRUPTED:
        print(f"{f'[process {index}] ' * (index > 0)}{message}", file=sys.stderr)
    return status


def wait_for_first_process() -> None:
    """Give the first process time to report: the launcher then ends the others before they repeat it."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(1)


def print_once(message: str) -> None:
    """Print a message to stderr in the first process only."""
    if current_shard().index == 0:
        print(message, file=sys.stderr)


@contextlib.contextmanager
def silence_logging() -> Iterator[None]:
    """Silence all logging up to warnings for the length of a `with` block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def completed(args, defaults: argparse.Namespace) -> argparse.Namespace:
    """Complete an object of options: those that `args` lacks are taken from `defaults`, and "~" in `PATHS` is expanded.

    Programs written for LLaVA call `eval_model` with an object that has upstream's options alone.
    """
    options = {name: getattr(args, name, default) for name, default in vars(defaults).items()}
    options |= {name: os.path.expanduser(path) for name in PATHS if (path := options.get(name))}
    return argparse.Namespace(**options)


def positive(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    return at_least(1, text)


def whole(text: str) -> int:
    """Read a whole number of at least 0 from the command line."""
    return at_least(0, text)


def at_least(least: int, text: str) -> int:
    """Read a whole number of at least `least` from the command line."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least {least}")
    return value


def add_conv_mode(group) -> None:
    """Add --conv-mode, the prompt template, to a parser or a group of options."""
    text = "prompt template (default: the checkpoint's own, by its config.json and tokenizer)"
    group.add_argument("--conv-mode", metavar="NAME", help=text)


def add_decoding_options(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add upstream's flags for how answers are drawn; `max_new_tokens` is the default of the flag of that name."""
    add_conv_mode(parser)
    add = parser.add_argument
    text = "0 is greedy; above, answers are sampled (default: %(default)s)"
    add("--temperature", type=not_negative, default=0.2, help=text)
    add("--top_p", type=share, help="sample from the likeliest tokens that hold this share of the probability")
    add("--num_beams", type=positive, default=1, help="beams of beam search (default: %(default)s)")
    text = "longest answer, in tokens (default: %(default)s)"
    add("--max_new_tokens", type=positive, default=max_new_tokens, help=text)


def not_negative(text: str) -> float:
    """Read a finite number of at least 0 from the command line, such as a temperature or seconds."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, at least 0")
    return value


def share(text: str) -> float:
    """Read a number above 0 and at most 1 from the command line."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and at most 1")
    return value


def number(text: str) -> float:
    """Read a number; text that is none becomes nan, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add --verbose."""
    parser.add_argument("--verbose", action="store_true", help="say more, and where an error comes from")
