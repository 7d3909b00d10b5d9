"""Let a language model grade free answers: `python -m llava.eval.judge mmvet ANSWERS --base-url URL --model NAME`.

ANSWERS is what `llava.eval.run` has written, or several such files. Any endpoint that takes OpenAI's /chat/completions
will do, a local one too; no other command asks one. Next to NAME.jsonl:

    NAME.jsonl.graded-by-JUDGE.jsonl   a row per grade, appended as they come: the same command asks for those that are
                                       missing, and again for those that could not be read
    NAME.jsonl.result.json             gets the scores, and the names under which the judge has answered
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.judging.endpoint import Judge
from llava.eval.judging.grade import Verdict, grade_all, to_verdict
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Graded
from llava.inference.embedded import playground
from llava.utils.cli import EXIT_STATUSES, QUESTIONS_REFUSED, add_verbose, positive, print_once, program, run_command
from llava.utils.files import read_json, read_jsonl, shorten, write_json
from llava.utils.tables import to_table

JUDGED = {name: task.judge for name, task in TASKS.items() if task.judge}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(run, parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Have answers graded, note the scores in their results and print them; returns the exit status."""
    kind = JUDGED[args.task]
    if args.runs > 1 and not kind.REPEATS:
        repeated = ", ".join(name for name, other in JUDGED.items() if other.REPEATS)
        raise ValueError(f"--runs is for {repeated}: the other benchmarks' scripts have every answer graded once.")
    key = read_key(args.key_env)
    folder, rules = choose_rules(args.task, args.data, args.rules)
    judge = Judge(args.base_url, args.model, key)
    paths = list(map(Path, args.answers))
    results = {path: read_result(path, args.task) for path in paths}  # before anything that may cost money
    all_graded = {path: kind(folder, rules, read_answers(path)) for path in paths}

    verdicts = {}
    for path, graded in all_graded.items():
        grades = grade_all(graded, judge, path, runs=args.runs, parallel=args.parallel)
        verdict = verdicts[path] = to_verdict(graded, grades)
        if verdict.scores:
            record = {"asked": args.model, "answered": verdict.judges, "runs": args.runs, "std": verdict.std}
            counts = {"grades": verdict.grades, "unreadable": len(verdict.unreadable)}
            save(path, results[path], verdict.scores, record | counts)
        if verdict.unreadable:
            print_once(f"{path}: {complaint(verdict, kind.UNREADABLE)}")
    print(to_table(to_lines(all_graded, verdicts), left=2))
    return QUESTIONS_REFUSED if any(verdict.unreadable for verdict in verdicts.values()) else 0


def read_key(variable: str | None) -> str:
    """Read the endpoint's key from an environment variable. Raises ValueError if that is empty or not set."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise ValueError(f"The environment variable {variable}, which --key-env names, is empty or not set.")
    return key


def choose_rules(task: str, folder: str | None, rules: str | None) -> tuple[Path, Path]:
    """Choose the folder of a benchmark's files and the file with its rules for the judge.

    Args:
        task: the benchmark.
        folder: in place of the usual folder.
        rules: in place of the file in that folder.

    Raises:
        ValueError: there are no rules.
    """
    place = Path(folder or TASKS[task].data.below(playground()).answers.parent)
    path = Path(rules or place / JUDGED[task].RULES)
    if not path.is_file():
        raise ValueError(f"{path}, with which the judge is asked, is not there. Fetch it from {JUDGED[task].SOURCE}")
    return place, path


def save(path: Path, result: dict | None, scores: dict[str, float], record: dict) -> None:
    """Put the scores, and a record of the judge, into the result of the answers in `path`, if it has one."""
    if result is None:
        print_once(f"{path} has no result file, so llava.eval.report will not show these scores.")
        return
    before = result.get("judge")
    if before and before["asked"] != record["asked"]:
        old = ", ".join(f"{name} {score:.1f}" for name, score in result["scores"].items())
        print_once(f"{result_file(path)}: replaces {old} by {', '.join(before['answered'])}.")
    write_json(result_file(path), {**result, "scores": scores, "judge": record})


def complaint(verdict: Verdict, counts_as: str) -> str:
    """Report grades that cannot be read: how many, what they count as, and what the judge has said instead."""
    if verdict.scores:
        text = f"{len(verdict.unreadable)} of {verdict.grades} grades cannot be read and count as {counts_as}, as in "
        text += "the benchmark's own script."
    else:
        text = f"none of the {verdict.grades} grades can be read, so there is no score; its result stays as it was."
    reply = shorten(verdict.unreadable[0], 300)
    return f"{text} The judge said, for instance, {reply}. The same command asks again for what cannot be read."


def to_lines(all_graded: Mapping[Path, Graded], verdicts: Mapping[Path, Verdict]) -> list[list[str]]:
    """Write the cells of a table: answers, judge and scores; files may be of different parts of a benchmark."""
    names = list(dict.fromkeys(name for verdict in verdicts.values() for name in verdict.scores))
    lines = [["answers", "judge", *names, "questions", "unreadable"]]
    for path, verdict in verdicts.items():
        scores = [f"{verdict.scores[name]:.1f}" if name in verdict.scores else "-" for name in names]
        counts = (
            f"{len(all_graded[path].prompts)} of {all_graded[path].asked}",
            f"{len(verdict.unreadable)} of {verdict.grades}",
        )
        lines.append([str(path), ", ".join(verdict.judges), *scores, *counts])
    return lines


def result_file(path: Path) -> Path:
    """Name the file with the result of an answers file."""
    return path.with_name(f"{path.name}.result.json")


def read_result(path: Path, task: str) -> dict | None:
    """Read the result of the run that made the answers, if any. Raises ValueError if it was of another task."""
    if not result_file(path).exists():
        return None
    result = read_json(result_file(path))
    if (made_for := result["settings"]["task"]) != task:
        raise ValueError(f"{path} holds answers to {made_for}, not to {task}.")
    return result


def read_answers(path: Path) -> list[dict]:
    """Read the rows of an answers file.

    Raises:
        ValueError: there are none, or a row holds no answer.
    """
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: no answers in it.")
    for number, row in rows:
        if not {"question_id", "text"} <= row.keys():
            raise ValueError(f"{path}, line {number}: no answer, which has a question_id and a text.")
        if "image" in row and "answer_id" not in row:
            raise ValueError(
                f"{path}, line {number}: a question, not an answer. Give the file that llava.eval.run made."
            )
    return [row for _, row in rows]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("llava.eval.judge"),
        usage="%(prog)s TASK ANSWERS ... --base-url URL --model NAME [option ...]",
        description="Let a language model grade the answers to a benchmark, and add the grades up as the benchmark's "
        "own script does. An interrupted run goes on with the same command. Grades of different judges do not compare.",
        epilog=f"{EXIT_STATUSES} A question whose grade cannot be read counts as not answered.",
    )
    add = parser.add_argument
    add("task", choices=JUDGED, metavar="TASK", help=f"one of {', '.join(JUDGED)}")
    add("answers", nargs="+", metavar="ANSWERS", help="JSONL files with question_id and text, from llava.eval.run")
    add("--base-url", required=True, metavar="URL", help="its address, such as http://localhost:8000/v1")
    add("--model", required=True, metavar="NAME", help="the judge, by the name that the endpoint knows")
    add("--key-env", metavar="VARIABLE", help="environment variable with the endpoint's key (default: no key is sent)")
    add("--data", metavar="DIR", help="folder of the benchmark's files (default: below playground/data/eval)")
    rules = " and ".join(f"{kind.RULES} of {task}" for task, kind in JUDGED.items())
    add("--rules", metavar="FILE", help=f"how the judge is asked: {rules} (default: in that folder)")
    add("--runs", type=positive, default=1, metavar="N", help="mmvet: grade so many times (default: 1; its paper: 5)")
    add("--parallel", type=positive, default=4, metavar="N", help="requests at a time (default: 4)")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
