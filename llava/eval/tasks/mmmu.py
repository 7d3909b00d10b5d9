"""MMMU: college exams in thirty subjects, several images to a question.

https://mmmu-benchmark.github.io
"""

import re
from pathlib import Path

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_lines
from llava.eval.metrics import mmmu
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Rows, Task, answered_in, percent
from llava.inference.instructions import LETTER, SHORT
from llava.utils.files import read_jsonl

IMAGES = [f"image_{number}" for number in range(1, 8)]
COLUMNS = " ".join(["id question options answer question_type", *IMAGES])


def read_mmmu(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read validation.jsonl: the rows of the Hugging Face data set MMMU/MMMU, its images in files.

        id                  "validation_Art_Theory_12"
        question            text with "<image 1>" to "<image 7>" in it
        options             list of texts, which may hold these too; as in the data set it may be written as text
        answer              the letter of an option, or the open answer
        question_type       "multiple-choice" or "open"
        image_1 … image_7   names of files in images/; those that a row does not have are left out

    They are asked as lmms-eval's task `mmmu_val` asks LLaVA (its mmmu_doc_to_text and mmmu_doc_to_visual, and
    generate_until of its model), as published numbers are made so: "<image 1>" stays in the text as it is, and the
    pictures named there stand before the text, in the order of their numbers, each once.
    """

    def fields(entry: dict) -> Fields:
        lines = [entry["question"]]
        if is_choice := entry["question_type"] == "multiple-choice":
            lines += [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(mmmu.read_list(entry["options"]))]
        text = "\n".join([*lines, LETTER if is_choice else SHORT])  # these begin with a line break: one line is empty
        return entry["id"], tuple(entry[f"image_{n}"] for n in sorted(set(re.findall(r"<image (\d+)>", text)))), text

    return read_entries(path, [row for _, row in read_jsonl(path)], fields, limit)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy of all questions alike, and of each discipline; in percent."""
    questions = [question for _, question in read_jsonl(data.answers)]
    answered = answered_in(rows, (question["id"] for question in questions), data.answers)
    result = mmmu.score([question for question in questions if question["id"] in answered], rows)
    return percent({"accuracy": result.overall, **result.disciplines})


def convert(data: Data, rows: Records) -> Files:
    """Write the validation split of all subjects from the data set."""
    entries = []
    for row in rows:
        images = {name: image for name, image in row.items() if name.startswith("image_") and image}
        names = {name: save(data.image_folder, f"{row['id']}_{name[-1]}.png", images[name]) for name in images}
        entries.append({name: row[name] for name in ("id", "question", "options", "answer", "question_type")} | names)
    return {data.question_file: to_lines(entries)}


TASKS = (
    Task(
        name="mmmu",
        title="MMMU",
        about="college exams, the validation set",
        data=Data(
            Path("data/eval/mmmu/validation.jsonl"),
            Path("data/eval/mmmu/images"),
            Path("data/eval/mmmu/validation.jsonl"),
            fetch=(
                "the validation split of all subjects, its images as files, to playground/data/eval/mmmu "
                "(validation.jsonl, images): https://huggingface.co/datasets/MMMU/MMMU",
            ),
        ),
        source=Source("MMMU", convert, (Part(COLUMNS, "validation"),)),
        metric=score,
        headline="accuracy",
        read=read_mmmu,
        paper="MMMU",
        note="MMMU: the validation set. Letters that cannot be read are drawn, always alike. With all tokens, four "
        "images and more can exceed a context of 2048 tokens; the end of such a prompt is cut off.",
    ),
)
