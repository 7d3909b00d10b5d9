"""Score answers of `llava.eval.model_vqa_science`, with LLaVA's flags: `python -m llava.eval.eval_science_qa`.

A question of the split without an answer counts as wrong. `llava.eval.run scienceqa` scores its answers by itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.metrics import scienceqa
from llava.eval.questions import read_answers
from llava.eval.tasks.base import naming_files
from llava.utils.cli import add_verbose, run_command
from llava.utils.files import make_folder, read_json, require_apart, require_distinct, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(evaluate, parse_arguments(argv))


def evaluate(args: argparse.Namespace) -> int:
    """Print upstream's line of scores, and write the files that were asked for."""
    problems, splits = (Path(args.base_dir) / name for name in ("problems.json", "pid_splits.json"))
    outputs = {"--output-file": args.output_file, "--output-result": args.output_result}
    require_apart(filter(None, outputs.values()), [args.result_file, problems, splits])
    require_distinct(outputs)
    rows = read_answers(args.result_file, "question_id", "prompt", "text")
    with naming_files("ScienceQA", problems, splits):
        result = scienceqa.score(read_json(problems), read_split(splits, args.split), rows, args.options)
    print(result.report())
    for path, content in zip(outputs.values(), (result.analysis(), result.summary()), strict=True):
        if path:
            make_folder(Path(path).parent)
            write_json(path, content)
    return 0


def read_split(path: Path, name: str) -> list[str]:
    """Read the ids of a split.

    Raises:
        ValueError: the file is no object of lists, or has no such list.
    """
    splits = read_json(path)
    if not isinstance(splits, dict) or not all(isinstance(ids, list) for ids in splits.values()):
        raise ValueError(f"{path}: expected an object of lists of ids, as in {{'test': ['4', '5']}}.")
    if name not in splits:
        raise ValueError(f"--split {name}: {path} has {', '.join(splits)}.")
    return splits[name]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_science_qa", description="Accuracy of ScienceQA's answers."
    )
    add = parser.add_argument
    add("--base-dir", required=True, help="folder of problems.json and pid_splits.json")
    add("--result-file", required=True, help="answers, one JSON object per line")
    add("--output-file", help="JSON to write: each answer, right or wrong")
    add("--output-result", help="JSON to write: scores, choices and texts")
    add("--split", default="test", help="list of pid_splits.json (default: test)")
    add("--options", type=list, default=list(scienceqa.OPTIONS), help="letters of the choices (default: ABCDE)")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
