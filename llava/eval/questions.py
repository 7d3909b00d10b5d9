"""Question files: LLaVA's JSONL with `question_id`, `image` and `text` in each line, and some benchmarks' own."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.data.records import other_media
from llava.eval.metrics.mmmu import read_list
from llava.inference.prompts import LETTER, SHORT
from llava.utils.files import is_file, read_json, read_jsonl, shorten

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
    return value if isinstance(value, list) else [value]


def require_fields(fields: Mapping, names: Sequence[str], where: str, what: str) -> None:
    """ValueError if a line lacks one of the named fields, or has something else there. `what` it is goes into that."""
    for name in names:
        kinds, expected = FIELDS[name]
        if name not in fields:
            raise ValueError(f"{where}: no {name!r}; {what} needs {', '.join(names[:-1])} and {names[-1]}.")
        values = as_list(fields[name]) if name == "image" else [fields[name]]
        if not values or not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise ValueError(f"{where}: {name} is {fields[name]!r}; expected {expected}.")


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of a JSONL file, the first `limit` of them if given. `image` is a file name, or a list of such.

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
    """The answers of a JSONL file, each of which has the named `FIELDS`.

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


def read_scienceqa(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of llava_test_CQM-A.json: a list of `id`, `conversations`, and `image` where there is one."""

    def fields(entry: dict) -> Fields:
        text = entry["conversations"][0]["value"].replace("<image>", "").strip()
        return entry["id"], (entry["image"],) if entry.get("image") else (), text

    return read_entries(path, read_json(path), fields, limit)


def read_vqav2(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of v2_OpenEnded_mscoco_val2014_questions.json, VQAv2's own file."""
    content = read_json(path)
    try:
        entries, subset = content["questions"], content["data_subtype"]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: no questions and data_subtype, as VQAv2's own files have them.") from None

    def fields(entry: dict) -> Fields:
        return entry["question_id"], (f"COCO_{subset}_{entry['image_id']:012d}.jpg",), entry["question"]

    return read_entries(path, entries, fields, limit)


def read_vizwiz(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of VizWiz's val.json, each known by its image."""
    return read_entries(path, read_json(path), lambda e: (e["image"], (e["image"],), e["question"]), limit)


def read_mmmu(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of validation.jsonl: the rows of the Hugging Face data set MMMU/MMMU, its images in files.

        id                  "validation_Art_Theory_12"
        question            text with "<image 1>" to "<image 7>" in it
        options             list of texts, which may hold these too; as in the data set it may be written as text
        answer              the letter of an option, or the open answer
        question_type       "multiple-choice" or "open"
        image_1 … image_7   names of files in images/; those that a row does not have are left out

    They are asked as lmms-eval's task `mmmu_val` asks LLaVA (its mmmu_doc_to_text and mmmu_doc_to_visual, and
    generate_until of its model), as published numbers are made so: "<image 1>" stays in the text as it is, and the
    pictures named there stand before the text, in the order of their numbers, each once.
    """

    def fields(entry: dict) -> Fields:
        lines = [entry["question"]]
        if is_choice := entry["question_type"] == "multiple-choice":
            lines += [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(read_list(entry["options"]))]
        text = "\n".join([*lines, LETTER if is_choice else SHORT])  # these begin with a line break: one line is empty
        return entry["id"], tuple(entry[f"image_{n}"] for n in sorted(set(re.findall(r"<image (\d+)>", text)))), text

    return read_entries(path, [row for _, row in read_jsonl(path)], fields, limit)


def read_entries(
    path: str | Path, entries: list, fields: Callable[[dict], Fields], limit: int | None
) -> list[Question]:
    """Questions out of a list; `fields` finds id, images and text in an entry.

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
    """ValueError if there is something in a question that no file and no tokenizer takes."""
    for text in (str(question.question_id), *question.images, question.text):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{where}: {shorten(text)} holds half of a surrogate pair, which is no character."
            ) from None


def by_image(questions: Iterable[Question]) -> list[list[Question]]:
    """Questions about the same images together, in the order in which these come up first; without any, each alone."""
    groups: dict[tuple[str, ...] | int, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.images or question.row, []).append(question)
    return list(groups.values())


def missing_images(questions: Iterable[Question], folder: str | Path) -> dict[str, Question]:
    """Images that are no file in `folder`, each with the first question about it, in the order of the questions."""
    first: dict[str, Question] = {}
    for question in questions:
        for name in question.images:
            first.setdefault(name, question)
    return {name: question for name, question in first.items() if not is_file(Path(folder) / name)}
