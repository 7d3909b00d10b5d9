"""AI2D: multiple choice on diagrams of school books, the test set.

https://prior.allenai.org/projects/diagrams

Asked and scored as by lmms-eval's task `ai2d`.
"""

import re
import string
from collections.abc import Mapping
from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save_unnamed, to_lines
from llava.eval.metrics.tally import tally
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Rows, Task, answered_in, percent
from llava.inference.instructions import LETTER
from llava.utils.files import read_jsonl

LETTER_FIRST = re.compile(r"\s*([A-Z])\.")  # an answer like "C. leaf" is its letter
UNPUNCTUATED = str.maketrans("", "", string.punctuation)


def read_ai2d(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read test.jsonl: rows of the Hugging Face data set lmms-lab/ai2d with an id, its images in files.

    id        a whole number
    question  text
    options   list of texts
    answer    which of them is right, from 0
    image     name of a file in images/
    """

    def fields(entry: dict) -> Fields:
        options = (f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(entry["options"]))
        return entry["id"], (entry["image"],), "\n".join([entry["question"], *options])

    return read_entries(path, [row for _, row in read_jsonl(path)], fields, limit)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the share of answers that choose the right letter, in percent."""
    entries = {str(row["id"]): row for _, row in read_jsonl(data.answers)}
    answered_in(rows, entries, data.answers)

    def is_right(row: Mapping) -> bool:
        return chosen(row["text"]) == chr(ord("A") + int(entries[str(row["question_id"])]["answer"]))

    return percent({"accuracy": tally(map(is_right, rows))})


def chosen(text: str) -> str:
    """Find the choice in an answer: a letter and a period at its beginning, else all of it but case and punctuation."""
    first = LETTER_FIRST.match(text)
    return first[1] if first else text.translate(UNPUNCTUATED).strip().upper()


def convert(data: Data, rows: Records) -> Files:
    """Write test.jsonl from the data set. It leaves out ids and names of images, so they are made up here."""
    entries = []
    for number, row in enumerate(rows):
        entry = {"id": number, "image": save_unnamed(data.image_folder, row["image"])}
        entries.append(entry | {field: row[field] for field in ("question", "options", "answer")})
    return {data.question_file: to_lines(entries)}


TASKS = (
    Task(
        name="ai2d",
        title="AI2D",
        about="multiple choice on diagrams of school books",
        data=Data(
            Path("data/eval/ai2d/test.jsonl"),
            Path("data/eval/ai2d/images"),
            Path("data/eval/ai2d/test.jsonl"),
            fetch=(
                "the test split with an id in each row, its images as files, to playground/data/eval/ai2d (test.jsonl, "
                "images): https://huggingface.co/datasets/lmms-lab/ai2d",
            ),
        ),
        source=Source("ai2d", convert, (Part("question options answer image", "test"),), whole=True),
        metric=score,
        headline="accuracy",
        read=read_ai2d,
        prompt_suffix=LETTER,
        note="AI2D: the letter alone, or first and with a period, is an answer, as lmms-eval counts.",
    ),
)
