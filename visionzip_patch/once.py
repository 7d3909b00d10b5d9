"""Warnings that are said once, however often their cause comes up."""

import logging
from collections.abc import Hashable

_said: set[Hashable] = set()


def warn_once(logger: logging.Logger, message: str, *args: Hashable, about: Hashable = None) -> None:
    """Log a warning unless this process has logged it already.

    Args:
        logger: of the module that warns.
        message: as of `logger.warning`, with the `args` that go into it.
        about: what tells two warnings apart, where `args` differ from one time to the next (default: `args`).
    """
    key = (logger.name, message, args if about is None else about)
    if key not in _said:
        _said.add(key)
        logger.warning(message, *args, stacklevel=2)


def forget() -> None:
    """Let every warning be said once more."""
    _said.clear()
