"""Write what a data set of the hub holds: images as they are stored, and the texts of other files."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.utils.files import to_line, write_bytes

Records = Iterable[Mapping[str, Any]]  # rows of a table of the hub; images are the bytes of their files
Files = dict[Path, str]  # file -> its text, in the order in which they are to be written


def save(folder: Path, name: str, image: bytes | None) -> str:
    """Write an image as it is stored, unless it is there; returns `name`.

    Raises:
        ValueError: there is no image, or `name`, which comes from the data set, leads out of the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"The data set has an image named {name!r}, which would not be in {folder}.")
    if not isinstance(image, bytes):
        raise ValueError(f"The data set has no image for {name}.")
    if not (path := folder / name).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, image)
    return name


def save_unnamed(folder: Path, image: bytes | None) -> str:
    """Write an image that the data set has no name for; returns the name it gets here, the same for the same image."""
    name = f"{hashlib.sha256(image or b'').hexdigest()[:16]}.png"
    return save(folder, name, image)


def to_lines(rows: Iterable[dict]) -> str:
    """Write rows as JSON, one in a line."""
    return "".join(map(to_line, rows))


def to_json(content) -> str:
    """Write one JSON value."""
    return json.dumps(content, ensure_ascii=False)
