"""Where the files of the benchmarks lie: `python -m llava.eval.data [--task gqa]` says which are there.

With `--fetch` it makes those that are missing from Hugging Face data sets first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from llava.eval.hub.fetch import fetch
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Task, is_there
from llava.inference.embedded import playground
from llava.utils.cli import add_verbose, program, run_command
from llava.utils.tables import to_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if all files that were asked about are there, else 1."""
    return run_command(show, parse_arguments(argv))


class State(NamedTuple):
    """Which files of a task are there."""

    task: Task
    lines: list[list[str]]  # of the table, a line for each file
    is_complete: bool  # so that its questions can be answered
    rules: str  # how to get the rules of its judge; empty where they are there, or it has none


def show(args: argparse.Namespace) -> int:
    """Print where the files of benchmarks belong and which are there; returns the exit status."""
    if args.fetch is not None:
        fetch_tasks(args.task, args.fetch)
    states = [look_up(TASKS[name], embedded=args.embedded) for name in args.task or TASKS]
    if args.ready:
        print("\n".join(state.task.name for state in states if state.is_complete))
        return 0
    lacking = [state.task for state in states if state.lines and not state.is_complete]
    lines = [["task", "what", "where", "there"], *(line for state in states for line in state.lines)]
    notes = [f"\n{task.name}: {task.how_to_fetch(embedded=args.embedded)}" for task in lacking]
    notes += [state.rules for state in states if state.rules]
    print("\n".join([to_table(lines, left=4), *notes]))
    return 1 if lacking else 0


def look_up(task: Task, *, embedded: bool) -> State:
    """Find out which files of a task are there, or which of the embedded ones, if it has any."""
    data = task.embedded if embedded else task.data
    if data is None:
        return State(task, [], is_complete=False, rules="")
    data = data.below(playground())
    parts = [(what, path) for what, path in data.parts() if not (task.packed and what == "images")]
    lines = [[task.name, what, str(path), say_if_there(path)] for what, path in parts]
    is_complete, note = all(is_there(path) for _, path in parts), ""
    if task.judge:  # answers can be made without its rules
        rules = data.answers.parent / task.judge.RULES
        lines.append([task.name, "judge's rules", str(rules), "yes" if rules.exists() else "no"])
        if not rules.exists():
            note = f"\n{task.name}: for the judge, {rules.name} to {rules.parent}: {task.judge.SOURCE}"
    return State(task, lines, is_complete, note)


def say_if_there(path: Path) -> str:
    """Say whether a file or folder is there: yes, no, or empty."""
    return "yes" if is_there(path) else "empty" if path.exists() else "no"


def fetch_tasks(names: Sequence[str], source: str | Literal[False]) -> None:
    """Fetch the files of tasks, and report what was written."""
    for name in names:
        written = fetch(TASKS[name], TASKS[name].data.below(playground()), source or None)
        done = f"{len(written)} files and their images written" if written else "all of it was there"
        print(f"{name}: {done}{f'; {source} was not needed' if source and not written else ''}.")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags, which must go together."""
    parser = argparse.ArgumentParser(
        prog=program("llava.eval.data"),
        description="Which files of the benchmarks are there, where they belong, and where they come from. "
        "Exit status 1 if one is missing.",
    )
    add = parser.add_argument
    add("--task", nargs="+", choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)} (default: all)")
    add("--embedded", action="store_true", help="the small sets for the embedded model, which come with the project")
    add("--ready", action="store_true", help="print just the names of those that are complete, one in a line")
    add(
        "--fetch",
        nargs="?",
        const=False,
        metavar="SOURCE",
        help="write the missing files and images of --task from a Hugging Face data set: a hub id, a folder of parquet "
        "files or one made by save_to_disk (default: the data set of lmms-eval, by its new id and then its old)",
    )
    add_verbose(parser)
    args = parser.parse_args(argv)
    if args.fetch is not None and (not args.task or args.embedded or args.ready):
        parser.error("--fetch needs --task, and goes with neither --embedded nor --ready")
    if args.fetch == "":
        parser.error("--fetch is given an empty SOURCE: name one, or leave it out for the usual data set")
    if args.fetch and len(args.task) > 1:
        parser.error(f"--fetch {args.fetch} is a source for one task, not for {len(args.task)}: name one --task")
    return args


if __name__ == "__main__":
    sys.exit(main())
