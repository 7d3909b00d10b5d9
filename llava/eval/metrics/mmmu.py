"""MMMU: college questions of 30 subjects, most of them multiple choice, the others answered by a number or a few words.

Answers are read out of the text and compared as the eval_utils.py of MMMU-Benchmark/MMMU does it (Yue et al.,
arXiv 2311.16502), with the wider search for a letter of lmms-eval's task `mmmu_val`: MMMU's own script wants spaces on
both sides of it and does not know "B.", lmms-eval's wants one behind. A letter alone is the same to both.
"""

import ast
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llava.eval.metrics.matching import rows_by_id
from llava.eval.metrics.tally import Tally, tally, tally_by

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
}
DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}

SEED = 42  # MMMU's own, for the letters that are drawn
LETTER_FORMS = ("({})", "{} ", "{}.")  # the first form that any letter is found in counts
LONG = 5  # words: only answers that are longer are searched for the text of an option

KEYS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)  # what follows may be the answer
TRIVIAL = set(":,.!?;'")
NUMBERS = (  # the last one finds parts of the others too, 0 in 12,000 and 1 in 1.2e4; published numbers contain that
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 12,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e4
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12000, 1.5, .5
)


class MMMUResult(NamedTuple):
    """Right answers overall (of all questions alike, not the mean of the subjects) and by discipline."""

    overall: Tally
    disciplines: dict[str, Tally]  # those that have questions


def find_choice(text: str, options: Sequence[str]) -> str | None:
    """Find the letter that `text` chooses; None if there is none.

    It reads "(B)", "B " or "B.", or else a long answer holds the text of an option. Of several letters the one whose
    last occurrence comes last counts.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)  # one kind of mark after the other, and no spaces, so "B. " keeps its period
    text = f" {text} "
    letters = [chr(ord("A") + i) for i in range(len(options))]
    for form in LETTER_FORMS:
        if found := [letter for letter in letters if form.format(letter) in text]:
            # Published numbers look for the last " B " here, where "B." was found too; none there: the first letter.
            place = form if form == "({})" else " {} "
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) <= LONG:
        return None
    places = {letter: text.lower().rfind(option.lower()) for letter, option in zip(letters, options, strict=True)}
    return max((letter for letter in letters if places[letter] >= 0), key=places.get, default=None)


def draw_choice(question: str, options: Sequence[str]) -> str:
    """Draw a letter at random, always the same for this question, in whichever order questions are scored.

    MMMU's script draws too, but from one stream for all questions, so its letters change with any answer before.
    """
    return chr(ord("A") + random.Random(f"{SEED} {question}").randrange(len(options)))


def parse_open(text: str) -> set[str | float]:
    """Collect what `text` may answer: on each line what follows the last "is ", "so " and the like, and its numbers."""
    # MMMU's script means to split sentences too, before a capital letter, but in text it has made lower case.
    text = text.strip().strip(".").lower()
    *lines, last = text.split("\n")
    tails = [*(shortest_tail(line, KEYS) for line in lines), shortest_tail(last, (*KEYS, "="))]
    answers = [tail for tail in tails if tail and tail not in TRIVIAL] or [text]
    answers += [number for answer in answers for pattern in NUMBERS for number in pattern.findall(answer)]
    return {form for answer in answers for form in normalize(answer)}


def shortest_tail(line: str, keys: Sequence[str]) -> str:
    """Find the shortest text after the last occurrence of any of `keys`; "" if there are none."""
    best = ""
    for key in keys:
        if key in line:
            tail = line.rsplit(key, 1)[1].strip()
            best = tail if not best or len(tail) < len(best) else best  # after an empty tail any other one is taken
    return best


def normalize(text: str) -> list[str | float]:
    """Bring text into the forms that are compared: a number rounded to two digits, else the text in lower case.

    A single letter is compared only where a space is next to it.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        return [f" {text.lower()}", f"{text.lower()} "] if len(text) == 1 else [text.lower()]


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Tell whether an open answer holds one of the right `answers`: equal numbers, or words that were said."""
    said = parse_open(text)
    phrases = [part for part in said if isinstance(part, str)]
    right = [form for answer in answers for form in normalize(answer)]
    return any(form in said if isinstance(form, float) else any(form in phrase for phrase in phrases) for form in right)


def score(questions: Sequence[Mapping], predictions: Sequence[Mapping]) -> MMMUResult:
    """Score predictions on all `questions`; one without a prediction is answered wrong.

    Args:
        questions: rows with `id` ("validation_Art_Theory_12"), `question_type` ("multiple-choice" or another),
            `options` and `answer`, the letter or the open answer; lists may be written as text, as in the data set.
        predictions: rows with `question_id` and `text`. Of rows with the same id the last counts.

    Raises:
        ValueError: predictions are to questions that are not in `questions`, or an id names no subject of MMMU.
    """
    said = rows_by_id(predictions, (question["id"] for question in questions))
    outcomes = {}
    for question in questions:
        name, answers = question["id"], read_list(question["answer"])
        if name not in said:
            outcomes[name] = False
        elif question["question_type"] == "multiple-choice":
            options = read_list(question["options"])
            outcomes[name] = (find_choice(said[name]["text"], options) or draw_choice(name, options)) in answers
        else:
            outcomes[name] = is_right(said[name]["text"], answers)
    return MMMUResult(
        overall=tally(outcomes.values()),
        disciplines=tally_by((DISCIPLINE_OF[subject_of(name)], right) for name, right in outcomes.items()),
    )


def subject_of(question: str) -> str:
    """Find the subject in an id: "Art_Theory" of "validation_Art_Theory_12". Raises ValueError if there is none."""
    subject = "_".join(question.split("_")[1:-1])
    if subject not in DISCIPLINE_OF:
        raise ValueError(
            f"{question!r} names none of MMMU's {len(DISCIPLINE_OF)} subjects; its ids read 'validation_Art_Theory_12'."
        )
    return subject


def read_list(value: str | Sequence[str]) -> list[str]:
    """Read a list, a list written as text ("['Tampa', 'Florida']"), or one text alone as a list of it."""
    if not isinstance(value, str):
        return list(value)
    try:
        entries = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return [value]
    is_list = isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)
    return entries if is_list else [value]  # "[0, 1]" and "8" are open answers
