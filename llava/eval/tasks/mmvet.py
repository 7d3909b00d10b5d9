"""MM-Vet: open questions that need several abilities at once, graded by a judge.

https://github.com/yuweihao/MM-Vet
"""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_json, to_lines
from llava.eval.judging.endpoint import Judge
from llava.eval.metrics import judged
from llava.eval.metrics.matching import rows_by_id
from llava.eval.tasks.base import LONG, Data, Rows, Submission, Task, files, judged_by, to_json_bytes
from llava.utils.files import read_bytes, read_json


class MMVet:
    """MM-Vet's answered questions, as its mm-vet_evaluator.py has them graded.

    Args:
        folder: where mm-vet.json is.
        rules: mm-vet_evaluator.py, of which the text `prompt` is read, or a file with that text.
        answers: rows with `question_id` and `text`.
    """

    RULES: ClassVar[str] = "mm-vet_evaluator.py"
    SOURCE: ClassVar[str] = "https://raw.githubusercontent.com/yuweihao/MM-Vet/main/mm-vet_evaluator.py"
    UNREADABLE: ClassVar[str] = "0"
    REPEATS: ClassVar[bool] = True

    def __init__(self, folder: Path, rules: Path, answers: Rows):
        table, questions, texts = read_table(rules), read_json(folder / "mm-vet.json"), judged.mmvet_answers(answers)
        rows_by_id(({"question_id": name} for name in texts), questions)  # raises where answers are to other questions
        self.asked = len(questions)  # by the benchmark, answered or not
        self.questions = {name: question for name, question in questions.items() if name in texts}
        self.prompts = {
            name: judged.mmvet_prompt(table, question["question"], question["answer"], texts[name])
            for name, question in self.questions.items()
        }

    def grade(self, judge: Judge, name: str) -> dict:
        """Have one answer graded."""
        for attempt, temperature in enumerate(judged.TEMPERATURES):
            prompt = self.prompts[name] + judged.INSIST * (attempt > 0)
            reply = judge.ask(prompt, temperature=temperature, max_tokens=3)
            if (grade := judged.parse_grade(reply.text)) is not None:
                break
        return {"question_id": name, "score": grade, "content": reply.text, "model": reply.model}

    @staticmethod
    def is_readable(row: Mapping) -> bool:
        """Tell whether a grade could be read out of the judge's reply."""
        return row["score"] is not None

    def add_up(self, grades: Rows) -> tuple[dict[str, float], float | None]:
        """Compute the scores, and the standard deviation of the first over repetitions."""
        scores = defaultdict(list)
        for row in grades:
            scores[row["question_id"]].append(row["score"] or 0.0)
        result = judged.mmvet_score(self.questions, {name: {"score": runs} for name, runs in scores.items()})
        return {"total": result.total, **result.capabilities}, result.std


def read_table(path: Path) -> str:
    """Read MM-Vet's instructions and few-shot table: a text, or what its script calls `prompt`; it is not run."""
    try:
        table = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text ({error}). Fetch it again: {MMVet.SOURCE}") from None
    if path.suffix == ".py":
        try:
            statements = [node for node in ast.parse(table).body if isinstance(node, ast.Assign)]
            (value,) = [node.value for node in statements if [*map(ast.unparse, node.targets)] == ["prompt"]]
            table = str(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            raise ValueError(
                f"{path}: no Python that sets `prompt` to a text. Fetch it again: {MMVet.SOURCE}"
            ) from None
    if not re.search(r"^-+ *\|", table, re.MULTILINE):  # the prompt is one more row of it
        raise ValueError(f"{path}: no few-shot table in it (--- | --- | --- | ---). Fetch it again: {MMVet.SOURCE}")
    return table


def submit(data: Data, rows: Rows) -> bytes:
    """Make the file that MM-Vet's authors' judge takes."""
    return to_json_bytes(judged.mmvet_answers(rows))


def convert(data: Data, rows: Records) -> Files:
    """Write MM-Vet's and LLaVA's files from the data set."""
    questions, truths = [], {}
    for row in rows:
        number = str(row["question_id"]).removeprefix("v1_")
        image = save(data.image_folder, f"v1_{number}.png", row["image"])
        questions.append({"question_id": int(number), "image": image, "text": row["question"]})
        known = {"imagename": image, "question": row["question"], "answer": row["answer"]}
        truths[f"v1_{number}"] = known | {"capability": row["capability"].split(",")}
    return {data.answers: to_json(truths), data.question_file: to_lines(questions)}


TASKS = (
    Task(
        name="mmvet",
        title="MM-Vet",
        about="open questions that need several abilities, graded by a judge",
        data=files(
            *("mm-vet", "llava-mm-vet.jsonl", "images", "mm-vet.json"),
            "images and reference answers, unpacked to playground/data/eval (makes mm-vet): "
            "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
            spellings=("mm-vet", "mmvet", "mmvet/mm-vet"),
        ),
        source=Source("MMVet", convert, (Part("question_id question answer capability image", "test"),)),
        metric=None,
        headline="total",
        max_new_tokens=LONG,
        submission=Submission(submit),
        judge=MMVet,
        elsewhere=f"{judged_by('mmvet')} Or hand the submission to its authors' judge: "
        "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
        paper="MMVet",
        note="MM-Vet: the paper's judge was gpt-4-0613.",
    ),
)
