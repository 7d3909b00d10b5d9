"""Helpers that scripts and servers written for LLaVA import."""

import logging
import logging.handlers
import os
from pathlib import Path

from llava.constants import LOGDIR

server_error_msg = "**The server is out of reach or too busy. Ask again, or reload this page.**"
moderation_msg = "This text breaks the rules of this service. Please ask in other words."


def disable_torch_init() -> None:
    """Do nothing; kept so that scripts which call it before loading a model run unchanged.

    It once replaced `reset_parameters` of every `torch.nn.Linear` and `LayerNorm` in the process, to save the time of
    initializing weights that a checkpoint overwrites. Transformers 5 builds such models on the meta device, so nothing
    is initialized twice, and layers that other code creates later keep their proper start values.
    """


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """Make a logger that also writes to LOGDIR/`logger_filename`, one file a day in UTC; the same one when asked again.

    Unlike upstream's it leaves `sys.stdout` and `sys.stderr` as they are.
    """
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    path = Path(LOGDIR, logger_filename).absolute()
    if not any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
        logger.addHandler(handler)
    return logger


def pretty_print_semaphore(semaphore) -> str:
    """Describe an asyncio semaphore: how many may still enter, and whether it is locked. None gives "None"."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"


def violates_moderation(text: str) -> bool:
    """Refuse to judge `text`: upstream sends it to OpenAI, and counts what OpenAI does not answer as harmless.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "violates_moderation is not available: it would send what people write to OpenAI. Leave moderation off "
        "(upstream's servers: without --moderate), or call a moderation service of your choice."
    )


def rank0_print(*args, **kwargs) -> None:
    """Print in the first process of a launcher such as torchrun, or in the only one; arguments as of `print`."""
    if os.environ.get("RANK", "0") == "0":
        print(*args, **kwargs)
