"""GQA: a question about an image, answered by a word or two that must equal the annotated answer.

Accuracy as Hudson & Manning (CVPR 2019) define it and their eval.py computes it, on answers in the form that LLaVA's
convert_gqa_for_eval.py gives them. Validity and plausibility need the choices file, which does not exist for test-dev;
consistency, grounding and distribution are not accuracies of the answers; all of them are left out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llava.eval.metrics.tally import Tally, tally


class GQAResult(NamedTuple):
    """Right answers overall and to both kinds of questions."""

    overall: Tally
    binary: Tally  # all that are not open: verify, logical, choose and compare
    open: Tally  # structural type "query"


def parse_answer(text: str) -> str:
    """Bring an answer into the form that is compared: lower case, without periods at its end.

    Nothing else is changed, as published numbers count it: "the cat", "no, sir" and "yes. " differ from the annotation.
    """
    return text.rstrip(".").lower()


def score(questions: Mapping[str, Mapping], predictions: Sequence[Mapping]) -> GQAResult:
    """Score predictions on the balanced ones of `questions`, each of which must be answered.

    Args:
        questions: question id -> `answer`, `isBalanced` and `types` with `structural`
            (testdev_balanced_questions.json). The others are skipped, as in the official script.
        predictions: rows with `question_id` and `text`. Of rows with the same id the last counts.

    Raises:
        ValueError: a balanced question has no prediction, which the official script refuses too, or predictions
            answer questions that are not in `questions`.
    """
    texts = {str(row["question_id"]): row["text"] for row in predictions}
    if unknown := [question for question in texts if question not in questions]:
        raise ValueError(
            f"{len(unknown)} of {len(texts)} predictions answer none of GQA's {len(questions)} questions, for instance "
            f"{', '.join(unknown[:3])}. Answers and annotation must be of one split."
        )
    balanced = {name: question for name, question in questions.items() if question["isBalanced"]}
    if missing := [name for name in balanced if name not in texts]:
        raise ValueError(
            f"{len(missing)} of GQA's {len(balanced)} balanced questions have no prediction, for instance "
            f"{', '.join(missing[:3])}. Its accuracy is defined on all of them: finish the run."
        )
    outcomes = [
        (question["types"]["structural"] == "query", parse_answer(texts[name]) == question["answer"])
        for name, question in balanced.items()
    ]
    return GQAResult(
        overall=tally(right for _, right in outcomes),
        binary=tally(right for is_open, right in outcomes if not is_open),
        open=tally(right for is_open, right in outcomes if is_open),
    )
