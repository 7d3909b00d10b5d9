"""Score POPE's answers, with LLaVA's flags: `python -m llava.eval.eval_pope`.

Only answered questions count; answers are known by their ids.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.metrics import pope
from llava.eval.questions import read_answers
from llava.eval.tasks.base import naming_files
from llava.eval.tasks.pope import results_by_list
from llava.utils.cli import add_verbose, print_once, run_command
from llava.utils.files import read_jsonl


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(evaluate, parse_arguments(argv))


def evaluate(args: argparse.Namespace) -> int:
    """Print the scores of each list of objects, as upstream's script does."""
    rows = read_answers(args.result_file, "question_id", "text")
    questions, labels = Path(args.question_file), Path(args.annotation_dir)
    with naming_files("POPE", questions, labels):
        results = results_by_list(questions, labels, rows)
    for name, result in sorted(results.items()):
        print(f"Category: {name}, # samples: {result.count}\n{result.report()}\n{'=' * 36}")
    asked, answered = len(read_jsonl(questions)), sum(result.count for result in results.values())
    if answered < asked:
        print_once(f"{asked - answered} of {asked} questions are not answered; they are left out of the scores.")
    return 0


def eval_pope(answers: Sequence[Mapping], label_file: str | Path) -> pope.PopeResult:
    """Print, and return, the scores of answers to all questions of one of POPE's lists.

    Args:
        answers: with `text`, in the list's order.
        label_file: the list, such as coco_pope_random.json.


    Raises:
        ValueError: not as many answers as `label_file` has labels.
    """
    result = pope.score([answer["text"] for answer in answers], [row["label"] for _, row in read_jsonl(label_file)])
    print(result.report())
    return result


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_pope", description="Precision, recall and F1 of POPE's answers."
    )
    add = parser.add_argument
    add("--annotation-dir", required=True, help="folder of coco_pope_random.json, ..._popular and ..._adversarial")
    add("--question-file", required=True, help="llava_pope_test.jsonl")
    add("--result-file", required=True, help="answers, one JSON object per line")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
