"""SEED-Bench: multiple choice on images (types 1 to 9) and on video frames (10 to 12), answered by a letter.

Accuracies as LLaVA's convert_seed_for_submission.py prints them, on SEED-Bench.json of Li et al. (arXiv 2307.16125).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llava.eval.metrics.tally import Tally, tally, tally_by


class SEEDResult(NamedTuple):
    """Right answers overall, on images, on videos and by type of question."""

    overall: Tally  # the number that LLaVA-1.5 reports: with videos
    image: Tally
    video: Tally
    types: dict[int, Tally]  # question_type_id ->
    missing: list[str]  # question ids without a prediction; they count as wrong

    @property
    def accuracy(self) -> float:
        return self.overall.accuracy

    def report(self, names: Mapping[str, int]) -> str:
        """The lines that LLaVA's script prints. `names` is name -> id (`question_type` of SEED-Bench.json)."""
        # Releases number the types differently, so the file at hand must name them.
        name_of = {number: name for name, number in names.items()}
        lines = {name_of[number]: total for number, total in self.types.items()}
        lines |= {"Total accuracy": self.overall, "image accuracy": self.image, "video accuracy": self.video}
        return "\n".join(f"{name}: {100 * total.accuracy:.2f}%" for name, total in lines.items())


def score(questions: Sequence[Mapping], predictions: Sequence[Mapping]) -> SEEDResult:
    """Score predictions on all `questions`; one without a prediction is answered wrong, as LLaVA counts it.

    Args:
        questions: rows with `question_id`, `question_type_id`, `data_type` ("image" or "video") and the letter of the
            right `answer` (`questions` of SEED-Bench.json).
        predictions: rows with `question_id` (a number or a string) and `text`. Of rows with the same id the last
            counts.

    Raises:
        ValueError: predictions answer questions that are not in `questions`.
    """
    texts = {str(row["question_id"]): row["text"] for row in predictions}
    known = {str(question["question_id"]) for question in questions}
    if unknown := [question for question in texts if question not in known]:
        raise ValueError(
            f"{len(unknown)} of {len(texts)} predictions answer none of SEED-Bench's {len(known)} questions, for "
            f"instance {', '.join(unknown[:3])}."
        )
    # Published numbers need the letter alone: "B." and "b" are wrong.
    outcomes = [(question, texts.get(str(question["question_id"])) == question["answer"]) for question in questions]
    return SEEDResult(
        overall=tally(right for _, right in outcomes),
        image=tally(right for question, right in outcomes if question["data_type"] == "image"),
        video=tally(right for question, right in outcomes if question["data_type"] == "video"),
        types=tally_by((question["question_type_id"], right) for question, right in outcomes),
        missing=[str(question["question_id"]) for question in questions if str(question["question_id"]) not in texts],
    )
