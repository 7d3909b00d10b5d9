"""Where the files of the benchmarks lie: `python -m llava.eval.data [--task gqa]` says which are there.

With `--fetch` it makes those that are missing from Hugging Face data sets first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llava.eval.hub.fetch import fetch
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Task, is_there
from llava.inference.embedded import playground
from llava.utils.cli import add_verbose, run_command
from llava.utils.tables import to_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if all files that were asked about are there, else 1."""
    return run_command(show, parse_arguments(argv))


def show(args: argparse.Namespace) -> int:
    """Print where the files of benchmarks belong and which are there; returns the exit status."""
    if args.fetch is not None:
        fetch_tasks(args.task, args.fetch)
    tasks = [TASKS[name] for name in args.task or TASKS]
    all_parts = {task: parts for task in tasks if (parts := parts_of(task, embedded=args.embedded))}
    rules = {task: found for task in all_parts if (found := rules_of(task, embedded=args.embedded))}
    lacking = [task for task, parts in all_parts.items() if not all(is_there(path) for _, path in parts)]
    if args.ready:
        print("\n".join(task.name for task in all_parts if task not in lacking))
        return 0
    lines = [["task", "what", "where", "there"]]
    for task, parts in all_parts.items():
        lines += [[task.name, what, str(path), state_of(path)] for what, path in parts]
        if task in rules:
            path, _ = rules[task]
            lines.append([task.name, "judge's rules", str(path), state_of(path)])
    notes = [f"\n{task.name}: {task.how_to_fetch(embedded=args.embedded)}" for task in lacking]
    notes += [
        f"\n{task.name}: for the judge, {path.name} to {path.parent}: {source}"
        for task, (path, source) in rules.items()
        if not path.exists()
    ]
    print("\n".join([to_table(lines, left=4), *notes]))
    return 1 if lacking else 0


def parts_of(task: Task, *, embedded: bool) -> list[tuple[str, Path]]:
    """List what each file of a task holds and where it belongs; none if it has no embedded files."""
    data = task.embedded if embedded else task.data
    parts = data.below(playground()).parts() if data else []
    return [(what, path) for what, path in parts if not (task.packed and what == "images")]


def rules_of(task: Task, *, embedded: bool) -> tuple[Path, str] | None:
    """Name the file with the rules of a task's judge, and where it comes from; None without a judge.

    Answers can be made without it, but not graded.
    """
    data = task.embedded if embedded else task.data
    if not data or not task.judge:
        return None
    return data.below(playground()).answers.parent / task.judge.RULES, task.judge.SOURCE


def state_of(path: Path) -> str:
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
        prog="python -m llava.eval.data",
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
