"""Question files: JSONL with `question_id`, `image` and `text` in each line."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llava.files import is_file, read_jsonl


class Question(NamedTuple):
    """One line of a question file."""

    row: int  # place in the file, from 0
    question_id: str | int
    image: str  # relative to the image folder
    text: str
    line: int  # line in the file, from 1, for messages


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of a JSONL file, the first `limit` of them if given.

    Raises:
        ValueError: an unreadable file, no question in it, or a line without `question_id`, `image` and `text` of the
            right types; file and line are named.
    """
    questions = []
    for row, (line, fields) in enumerate(read_jsonl(path)[:limit]):
        where = f"{path}, line {line}"
        for name, kinds in (("question_id", (str, int)), ("image", str), ("text", str)):
            if name not in fields:
                raise ValueError(f"{where}: no {name!r}; a question needs question_id, image and text.")
            if not isinstance(fields[name], kinds) or isinstance(fields[name], bool):
                expected = "text" if kinds is str else "text or a whole number"
                raise ValueError(f"{where}: {name} is {fields[name]!r}; expected {expected}.")
        if "<image>" in fields["text"]:
            raise ValueError(f"{where}: the text holds '<image>', which is added by itself. Take it out.")
        questions.append(Question(row, fields["question_id"], fields["image"], fields["text"], line))
    if not questions:
        raise ValueError(f"{path}: no questions in it.")
    return questions


def by_image(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions about each image, images in the order in which they come up first."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.image, []).append(question)
    return groups


def missing_images(questions: Iterable[Question], folder: str | Path) -> list[Question]:
    """The first question about each image that is no file in `folder`, in the order of the questions."""
    return [group[0] for name, group in by_image(questions).items() if not is_file(Path(folder) / name)]
