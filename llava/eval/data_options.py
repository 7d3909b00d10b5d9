"""Options that name a benchmark's files, and the check that all of them are there."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from llava.eval.questions import Question, missing_images
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data, Task
from llava.inference.embedded import playground
from llava.utils.cli import positive

PLACES = ("question_file", "image_folder", "annotation_file")  # fields of `Data`, and options


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name files in place of the usual ones."""
    add = parser.add_argument_group("data (default: LLaVA's layout under playground/data)").add_argument
    add("--question-file", metavar="FILE", help="JSONL with question_id, image, text; or the benchmark's own form")
    add("--image-folder", metavar="DIR", help="what `image` is relative to")
    add("--annotation-file", metavar="FILE", help="the true answers")
    add("--limit", type=positive, metavar="N", help="only the first N questions")


def choose_data(args, task: Task) -> Data:
    """Choose the files to use, all of which exist.

    Args:
        args: the options of `add_data_options`, and `checkpoint`: without one, the embedded files are the usual ones.
        task: whose files.

    Raises:
        ValueError: files are missing, or an option of any kind is empty, which would be taken for one left out.
    """
    if empty := [name.replace("_", "-") for name, value in vars(args).items() if value == ""]:
        raise ValueError(f"Empty: {', '.join(empty)}. Is a shell variable not set? Give a value, or leave that out.")
    given = {name: Path(path) for name in PLACES if (path := getattr(args, name))}
    data = moved(usual_data(task, embedded=not args.checkpoint), given, task)
    if task.packed:
        task.packed.unpack(data)
    if missing := data.missing():
        names = ", ".join(f"{path} (an empty folder)" if path.exists() else str(path) for path in missing)
        raise ValueError(
            f"{task.name} needs files that are not there: {names}. {task.how_to_fetch(embedded=not args.checkpoint)}\n"
            f"Or name other places with --question-file, --image-folder and --annotation-file."
        )
    return data


def usual_data(task: Task, *, embedded: bool) -> Data:
    """Name the usual files of a task, or the embedded ones. Raises ValueError if it has no embedded ones."""
    data = task.embedded if embedded else task.data
    if data is None:
        known = ", ".join(name for name, other in TASKS.items() if other.embedded)
        raise ValueError(f"{task.name} has no embedded data: name a CHECKPOINT, or try one of {known}.")
    return data.below(playground())


def moved(usual: Data, given: dict[str, Path], task: Task) -> Data:
    """Put the `given` places into the usual ones, by the name of the field.

    What is one place by default stays one: else questions of one release would meet the answers of another. Images that
    are unpacked from the question file move with it.
    """
    elsewhere = {getattr(usual, name): path for name, path in given.items()}
    places = {name: elsewhere[place] for name in PLACES if (place := getattr(usual, name)) in elsewhere} | given
    if task.packed and "question_file" in places:
        places.setdefault("image_folder", task.packed.folder_of(places["question_file"]))
    return replace(usual, **places)


def require_images(questions: Iterable[Question], question_file: str | Path, folder: str | Path, ways_out: str) -> None:
    """Raise ValueError, which ends in `ways_out`, if an image of the questions is not in `folder`."""
    if missing := missing_images(questions, folder):
        name, question = next(iter(missing.items()))
        raise ValueError(
            f"Not all images are in {folder}: {len(missing)} missing, the first of them {name} "
            f"({question_file}, line {question.line}). {ways_out}"
        )
