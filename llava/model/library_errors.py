"""Errors of libraries about a user's files, reported as ValueErrors that name the file."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError

OURS = ("llava", "visionzip_patch")
DEVICE_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Report any error of a library about a user's files as a ValueError: "`what`: the reason".

    For calls of transformers, tokenizers and peft alone. Missing packages and full memory are reported as they are, and
    so is what goes wrong in a line of our own, where libraries call us back.
    """
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError, *DEVICE_ERRORS):
        raise
    except ValueError as error:
        raise ValueError(f"{what}: {reason(error)}") from error
    except Exception as error:  # they raise anything, KeyError and ZeroDivisionError as well
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] in OURS:
            raise
        raise ValueError(f"{what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what an error of a library says, as a sentence."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    said = str(cause).strip()
    if isinstance(cause, ValueError) and said:
        return said
    return f"{type(cause).__name__} ({said.partition(chr(10))[0].rstrip('.')})."
