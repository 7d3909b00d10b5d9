"""TextVQA: soft accuracy against ten reference answers, after the answer normalization of the EvalAI server.

Published numbers contain the normalization's quirks, so they are kept; each has a comment.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

ANSWERS = 10  # people asked per question

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
PERIOD = re.compile(r"\.(?!\d)")
# The published code hands a regex flag of value 32 to a parameter that counts: later periods stay.
PERIODS_REMOVED = 32

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Spellings with one apostrophe missing get it; only "somebody'd" loses it, as in the published code.
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


class TextVQAResult(NamedTuple):
    """Scores of a set of answers, in the order they came."""

    accuracy: float  # mean of the scores, 0 to 1
    scores: list[float]


def normalize_answer(answer: str) -> str:
    """Bring an answer into EvalAI's form: lower case, no punctuation, no articles, digits for small numbers."""
    text = answer.lower().replace(",", "").replace("?", "")
    text = text.replace("'s", " 's")  # "nike's" becomes two words, and stays two
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # Each mark is judged by the text before any was removed: next to a space it goes, between letters it parts them.
    next_to_space = {mark: f"{mark} " in text or f" {mark}" in text for mark in PUNCTUATION}
    text = text.translate(str.maketrans({mark: "" if next_to_space[mark] else " " for mark in PUNCTUATION}))
    text = PERIOD.sub("", text, count=PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score how far `prediction` agrees with ten people: 1 from four who say so too, then 0.9, 0.6, 0.3, and 0.

    This is min(1, matches / 3), averaged over leaving out each of the ten.

    Raises:
        ValueError: there are not ten answers.
    """
    if len(answers) != ANSWERS:
        raise ValueError(f"TextVQA's accuracy is defined on {ANSWERS} human answers per question; got {len(answers)}.")
    matches = [normalize_answer(answer) for answer in answers].count(normalize_answer(prediction))
    left_out = [min(1.0, (matches - 1) / 3)] * matches + [min(1.0, matches / 3)] * (ANSWERS - matches)
    return sum(left_out) / ANSWERS


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 if `prediction` equals any of the answers after normalization, else 0: the accuracy of ST-VQA."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def score(predictions: Sequence[str], answers: Sequence[Sequence[str]], metric=soft_accuracy) -> TextVQAResult:
    """Score predictions against the answers at the same place.

    Raises:
        ValueError: no predictions, or not as many predictions as lists of answers.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(
            f"Each prediction needs its human answers: got {len(predictions)} predictions and {len(answers)} answers."
        )
    scores = [metric(prediction, given) for prediction, given in zip(predictions, answers, strict=True)]
    return TextVQAResult(sum(scores) / len(scores), scores)


def question_in_prompt(prompt: str) -> str:
    """Find the question, in lower case, in a prompt of LLaVA's TextVQA files.

    Three forms exist: "OCR tokens: ... Question: Q Short answer:", three lines of which one begins with
    "Reference OCR token: " and Q is the first other one, and two lines beginning with Q.

    Raises:
        ValueError: the prompt has none of these forms.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        if found := re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL):
            return found[1].lower()
    elif len(lines) == 3 and "Reference OCR token: " in prompt:
        return lines[prompt.startswith("Reference OCR token:")].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"No question found in the prompt {prompt!r}. TextVQA prompts read 'QUESTION\\nReference OCR token: ...\\n"
        f"Answer the question using a single word or phrase.', with or without the middle line."
    )
