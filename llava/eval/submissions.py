"""From a benchmark's files and a model's answers to the file that its own server or judge takes.

As LLaVA's convert_*_for_submission.py and convert_mmvet_for_eval.py make them. Each function takes the benchmark's
files and rows with `question_id` and `text`, returns the content of the file, and raises ValueError where the rows are
no whole set of answers.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llava.eval.data import Data
from llava.eval.metrics import judged, mmbench, vqa
from llava.eval.mmbench_file import read_rows
from llava.utils.files import read_jsonl

Rows = Sequence[Mapping]


class Submission(NamedTuple):
    """A file for others to score."""

    make: Callable[[Data, Rows], bytes]  # files and all answers -> content
    suffix: str = ".json"


def vqav2_test(data: Data, rows: Rows) -> bytes:
    """An entry for each question of the annotation file, which has those of the whole test set."""
    return to_json(vqa.submission([question for _, question in read_jsonl(data.annotation_file)], rows))


def vizwiz_test(data: Data, rows: Rows) -> bytes:
    return to_json(vqa.vizwiz_submission([question for _, question in read_jsonl(data.question_file)], rows))


def mmvet(data: Data, rows: Rows) -> bytes:
    return to_json(judged.mmvet_answers(rows))


def mmbench_table(data: Data, rows: Rows) -> bytes:
    """Raises ImportError too, where there is no openpyxl."""
    table = mmbench.submission(read_rows(data.annotation_file), rows)
    return to_xlsx([{**row, "index": int(row["index"])} for row in table])  # its server joins by whole numbers


def to_json(content) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def to_xlsx(rows: Sequence[Mapping]) -> bytes:
    """An Excel table. Texts stay texts: "=1" is no formula, and control characters, which it cannot hold, go."""
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
    sheet = workbook.active
    for row in (rows[0], *(row.values() for row in rows)):
        sheet.append([cell_value(value) for value in row])
    for cell in (cell for line in sheet for cell in line if isinstance(cell.value, str)):
        cell.data_type = "s"
    content = io.BytesIO()
    workbook.save(content)
    return content.getvalue()
