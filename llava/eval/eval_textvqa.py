"""Score TextVQA answers: `python -m llava.eval.eval_textvqa --annotation-file A.json --result-file R.jsonl`."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.eval.metrics.textvqa import question_in_prompt, score
from llava.eval.questions import read_answers
from llava.utils.cli import add_verbose, run_command
from llava.utils.files import read_json

logger = logging.getLogger(__name__)

prompt_processor = question_in_prompt  # upstream's name


class TextVQAEvaluation(NamedTuple):
    """Accuracy over the answered questions, and how many there are."""

    accuracy: float  # 0 to 1
    samples: int  # answers scored
    unanswered: int  # questions of the annotation that no answer was given for

    def report(self) -> str:
        """Write the lines that LLaVA's script prints."""
        return f"Samples: {self.samples}\nAccuracy: {100 * self.accuracy:.2f}%"


def evaluate(annotation_file: str | Path, rows: Sequence[Mapping]) -> TextVQAEvaluation:
    """Score answers against a TextVQA annotation.

    Only answered questions are scored; a warning says if some were left out or answered twice.

    Args:
        annotation_file: JSON with a list `data` of `image_id`, `question` and ten `answers`. A question is known by its
            image and its text, in lower case.
        rows: answers with `question_id` (the image's id), `prompt` and `text`.

    Raises:
        ValueError: the annotation or a prompt is not as described, there are no rows, or rows ask what the annotation
            does not have.
    """
    if not rows:
        raise ValueError("There are no answers to score.")
    known = read_annotation(annotation_file)
    asked = [(row["question_id"], question_in_prompt(row["prompt"])) for row in rows]
    if unknown := [key for key in asked if key not in known]:
        images = {image for image, _ in known}
        (image, question), *_ = unknown
        has = "other questions about this image" if image in images else "no such image"
        raise ValueError(
            f"{annotation_file} lacks {len(unknown)} of the {len(asked)} (image, question) pairs answered. The first "
            f"is ({image!r}, {question!r}); the annotation has {has}. Answers and annotation must be of one release."
        )
    if repeated := len(asked) - len(set(asked)):
        logger.warning("%d answers repeat a question that was answered before; all of them are scored.", repeated)
    if unanswered := len(known) - len(set(asked)):
        logger.warning("%d of %d questions are not answered; they are left out of the score.", unanswered, len(known))
    result = score([row["text"] for row in rows], [known[key] for key in asked])
    return TextVQAEvaluation(result.accuracy, len(result.scores), unanswered)


def evaluate_file(annotation_file: str | Path, result_file: str | Path) -> TextVQAEvaluation:
    """Score the answers of a JSONL file, as `evaluate` does.

    Raises:
        ValueError: as `evaluate`, with the name of the file, and the line if one is broken.
    """
    rows = read_answers(result_file, "question_id", "prompt", "text")
    try:
        return evaluate(annotation_file, rows)
    except ValueError as error:
        raise ValueError(f"{result_file}: {error}") from None


def eval_single(annotation_file: str | Path, result_file: str | Path) -> TextVQAEvaluation:
    """Print, and return, the score of one file of answers. Raises ValueError as `evaluate_file`."""
    result = evaluate_file(annotation_file, result_file)
    print(f"{Path(result_file).stem}\n{result.report()}\n", flush=True)
    return result


def read_annotation(path: str | Path) -> dict[tuple, list[str]]:
    """Read the reference answers of a TextVQA annotation, by image and question in lower case.

    Raises:
        ValueError: the file holds something else.
    """
    content = read_json(path)
    try:
        known = {(entry["image_id"], entry["question"].lower()): entry["answers"] for entry in content["data"]}
        is_one = all(isinstance(answer, str) for answers in known.values() for answer in answers)
    except (KeyError, TypeError, AttributeError):
        is_one = False
    if not is_one:
        raise ValueError(
            f"{path} is no TextVQA annotation: expected {{'data': [{{'image_id', 'question', 'answers'}}, ...]}}. "
            f"The test split has no answers; use TextVQA_0.5.1_val.json."
        )
    return known


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, get_args(argv))


def run(args: argparse.Namespace) -> int:
    """Score the files that were asked for, one after the other."""
    files = [Path(args.result_file)] if args.result_file else []
    if args.result_dir:
        if not (found := sorted(Path(args.result_dir).glob("*.jsonl"))):
            raise ValueError(f"{args.result_dir}: no *.jsonl file there.")
        files += found
    for file in files:
        eval_single(args.annotation_file, file)
    return 0


def get_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags of the command line; the name is upstream's."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_textvqa", description="Accuracy of TextVQA's answers."
    )
    add = parser.add_argument
    add("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    add("--result-file", help="answers, one JSON object per line")
    add("--result-dir", help="folder of such files (*.jsonl), scored one after the other")
    add_verbose(parser)
    args = parser.parse_args(argv)
    if not (args.result_file or args.result_dir):
        parser.error("give answers: --result-file FILE.jsonl or --result-dir FOLDER")
    return args


if __name__ == "__main__":
    sys.exit(main())
