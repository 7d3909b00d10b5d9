"""Warnings that are said once, however often their cause comes up, and however many processes it comes up in."""

import logging
import os
from collections.abc import Hashable

said: set[Hashable] = set()


def warn_once(
    logger: logging.Logger, message: str, *args: Hashable, about: Hashable = None, everywhere: bool = False
) -> None:
    """Log a warning unless this process has logged it already. Of several processes only the first one speaks.

    Args:
        logger: of the module that warns.
        message: as of `logger.warning`.
        *args: what goes into the message.
        about: what tells two warnings apart, where `args` differ from one time to the next (default: `args`).
        everywhere: let each process speak, for what may come up in one of them alone, as it does with its own data.
    """
    if not everywhere and os.environ.get("RANK", "0") != "0":
        return
    key = (logger.name, message, args if about is None else about)
    if key not in said:
        said.add(key)
        logger.warning(message, *args, stacklevel=2)
