"""Score answers of `llava.eval.model_vqa_science`, with LLaVA's flags: `python -m llava.eval.eval_science_qa`.

A question of the split without an answer counts as wrong. `llava.eval.run scienceqa` scores its answers by itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.cli import add_verbose, status_of
from llava.eval.metrics import scienceqa
from llava.files import make_folder, read_json, read_jsonl, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(evaluate, parse_arguments(argv))


def evaluate(args: argparse.Namespace) -> int:
    """Print upstream's line of scores, and write the files that were asked for."""
    base = Path(args.base_dir)
    splits = read_json(base / "pid_splits.json")
    if args.split not in splits:
        raise ValueError(f"--split {args.split}: {base / 'pid_splits.json'} has {', '.join(splits)}.")
    rows = [row for _, row in read_jsonl(args.result_file)]
    fields = {"question_id", "prompt", "text"}
    if wrong := [number for number, row in enumerate(rows, start=1) if not fields <= row.keys()]:
        raise ValueError(f"{args.result_file}, answer {wrong[0]}: no question_id, prompt or text.")
    result = scienceqa.score(read_json(base / "problems.json"), splits[args.split], rows, args.options)
    print(result.report())
    for path, content in ((args.output_file, result.analysis()), (args.output_result, result.summary())):
        if path:
            make_folder(Path(path).parent)
            write_json(path, content)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
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
