"""MMBench's TSV files: questions, options and images, all in one."""

import base64
import binascii
import csv
from pathlib import Path

from llava.eval.data import Data
from llava.eval.metrics.mmbench import is_empty, options_of
from llava.eval.questions import Fields, Question, read_entries
from llava.utils.files import make_folder, write_bytes

LONGEST_CELL = 2**30  # characters; an image has millions
LONGEST_INDEX = 64  # characters; a longer cell is an image, a shorter one names the row that has it


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of the file as they are.

    Raises:
        ValueError: it cannot be read, has no columns `index` and `question`, or rows without an image.
    """
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a TSV file ({error}).") from None
    finally:
        csv.field_size_limit(before)
    if not rows or not {"index", "question"} <= rows[0].keys():
        raise ValueError(f"{path}: no rows with index and question, as MMBench's files have them.")
    if bare := [row["index"] for row in rows if not row.get("image")]:
        raise ValueError(
            f"{path}: {len(bare)} of {len(rows)} rows have nothing in a column image, first index {bare[0]}; "
            f"MMBench's files hold each image there, or the index of the row that has it."
        )
    return rows


def read_mmbench(path: str | Path, limit: int | None = None) -> list[Question]:
    """Questions as LLaVA asks them: hint, question, options. Images are named as `unpack` writes them."""

    def fields(row: dict) -> Fields:
        return row["index"], (image_name(row),), question_text(row)

    return read_entries(path, read_rows(path), fields, limit)


def question_text(row: dict) -> str:
    """Hint, question and options, a line each."""
    hint = [] if is_empty(row.get("hint")) else [row["hint"]]
    return "\n".join([*hint, row["question"], *(f"{letter}. {text}" for letter, text in options_of(row).items())])


def image_name(row: dict) -> str:
    """The file of a row's image, which is called after the row that holds it: itself, unless it names another."""
    return f"{row['index'] if len(row['image']) > LONGEST_INDEX else row['image']}.jpg"


def unpack(data: Data) -> None:
    """Write the images of the question file into the image folder, but for those that are there with this content.

    Releases number their questions alike, so an image that is there may be another release's.

    Raises:
        ValueError: a cell holds no image, or one is to be written and the folder cannot be.
    """
    if not data.question_file.is_file():
        return
    for row in read_rows(data.question_file):
        if len(row["image"]) <= LONGEST_INDEX:
            continue
        try:
            content = base64.b64decode(row["image"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"{data.question_file}, index {row['index']}: image is not base64 ({error}).") from None
        path = data.image_folder / f"{row['index']}.jpg"
        if not path.is_file() or path.read_bytes() != content:
            make_folder(path.parent)
            write_bytes(path, content)


def folder_of(question_file: Path) -> Path:
    """Where the images of a question file are unpacked to: beside it, under its name."""
    return question_file.with_name(f"{question_file.stem}-images")
