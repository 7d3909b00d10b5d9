"""LLaVA-Bench (in the wild): open questions, reviewed against GPT-4's answers by a judge.

https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from llava.eval.hub.tables import Part, Source
from llava.eval.hub.write import Files, Records, save, to_lines
from llava.eval.judging.endpoint import Judge
from llava.eval.metrics import judged
from llava.eval.metrics.matching import rows_by_id
from llava.eval.tasks.base import LONG, Data, Rows, Task, judged_by
from llava.utils.files import read_json, read_jsonl


class LLaVABench:
    """LLaVA-Bench's answered questions, as LLaVA's eval_gpt_review_bench.py has them reviewed.

    Args:
        folder: where questions.jsonl, context.jsonl and answers_gpt4.jsonl are.
        rules: rule.json.
        answers: rows with `question_id` and `text`.
    """

    RULES: ClassVar[str] = "rule.json"
    SOURCE: ClassVar[str] = "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/llava/eval/table/rule.json"
    UNREADABLE: ClassVar[str] = "-1 for both answers"
    REPEATS: ClassVar[bool] = False

    def __init__(self, folder: Path, rules: Path, answers: Rows):
        names = ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
        questions, contexts, references = ([row for _, row in read_jsonl(folder / name)] for name in names)
        answered, self.asked = rows_by_id(answers, (row["question_id"] for row in questions)), len(questions)
        questions, references = (
            [row for row in rows if str(row["question_id"]) in answered] for rows in (questions, references)
        )
        reviews = judged.llava_bench_reviews(questions, contexts, references, answers, read_rules(rules))
        self.reviews = {str(review.row["question_id"]): review for review in reviews}
        self.prompts = {name: review.prompt for name, review in self.reviews.items()}

    def grade(self, judge: Judge, name: str) -> dict:
        """Have one answer graded."""
        reply = judge.ask(self.prompts[name], system=judged.REVIEWER, temperature=0.2, max_tokens=1024)
        return {**self.reviews[name].reviewed(reply.text), "model": reply.model}

    @staticmethod
    def is_readable(row: Mapping) -> bool:
        """Tell whether a grade could be read out of the judge's reply."""
        return tuple(row["tuple"]) != judged.FAILED

    def add_up(self, grades: Rows) -> tuple[dict[str, float], float | None]:
        """Compute the scores, and the standard deviation of the first over repetitions."""
        categories = judged.llava_bench_score(grades).categories
        ratios = {name.removeprefix("llava_bench_"): score.ratio for name, score in categories.items()}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}, None


def read_rules(path: Path) -> dict[str, dict]:
    """Read LLaVA-Bench's rules: "llava_bench_" and category -> `role` and `prompt`."""
    content = read_json(path)
    names = [name for name in content if name.startswith("llava_bench_")] if isinstance(content, dict) else []
    rules = {name: content[name] for name in names}
    if not rules or not all(isinstance(rule, dict) and {"role", "prompt"} <= rule.keys() for rule in rules.values()):
        raise ValueError(
            f"{path}: must hold an object with a role and a prompt for llava_bench_conv, llava_bench_detail and "
            f"llava_bench_complex. Fetch it again: {LLaVABench.SOURCE}"
        )
    return rules


def convert(data: Data, rows: Records) -> Files:
    """Write LLaVA-Bench's three files from the data set."""
    questions, references, contexts = [], [], {}
    for row in rows:
        key = row["question_id"]
        image = save(data.image_folder, f"{Path(str(row['image_id'])).stem}.jpg", row["image"])
        questions.append({"question_id": key, "image": image, "text": row["question"], "category": row["category"]})
        references.append({"question_id": key, "text": row["gpt_answer"]})
        contexts[image] = {"image": image, "caption": row["caption"]}
    return {
        data.question_file.with_name("context.jsonl"): to_lines(contexts.values()),
        data.answers: to_lines(references),
        data.question_file: to_lines(questions),
    }


TASKS = (
    Task(
        name="llava_bench",
        title="LLaVA-Bench",
        about="open questions in the wild, reviewed by a judge",
        data=Data(
            Path("data/eval/llava-bench-in-the-wild/questions.jsonl"),
            Path("data/eval/llava-bench-in-the-wild/images"),
            Path("data/eval/llava-bench-in-the-wild/answers_gpt4.jsonl"),
            fetch=(
                "everything, to playground/data/eval/llava-bench-in-the-wild: "
                "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            ),
        ),
        source=Source(
            "llava-bench-in-the-wild",
            convert,
            (Part("question_id image_id question gpt_answer caption category image", "train"),),
        ),
        metric=None,
        headline="all",
        max_new_tokens=LONG,
        judge=LLaVABench,
        elsewhere=judged_by("llava_bench"),
        paper="LLaVA-B",
        note="LLaVA-Bench: the paper's judge was gpt-4-0314.",
    ),
)
