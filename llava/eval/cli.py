"""Options that the commands of this package share: where the data lies, and whether all of it is there."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from llava.eval.questions import Question, missing_images
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data, Task
from llava.inference.embedded import playground
from llava.utils.cli import positive


def add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data (default: LLaVA's layout under playground/data)").add_argument
    add("--question-file", metavar="FILE", help="JSONL with question_id, image, text; or the benchmark's own form")
    add("--image-folder", metavar="DIR", help="what `image` is relative to")
    add("--annotation-file", metavar="FILE", help="the true answers")
    add("--limit", type=positive, metavar="N", help="only the first N questions")


def choose_data(args: argparse.Namespace, task: Task) -> Data:
    """The files to use, all of which exist, for the options of `add_data_options`.

    Raises:
        ValueError: files are missing, or an option of any kind is empty, which would be taken for one left out.
    """
    if empty := [name.replace("_", "-") for name, value in vars(args).items() if value == ""]:
        raise ValueError(f"Empty: {', '.join(empty)}. Is a shell variable not set? Give a value, or leave that out.")
    default = task.data if args.checkpoint else task.embedded
    if default is None:
        embedded = ", ".join(name for name, other in TASKS.items() if other.embedded)
        raise ValueError(f"{task.name} has no embedded data: name a CHECKPOINT, or try one of {embedded}.")
    default = default.below(playground())
    names = ("question_file", "image_folder", "annotation_file")
    given = {name: Path(path) for name in names if (path := getattr(args, name))}
    moved = {getattr(default, name): path for name, path in given.items()}
    # What is one place by default stays one: else questions of one release would meet the answers of another.
    given = {name: moved[usual] for name in names if (usual := getattr(default, name)) in moved} | given
    if task.packed and "question_file" in given:
        given.setdefault("image_folder", task.packed.folder_of(given["question_file"]))
    data = replace(default, **given)
    if task.packed:
        task.packed.unpack(data)
    if missing := data.missing():
        names = ", ".join(f"{path} (an empty folder)" if path.exists() else str(path) for path in missing)
        raise ValueError(
            f"{task.name} needs files that are not there: {names}. {task.how_to_fetch(embedded=not args.checkpoint)}\n"
            f"Or name other places with --question-file, --image-folder and --annotation-file."
        )
    return data


def require_images(questions: Iterable[Question], question_file: str | Path, folder: str | Path, ways_out: str) -> None:
    """Raises ValueError, which ends in `ways_out`, if an image is not in `folder`."""
    if missing := missing_images(questions, folder):
        name, question = next(iter(missing.items()))
        raise ValueError(
            f"Not all images are in {folder}: {len(missing)} missing, the first of them {name} "
            f"({question_file}, line {question.line}). {ways_out}"
        )
