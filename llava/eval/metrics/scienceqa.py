"""ScienceQA: multiple choice, answered by a letter. The paper reports the questions that have an image."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llava.eval.metrics.tally import Tally

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"  # stands for an answer that is missing, and for a letter that cannot be found
ANSWER = re.compile(r"The answer is ([A-Z]).")  # the dot is any character: published numbers need one after the letter


class ScienceQAResult(NamedTuple):
    """Right and wrong answers, each as a row of the analysis file LLaVA writes, and the choices made."""

    correct: list[dict]
    incorrect: list[dict]
    choices: dict[str, int]  # question id -> index of the chosen option, -1 for none
    outputs: dict[str, str]  # question id -> text of the model

    @property
    def overall(self) -> Tally:
        """Count the right answers to all questions."""
        return Tally(len(self.correct), len(self.correct) + len(self.incorrect))

    @property
    def with_image(self) -> Tally:
        """Count the right answers to the questions with an image."""
        right, wrong = (sum(row["is_multimodal"] for row in rows) for rows in (self.correct, self.incorrect))
        return Tally(right, right + wrong)

    def report(self) -> str:
        """Write the line that LLaVA's ScienceQA script prints."""
        right, count = self.overall
        return (
            f"Total: {count}, Correct: {right}, Accuracy: {self.overall.accuracy * 100:.2f}%, "
            f"IMG-Accuracy: {self.with_image.accuracy * 100:.2f}%"
        )

    def analysis(self) -> dict:
        """Make the content of the analysis file (`--output-file` of LLaVA's script)."""
        return {"correct": self.correct, "incorrect": self.incorrect}

    def summary(self) -> dict:
        """Make the content of the result file (`--output-result` of LLaVA's script); `acc` is in percent."""
        return {
            "acc": self.overall.accuracy * 100,
            "correct": self.overall.right,
            "count": self.overall.count,
            "results": self.choices,
            "outputs": self.outputs,
        }


def parse_choice(text: str, options: Sequence[str] = OPTIONS) -> str:
    """Find the letter chosen in `text`: it alone, "B. ...", or one "The answer is B." inside; else "FAILED"."""
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
    """Score predictions on the questions of `split`; one without a prediction is answered wrong, and has no image.

    Args:
        problems: question id -> `choices` and index of the right `answer` (problems.json).
        split: ids to score (one list of pid_splits.json).
        predictions: rows with `question_id`, `prompt` and `text`; a prompt with "<image>" is a question with image.
            Rows of other splits are skipped; of rows with the same id the last counts.
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
    result = ScienceQAResult([], [], {}, {})
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
