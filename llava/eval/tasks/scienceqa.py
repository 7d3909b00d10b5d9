"""ScienceQA: school questions with choices, some with an image.

https://scienceqa.github.io
"""

from pathlib import Path
from typing import Any

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json
from llava.eval.metrics import scienceqa
from llava.eval.questions import Fields, Question, read_entries
from llava.eval.tasks.base import Data, Rows, Task, answered_in, files, percent, signs
from llava.inference.instructions import LETTER
from llava.utils.files import read_json

SPLITS = "../pid_splits.json"


def read_scienceqa(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read llava_test_CQM-A.json: a list of `id`, `conversations`, and `image` where there is one."""

    def fields(entry: dict) -> Fields:
        text = entry["conversations"][0]["value"].replace("<image>", "").strip()
        return entry["id"], (entry["image"],) if entry.get("image") else (), text

    return read_entries(path, read_json(path), fields, limit)


def score(data: Data, rows: Rows) -> dict[str, float]:
    """Compute the accuracy of questions with an image, which papers report as SQA or SQA-IMG, and of all."""
    problems = read_json(data.answers)
    splits = data.answers.with_name("pid_splits.json")
    split = read_json(splits)["test"]
    answered = answered_in(rows, split, splits)
    with_image = {str(q.question_id) for q in read_scienceqa(data.question_file) if q.images}
    marked = [
        {**row, "prompt": f"<image>\n{row['prompt']}" if str(row["question_id"]) in with_image else row["prompt"]}
        for row in rows
    ]
    result = scienceqa.score(problems, [key for key in split if key in answered], marked)
    return percent({"accuracy with image": result.with_image, "accuracy": result.overall})


def convert(data: Data, rows: Records) -> Files:
    """Write the test split. The data set leaves out ScienceQA's own ids, so questions are numbered."""
    entries, problems = [], {}
    for number, row in enumerate(rows):
        key, choices = str(number), row["choices"]
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        lines = [f"Context: {row['hint']}"] * bool(row["hint"]) + [row["question"]]
        lines += [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
        entry: dict[str, Any] = {"id": key}
        if row["image"]:
            entry["image"] = save(data.image_folder, f"{key}/image.png", row["image"])
            lines.insert(0, "<image>")
        answer = {"from": "gpt", "value": letters[row["answer"]]}
        entry["conversations"] = [{"from": "human", "value": "\n".join(lines)}, answer]
        entries.append(entry)
        problems[key] = {name: row[name] for name in ("question", "choices", "answer", "hint")} | {"split": "test"}
    splits = data.answers.with_name("pid_splits.json")
    contents = {splits: {"test": list(problems)}, data.answers: problems, data.question_file: entries}
    return {path: to_json(content) for path, content in contents.items()}


TASKS = (
    Task(
        name="scienceqa",
        title="ScienceQA",
        about="school questions with choices",
        data=files(
            *("scienceqa", "llava_test_CQM-A.json", "images/test", "problems.json"),
            "answers, problems.json and pid_splits.json to playground/data/eval/scienceqa: "
            "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa",
            "images, unpacked to playground/data/eval/scienceqa/images (makes test): "
            "https://github.com/lupantech/ScienceQA",
            also=(SPLITS,),
        ),
        embedded=signs("llava_test_CQM-A.json", "problems.json", (SPLITS,)),
        source=Source(
            "ScienceQA",
            convert,
            (Part("question choices answer hint image", "test", "ScienceQA-FULL"),),
            whole=True,
        ),
        metric=score,
        headline="accuracy with image",
        read=read_scienceqa,
        prompt_suffix=LETTER,
        paper="SQA",
        note="ScienceQA: questions with an image, as in the paper.",
    ),
)
