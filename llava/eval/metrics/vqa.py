"""VQAv2 and VizWiz: soft accuracy against ten reference answers, and the files that their servers take.

VQAv2 is scored as vqaEval.py of GT-Vision-Lab/VQA does it (Goyal et al., CVPR 2017; the measure is of Antol et al.,
ICCV 2015), VizWiz as the vqaEval.py of its own API (Gurari et al., CVPR 2018). Published numbers contain their quirks,
so they are kept; each has a comment. LLaVA hands in answers that went through the normalization of TextVQA's server
first (convert_vqav2_for_submission.py, convert_vizwiz_for_submission.py), so a local score that should be near the
server's is made of the same rows: `score(annotations, submission(questions, predictions))`.

VQAv2's normalization differs from TextVQA's in this: commas and question marks are marks like the others ("red,white"
is two words, not "redwhite"); a comma between two digits anywhere makes all marks vanish instead of splitting words;
"'s" stays with its word.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

from llava.eval.metrics import textvqa
from llava.eval.metrics.matching import rows_by_id
from llava.eval.metrics.textvqa import ANSWERS, ARTICLES, CONTRACTIONS, NUMBERS, PERIOD, PERIODS_REMOVED

PUNCTUATION = textvqa.PUNCTUATION + ",?"
THOUSANDS = re.compile(r"\d,\d")


class VQAResult(NamedTuple):
    """Scores of all annotated questions, and their means; all from 0 to 1."""

    scores: dict[str, float]  # question id, or image of VizWiz ->
    answer_types: dict[str, float]  # yes/no, number, other; VizWiz has unanswerable too

    @property
    def accuracy(self) -> float:
        """Average the scores, 0 to 1."""
        return fmean(self.scores.values())


@lru_cache(maxsize=1 << 16)  # ten answers to each of 214,354 questions, most of them among the same few thousand
def normalize_answer(answer: str) -> str:
    """Bring an answer into VQAv2's form: lower case, no punctuation, no articles, digits for small numbers."""
    # Each mark is judged by the text before any was removed: next to a space it goes, between letters it parts them.
    # "1,000" is one number, and whatever other marks stand in the same answer go with its comma.
    has_thousands = bool(THOUSANDS.search(answer))
    goes = {mark: has_thousands or f"{mark} " in answer or f" {mark}" in answer for mark in PUNCTUATION}
    text = answer.translate(str.maketrans({mark: "" if goes[mark] else " " for mark in PUNCTUATION}))
    text = PERIOD.sub("", text, count=PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score how far `prediction` agrees with ten people, as VQAv2 does: 1 from four, then 0.9, 0.6, 0.3, and 0.

    Raises:
        ValueError: there are not ten answers.
    """
    said, given = flatten(prediction), [flatten(answer) for answer in answers]
    # Where all ten agree to the letter nothing is normalized, the prediction neither: "Yes" is wrong among ten "yes".
    if len(set(given)) > 1:
        said, given = normalize_answer(said), [normalize_answer(answer) for answer in given]
    return agreement(said, given)


def vizwiz_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score as `soft_accuracy`, but as VizWiz normalizes: the prediction always, the reference answers never.

    So an answer that people gave with a mark or an article, "coca-cola" or "the left", cannot be matched.

    Raises:
        ValueError: there are not ten answers.
    """
    return agreement(normalize_answer(flatten(prediction)), answers)


def agreement(said: str, given: Sequence[str]) -> float:
    """Compute min(1, matches / 3), averaged over leaving out each of the ten people."""
    if len(given) != ANSWERS:
        raise ValueError(f"VQA accuracy is defined on {ANSWERS} human answers per question; got {len(given)}.")
    matches = list(given).count(said)
    left_out = [min(1.0, (matches - 1) / 3)] * matches + [min(1.0, matches / 3)] * (ANSWERS - matches)
    return sum(left_out) / ANSWERS


def score(annotations: Sequence[Mapping], answers: Sequence[Mapping]) -> VQAResult:
    """Score answers on VQAv2; a question without one counts 0.

    Args:
        annotations: rows with `question_id`, `answer_type` and ten `answers`, each with `answer` (the list
            `annotations` of v2_mscoco_val2014_annotations.json).
        answers: rows with `question_id` and `answer`, as `submission` makes them. Of rows with the same id the last
            counts.

    Raises:
        ValueError: answers are to questions that are not annotated, or a question has not ten human answers.
    """
    return score_by(annotations, answers, "question_id", soft_accuracy)


def score_vizwiz(annotations: Sequence[Mapping], answers: Sequence[Mapping]) -> VQAResult:
    """Score answers on VizWiz; its `answerable` is a task of its own, and unanswerable questions count like others.

    Args:
        annotations: rows with `image`, `answer_type` and ten `answers`, each with `answer` (the list in val.json).
        answers: rows with `image` and `answer`, as `vizwiz_submission` makes them. Of rows with the same image the last
            counts.

    Raises:
        ValueError: answers are to images that are not annotated, or a question has not ten human answers.
    """
    return score_by(annotations, answers, "image", vizwiz_accuracy)


def submission(questions: Sequence[Mapping], predictions: Sequence[Mapping]) -> list[dict]:
    """Make rows with `question_id` and `answer` for VQAv2's server, one per question; "" without a prediction.

    Args:
        questions: rows with `question_id`, of the whole test set: the server of test-dev wants the 447,793 questions
            of llava_vqav2_mscoco_test2015.jsonl, and the 107,394 of llava_vqav2_mscoco_test-dev2015.jsonl answered.
        predictions: rows with `question_id` and `text`. Of rows with the same id the last counts.

    Raises:
        ValueError: predictions are to questions that are not in `questions`.
    """
    said = rows_by_id(predictions, (row["question_id"] for row in questions))
    texts = (said[name]["text"] if (name := str(row["question_id"])) in said else "" for row in questions)
    # TextVQA's normalization makes "" of the answer "A", a letter seen in an image; published files contain that.
    return [
        {"question_id": row["question_id"], "answer": textvqa.normalize_answer(text)}
        for row, text in zip(questions, texts, strict=True)
    ]


def vizwiz_submission(questions: Sequence[Mapping], predictions: Sequence[Mapping]) -> list[dict]:
    """Make rows with `image` and `answer` for VizWiz's server, one per question.

    Args:
        questions: rows with `question_id` and `image` (llava_test.jsonl).
        predictions: rows with `question_id` and `text`. Of rows with the same id the last counts.

    Raises:
        ValueError: a question has no prediction, or predictions are to questions that are not in `questions`.
    """
    said = rows_by_id(predictions, (row["question_id"] for row in questions))
    names = [str(row["question_id"]) for row in questions]
    if missing := [name for name in names if name not in said]:
        raise ValueError(
            f"{len(missing)} of VizWiz's {len(questions)} questions have no prediction, for instance "
            f"{', '.join(missing[:3])}. Its server takes whole files only: finish the run."
        )
    return [
        {"image": row["image"], "answer": textvqa.normalize_answer(said[name]["text"])}
        for row, name in zip(questions, names, strict=True)
    ]


def score_by(
    annotations: Sequence[Mapping], answers: Sequence[Mapping], key: str, metric: Callable[[str, Sequence[str]], float]
) -> VQAResult:
    """Score `answers` with `metric` on the annotations with the same `key`."""
    said = rows_by_id(answers, (row[key] for row in annotations), key)
    scores, answer_types = {}, defaultdict(list)
    for row in annotations:
        name, given = str(row[key]), [answer["answer"] for answer in row["answers"]]
        try:
            scores[name] = metric(said[name]["answer"], given) if name in said else 0.0
        except ValueError as error:
            raise ValueError(f"{key} {name}: {error}") from None
        answer_types[row["answer_type"]].append(scores[name])
    return VQAResult(scores, {name: fmean(answer_types[name]) for name in sorted(answer_types)})


def flatten(answer: str) -> str:
    """Put an answer on one line, without space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
