"""Read question files: LLaVA's JSONL with `question_id`, `image` and `text` in each line, and lists of any form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.data.records import other_media
from llava.utils.files import is_file, read_jsonl, shorten

Fields = tuple[str | int, tuple[str, ...], str]  # id, images and text of a question


class Question(NamedTuple):
    """One line of a question file."""

    row: int  # place in the file, from 0
    question_id: str | int
    images: tuple[str, ...]  # relative to the image folder, in the order in which they are shown; empty: about none
    text: str
    line: int  # line in the file, or number in its list, from 1, for messages


FIELDS = {  # of a line: type, and how that is called
    "question_id": ((str, int), "text or a whole number"),
    "image": (str, "text or a list of texts"),
    "text": (str, "text"),
    "prompt": (str, "text"),
}


def as_list(value) -> list:
    """Put a single value into a list."""
    return value if isinstance(value, list) else [value]


def require_fields(fields: Mapping, names: Sequence[str], where: str, what: str) -> None:
    """Check that a line has the named `FIELDS`.

    Raises:
        ValueError: one is missing, or of another type; the text names `where` and `what` the line is.
    """
    for name in names:
        kinds, expected = FIELDS[name]
        if name not in fields:
            raise ValueError(f"{where}: no {name!r}; {what} needs {', '.join(names[:-1])} and {names[-1]}.")
        values = as_list(fields[name]) if name == "image" else [fields[name]]
        if not values or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise ValueError(f"{where}: {name} is {fields[name]!r}; expected {expected}.")


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read the questions of a JSONL file, the first `limit` of them if given; `image` is a file name or a list of such.

    Raises:
        ValueError: an unreadable file, no question in it, a line without `question_id`, `image` and `text` of the right
            types, or one that brings another medium; file and line are named.
    """
    questions = []
    for row, (line, fields) in enumerate(read_jsonl(path)[:limit]):
        where = f"{path}, line {line}"
        if media := other_media(fields, [str(fields.get("text"))]):
            raise ValueError(f"{where}: the question brings {media[0].kind}: {media[0].detail}.")
        require_fields(fields, ("question_id", "image", "text"), where, "a question")
        if "<image>" in fields["text"]:
            raise ValueError(f"{where}: the text holds '<image>', which is added by itself. Take it out.")
        question = Question(row, fields["question_id"], tuple(as_list(fields["image"])), fields["text"], line)
        require_characters(question, where)
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: no questions in it.")
    return questions


def read_answers(path: str | Path, *names: str) -> list[dict]:
    """Read the answers of a JSONL file, each of which has the named `FIELDS`.

    Raises:
        ValueError: an unreadable file, no answer in it, or a line without one of these fields, or with one of another
            type; file and line are named.
    """
    answers = []
    for line, answer in read_jsonl(path):
        require_fields(answer, names, f"{path}, line {line}", "an answer")
        answers.append(answer)
    if not answers:
        raise ValueError(f"{path}: no answers in it.")
    return answers


def read_entries(
    path: str | Path, entries: list, fields: Callable[[dict], Fields], limit: int | None
) -> list[Question]:
    """Make questions of the entries of a list; `fields` finds id, images and text in an entry.

    Raises:
        ValueError: there are none, or an entry lacks one of these, or brings another medium; it is named.
    """
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not the benchmark's own file: a {type(entries).__name__}, no list of questions.")
    questions = []
    for row, entry in enumerate(entries[:limit]):
        where = f"{path}, entry {row + 1}"
        try:
            question = Question(row, *fields(entry), row + 1)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} is not as in the benchmark's own file: {error!r}.") from None
        if media := other_media(entry, [question.text], named_only=True):
            raise ValueError(f"{where} brings {media[0].kind}: {media[0].detail}.")
        require_characters(question, where)
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: no questions in it.")
    return questions


def require_characters(question: Question, where: str) -> None:
    """Raise ValueError if there is something in a question that no file and no tokenizer takes."""
    for text in (str(question.question_id), *question.images, question.text):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{where}: {shorten(text)} holds half of a surrogate pair, which is no character."
            ) from None


def by_image(questions: Iterable[Question]) -> list[list[Question]]:
    """Group questions about the same images, in the order in which these come up first; without any, each alone."""
    groups: dict[tuple[str, ...] | int, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.images or question.row, []).append(question)
    return list(groups.values())


def missing_images(questions: Iterable[Question], folder: str | Path) -> dict[str, Question]:
    """Find the images that are no file in `folder`, each with the first question about it."""
    first: dict[str, Question] = {}
    for question in questions:
        for name in question.images:
            first.setdefault(name, question)
    return {name: question for name, question in first.items() if not is_file(Path(folder) / name)}
