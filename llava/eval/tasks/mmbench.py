"""MMBench: multiple choice, each question asked with its options in every rotation.

https://github.com/open-compass/MMBench

Its TSV files hold questions, options and images, all in one.
"""

import base64
import binascii
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records
from llava.eval.metrics import mmbench
from llava.eval.metrics.mmbench import LETTERS, ROTATION, is_empty, options_of
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Packed, Rows, Submission, Task, answered_in, percent
from llava.inference.instructions import LETTER, LETTER_CN
from llava.utils.files import make_folder, write_bytes

LONGEST_CELL = 2**30  # characters; an image has millions
LONGEST_INDEX = 64  # characters; a longer cell is an image, a shorter one names the row that has it


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a TSV file as they are.

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
    """Read questions as LLaVA asks them: hint, question, options. Images are named as `unpack` writes them."""

    def fields(row: dict) -> Fields:
        return row["index"], (image_name(row),), question_text(row)

    return read_entries(path, read_rows(path), fields, limit)


def question_text(row: dict) -> str:
    """Write hint, question and options, a line each."""
    hint = [] if is_empty(row.get("hint")) else [row["hint"]]
    return "\n".join([*hint, row["question"], *(f"{letter}. {text}" for letter, text in options_of(row).items())])


def image_name(row: dict) -> str:
    """Name the file of a row's image, called after the row that holds it: itself, unless it names another."""
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
    """Choose where the images of a question file are unpacked to: next to it, under its name."""
    return question_file.with_name(f"{question_file.stem}-images")


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy by letters found in the answers, in percent.

    A question counts if all its rotations are right; "single": if the first is.
    """
    table = read_rows(data.answers)
    answered = answered_in(rows, (row["index"] for row in table), data.answers)
    result = mmbench.score([row for row in table if row["index"] in answered], rows)
    return percent({"accuracy": result.circular, "single": result.vanilla})


def submit(data: Data, rows: Rows) -> bytes:
    """Make the Excel table that MMBench's server takes. Raises ImportError where there is no openpyxl."""
    table = mmbench.submission(read_rows(data.answers), rows)
    return to_xlsx([{**row, "index": int(row["index"])} for row in table])  # its server joins by whole numbers


def to_xlsx(rows: Sequence[Mapping]) -> bytes:
    """Write an Excel table. Texts stay texts: "=1" is no formula, and control characters, which it cannot hold, go."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise ImportError(
            "it is an Excel table, which needs openpyxl. After `pip install openpyxl` the same command writes it."
        ) from None

    def cell_value(value):
        return (ILLEGAL_CHARACTERS_RE.sub("", value) or None) if isinstance(value, str) else value

    workbook = Workbook()
    sheet = workbook.worksheets[0]
    for row in (rows[0], *(row.values() for row in rows)):
        sheet.append([cell_value(value) for value in row])
    for cell in (cell for line in sheet for cell in line if isinstance(cell.value, str)):
        cell.data_type = "s"
    content = io.BytesIO()
    workbook.save(content)
    return content.getvalue()


def convert(data: Data, rows: Records) -> Files:
    """Write a TSV file with the images in it, each once: rotations name the row that has it.

    The data set is of a later release than the file that LLaVA's scripts name, so some questions differ.
    """
    columns = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "source", "image")
    text, seen = io.StringIO(), set()
    writer: csv.DictWriter[str] = csv.DictWriter(
        text, columns, extrasaction="ignore", delimiter="\t", lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        first = row["index"] % ROTATION
        image = first if first in seen else base64.b64encode(row["image"]).decode()
        seen.add(row["index"])
        writer.writerow({**row, "image": image, "l2-category": row["L2-category"]})
    return {data.question_file: text.getvalue()}


def release(name: str, title: str, about: str, file: str, config: str, suffix: str) -> Task:
    """Describe one language of MMBench; its images are unpacked next to its file."""
    path = Path("data/eval/mmbench") / f"{file}.tsv"
    columns = "index question hint A B C D answer category L2-category source image"
    return Task(
        name=name,
        title=title,
        about=about,
        data=Data(
            path,
            folder_of(path),
            path,
            fetch=(
                f"{file}.tsv to playground/data/eval/mmbench: "
                "https://download.openmmlab.com/mmclassification/datasets/mmbench/",
            ),
            spellings=("data/eval/mmbench", "data/eval/mmbench_cn"),
        ),
        source=Source("MMBench", convert, (Part(columns, "dev", config),)),
        metric=score,
        headline="accuracy",
        read=read_mmbench,
        packed=Packed(folder_of, unpack),
        prompt_suffix=suffix,
        submission=Submission(submit, ".xlsx"),
        elsewhere="MMBench's server scores the submission too: https://opencompass.org.cn/leaderboard-multimodal",
        paper="MMB" * (config == "en"),
        note="MMBench: letters found in the answers here, the official server in the paper." * (config == "en"),
    )


TASKS = (
    release(
        name="mmbench",
        title="MMBench",
        about="multiple choice in every rotation, English",
        file="mmbench_dev_20230712",
        config="en",
        suffix=LETTER,
    ),
    release(
        name="mmbench_cn",
        title="MMBench-CN",
        about="multiple choice in every rotation, Chinese",
        file="mmbench_dev_cn_20231003",
        config="cn",
        suffix=LETTER_CN,
    ),
)
