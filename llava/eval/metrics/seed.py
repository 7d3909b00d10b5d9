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
    types: dict[int, Tally]  # question_type_id -> ; releases number them differently, SEED-Bench.json names them


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
    )
