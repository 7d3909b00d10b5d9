"""List the pictures to pick on the page of the web demo, and open those and uploaded ones."""

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from llava.inference.embedded import EMBEDDED_DATA, EMBEDDED_IMAGES, playground
from llava.mm_utils import decode_image, find_pictures, upright
from llava.utils.files import read_json

SAMPLES, QUESTIONS = 8, 4  # of each sample


class Sample(NamedTuple):
    """A picture to pick, and questions about it."""

    path: Path
    questions: list[str]


def list_samples(folder: str | None) -> list[Sample]:
    """List the first pictures of a folder, or embedded ones with the questions that their data asks about them."""
    home = Path(folder).expanduser() if folder else playground() / EMBEDDED_IMAGES
    paths = find_pictures(home)[:SAMPLES]
    if folder:
        return [Sample(path, []) for path in paths]
    asked: dict[str, list[str]] = {}
    for row in read_json(playground() / EMBEDDED_DATA / "TextVQA_0.5.1_val.json")["data"]:
        asked.setdefault(row["image_id"], []).append(row["question"])
    return [Sample(path, asked[path.stem][:QUESTIONS]) for path in paths]


def open_picture(path: Path) -> Image.Image:
    """Open a picture upright. Raises ValueError if the file is none, is damaged, or has too many pixels to decode."""
    return upright(decode_image(io.BytesIO(path.read_bytes()), path.name))
