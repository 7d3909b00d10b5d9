"""MMBench and MMBench-CN: multiple choice, each question asked with its options in every rotation.

Circular evaluation of Liu et al. (arXiv 2307.06281): a question is right if it is answered right in all rotations. The
choice is found in an answer by the two rules of VLMEvalKit's `can_infer`, without the limits on position and length of
later releases. Where these find none, the official evaluation asks ChatGPT; here the answer is wrong. The submission
table is that of LLaVA's convert_mmbench_for_submission.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llava.eval.metrics.tally import Tally, tally

LETTERS = "ABCD"
ROTATION = 1_000_000  # a rotated question has the index of the original plus a multiple of this
PUNCTUATION = ".()[],:;!*#{}"
TO_BLANKS = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
ARTICLE_WORDS = 3  # in a longer answer "A" is an article; not all releases of VLMEvalKit see to that
NOT_SUBMITTED = {"hint", "category", "source", "image", "comment", "l2-category"}


class MMBenchResult(NamedTuple):
    """Right questions."""

    circular: Tally  # in all rotations, the number that papers report
    vanilla: Tally  # in the original rotation


def options_of(row: Mapping) -> dict[str, str]:
    """List the options of a question, letter -> text: those before the first empty one, as LLaVA asks them."""
    texts = {}
    for letter in LETTERS:
        if is_empty(text := row.get(letter)):
            break
        texts[letter] = str(text)
    return texts


def parse_choice(text: str, options: Mapping[str, str]) -> str | None:
    """Find the letter chosen in `text`; None if there is none.

    It is the only one of the options' letters that is a word of its own ("B", "(B)", "B. a dog"), else the letter of
    the only option whose text is contained in the answer, in any case. So "11" is no choice between "1" and "11".
    """
    words = text.translate(TO_BLANKS).split()  # not split at Chinese punctuation, nor is it officially
    letters = [letter for letter in options if letter in words]
    is_article = letters == ["A"] and len(words) > ARTICLE_WORDS
    if len(letters) == 1 and not is_article:
        return letters[0]
    contained = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return contained[0] if len(contained) == 1 else None


def score(rows: Sequence[Mapping], predictions: Sequence[Mapping]) -> MMBenchResult:
    """Score predictions on all `rows`; one without a prediction is answered wrong, like an empty cell of a submission.

    Args:
        rows: rows of the TSV file, all rotations, with `index`, `A` to `D` and the letter of the right `answer`.
        predictions: rows with `question_id` (an index) and `text`. Of rows with the same id the last counts.

    Raises:
        ValueError: rows have no answer (those of the test split), or predictions answer none of the rows.
    """
    if hidden := [row["index"] for row in rows if is_empty(row.get("answer"))]:
        raise ValueError(
            f"{len(hidden)} of {len(rows)} rows of MMBench have no answer: the test split is scored by the official "
            f"server only. Score a dev file, or submit the table."
        )
    texts = texts_by_index(rows, predictions)
    rotations = defaultdict(dict)  # question -> index of each rotation -> whether it is answered right
    for row in rows:
        index = int(row["index"])
        rotations[index % ROTATION][index] = parse_choice(texts.get(index, ""), options_of(row)) == row["answer"]
    return MMBenchResult(
        circular=tally(all(right.values()) for right in rotations.values()),
        vanilla=tally(right[min(right)] for right in rotations.values()),
    )


def submission(rows: Sequence[Mapping], predictions: Sequence[Mapping]) -> list[dict]:
    """Make the table that the official server scores, a dict per row.

    It holds index, question, A to D, prediction, and what else the TSV file has but hint, categories, source, image and
    comment. A row without a prediction gets None, an empty cell.

    Raises:
        ValueError: predictions answer none of the rows.
    """
    texts = texts_by_index(rows, predictions)
    first = ("index", "question", *LETTERS)
    return [
        {name: row.get(name) for name in first}
        | {"prediction": texts.get(int(row["index"]))}
        | {name: value for name, value in row.items() if name not in NOT_SUBMITTED and name not in first}
        for row in rows
    ]


def texts_by_index(rows: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[int, str]:
    """Collect the answers by the index of their row. Raises ValueError if one is to none of the rows."""
    known = {int(row["index"]) for row in rows}
    texts = {int(row["question_id"]): row["text"] for row in predictions}
    if unknown := [str(index) for index in texts if index not in known]:
        raise ValueError(
            f"{len(unknown)} of {len(texts)} predictions answer none of MMBench's {len(known)} rows, for instance "
            f"{', '.join(unknown[:3])}. Answers and TSV file must be of one release."
        )
    return texts


def is_empty(value) -> bool:
    """Tell whether a cell is empty, by LLaVA's rule, in which the texts "nan" and "none" are empty too."""
    return value is None or value != value or str(value).lower() in ("", "nan", "none")
