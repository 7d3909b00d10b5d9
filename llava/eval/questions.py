"""Question files: LLaVA's JSONL with `question_id`, `image` and `text` in each line, and some benchmarks' own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from llava.files import is_file, read_json, read_jsonl


class Question(NamedTuple):
    """One line of a question file."""

    row: int  # place in the file, from 0
    question_id: str | int
    image: str | None  # relative to the image folder; None: it is about none
    text: str
    line: int  # line in the file, or number in its list, from 1, for messages


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


def read_scienceqa(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of llava_test_CQM-A.json: a list of `id`, `conversations`, and `image` where there is one."""

    def fields(entry: dict) -> tuple[str, str | None, str]:
        text = entry["conversations"][0]["value"].replace("<image>", "").strip()
        return entry["id"], entry.get("image"), text

    return read_entries(path, read_json(path), fields, limit)


def read_vqav2(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of v2_OpenEnded_mscoco_val2014_questions.json, VQAv2's own file."""
    content = read_json(path)
    try:
        entries, subset = content["questions"], content["data_subtype"]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: no questions and data_subtype, as VQAv2's own files have them.") from None
    return read_entries(
        path, entries, lambda e: (e["question_id"], f"COCO_{subset}_{e['image_id']:012d}.jpg", e["question"]), limit
    )


def read_vizwiz(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of VizWiz's val.json, each known by its image."""
    return read_entries(path, read_json(path), lambda entry: (entry["image"], entry["image"], entry["question"]), limit)


def read_entries(
    path: str | Path, entries: list, fields: Callable[[dict], tuple[str | int, str | None, str]], limit: int | None
) -> list[Question]:
    """Questions out of a list; `fields` finds id, image and text in an entry.

    Raises:
        ValueError: there are none, or an entry lacks one of these; it is named.
    """
    questions = []
    for row, entry in enumerate(entries[:limit]):
        try:
            questions.append(Question(row, *fields(entry), row + 1))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, entry {row + 1} is not as in the benchmark's own file: {error!r}.") from None
    if not questions:
        raise ValueError(f"{path}: no questions in it.")
    return questions


def by_image(questions: Iterable[Question]) -> list[list[Question]]:
    """Questions about the same image together, in the order in which images come up first; without one, each alone."""
    groups: dict[str | int, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.row if question.image is None else question.image, []).append(question)
    return list(groups.values())


def missing_images(questions: Iterable[Question], folder: str | Path) -> list[Question]:
    """The first question about each image that is no file in `folder`, in the order of the questions."""
    first = [group[0] for group in by_image(questions) if group[0].image is not None]
    return [question for question in first if not is_file(Path(folder) / question.image)]
