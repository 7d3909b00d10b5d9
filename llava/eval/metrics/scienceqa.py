"""ScienceQA: multiple choice, answered by a letter. The paper reports the questions that have an image."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"  # stands for an answer that is missing, and for a letter that cannot be found
ANSWER = re.compile(r"The answer is ([A-Z]).")  # the dot is any character: published numbers need one after the letter


class ScienceQAResult(NamedTuple):
    """Right and wrong answers, each as a row of the analysis file LLaVA writes, and the choices made."""

    correct: list[dict]
    incorrect: list[dict]
    choices: dict[str, int]  # question id -> index of the chosen option, -1 for none
    outputs: dict[str, str]  # question id -> text of the model
    missing: list[str]  # question ids without a prediction; they count as wrong, and as questions without image

    @property
    def count(self) -> int:
        return len(self.correct) + len(self.incorrect)

    @property
    def image_count(self) -> int:
        return with_image(self.correct) + with_image(self.incorrect)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; nan without questions."""
        return len(self.correct) / self.count if self.count else float("nan")

    @property
    def image_accuracy(self) -> float:
        """Share of right answers among questions with an image, 0 to 1; nan if there are none."""
        return with_image(self.correct) / self.image_count if self.image_count else float("nan")

    def report(self) -> str:
        """The line that LLaVA's ScienceQA script prints."""
        return (
            f"Total: {self.count}, Correct: {len(self.correct)}, Accuracy: {self.accuracy * 100:.2f}%, "
            f"IMG-Accuracy: {self.image_accuracy * 100:.2f}%"
        )

    def analysis(self) -> dict:
        """Content of the analysis file (`--output-file` of LLaVA's script)."""
        return {"correct": self.correct, "incorrect": self.incorrect}

    def summary(self) -> dict:
        """Content of the result file (`--output-result` of LLaVA's script). `acc` is in percent."""
        return {
            "acc": self.accuracy * 100,
            "correct": len(self.correct),
            "count": self.count,
            "results": self.choices,
            "outputs": self.outputs,
        }


def parse_choice(text: str, options: Sequence[str] = OPTIONS) -> str:
    """The letter chosen in `text`: the letter alone, "B. ...", or one "The answer is B." inside; else "FAILED"."""
    if text in options:
        return text
    if text[:1] in options and text[1:3] == ". ":
        return text[0]
    letters = ANSWER.findall(text)
    return letters[0] if len(letters) == 1 else FAILED


def score(
    problems: Mapping[str, Mapping],
    split: Sequence[str],
    predictions: Sequence[Mapping],
    options: Sequence[str] = OPTIONS,
) -> ScienceQAResult:
    """Score predictions on the questions of `split`.

    Args:
        problems: question id -> `choices` and index of the right `answer` (problems.json).
        split: ids to score (one list of pid_splits.json).
        predictions: rows with `question_id`, `prompt` and `text`; a prompt with "<image>" is a question with image.
            Rows of other splits are passed over; of rows with the same id the last counts.
        options: the letters of the choices.

    Raises:
        ValueError: `split` names a question that is not in `problems`.
    """
    if unknown := [str(question) for question in split if question not in problems]:
        raise ValueError(
            f"{len(unknown)} of the split's {len(split)} questions are not in problems.json, for instance "
            f"{', '.join(unknown[:3])}. Both files must be of one release."
        )
    answered = {str(row["question_id"]): row for row in predictions}
    result = ScienceQAResult([], [], {}, {}, [question for question in split if question not in answered])
    for question in split:
        problem = problems[question]
        row = answered.get(question, {"text": FAILED, "prompt": "Unknown"})
        letter = parse_choice(row["text"], options)
        offered = list(options[: len(problem["choices"])])
        choice = offered.index(letter) if letter in offered else -1
        result.choices[question], result.outputs[question] = choice, row["text"]
        (result.correct if choice == problem["answer"] else result.incorrect).append(
            {
                "question_id": question,
                "parsed_ans": letter,
                "ground_truth": options[problem["answer"]],
                "question": row["prompt"],
                "pred": row["text"],
                "is_multimodal": "<image>" in row["prompt"],
            }
        )
    return result


def with_image(rows: Sequence[Mapping]) -> int:
    return sum(row["is_multimodal"] for row in rows)
