"""The files of a checkpoint, in a folder or on the hub."""

import os
import re
from pathlib import Path

from transformers.utils.hub import cached_file

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
LONGEST_HUB_ID = 96


def require_reachable(path: str, hub: dict) -> None:
    """Refuse a hub id that neither the hub nor the cache has: asked once, not once per file.

    Raises:
        ValueError: it cannot be fetched, and why.
    """
    if os.path.exists(path) or not is_hub_id(path):
        return
    try:
        cached_file(path, "config.json", **hub)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"No checkpoint at {path!r}: there is no such folder, and it cannot be fetched as a hub id ({reason})."
        ) from error


def find(path: str, name: str, hub: dict) -> str | None:
    """Return where a checkpoint's file is on this disk, downloaded if `path` is a hub id; None if there is none."""
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    if os.path.exists(path) or not is_hub_id(path):
        return None
    return cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )


def is_hub_id(path: str) -> bool:
    """Return whether a text may be a model's id on the hub: `name` or `owner/name`."""
    return len(path) <= LONGEST_HUB_ID and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


def what_is_there(path: str) -> str:
    """Describe what is found at a path, as the end of a sentence."""
    if os.path.isdir(path):
        names = sorted(entry.name + ending(entry) for entry in Path(path).iterdir())
        return f"the folder holds {', '.join(names[:12]) or 'nothing'}{' …' if len(names) > 12 else ''}."
    if os.path.exists(path):
        return "it is a file."
    if not is_hub_id(path):
        return "there is no such folder."
    return "there is no such folder, but a hub id of that name."


def ending(entry: Path) -> str:
    """Return what follows the name of a folder or a device in a list of names; nothing follows a file's."""
    return "" if entry.is_file() else "/" if entry.is_dir() else " (no file)"
