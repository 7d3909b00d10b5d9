"""Where the files of the benchmarks lie: `python -m llava.eval.data [--task gqa]` says which are there.

With `--fetch` it makes those that are missing from Hugging Face data sets first.
"""

import argparse
import sys
from collections.abc import Sequence

from llava.eval.hub.fetch import fetch
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data, Task, is_there
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
    lines, lacking, notes, ready = [["task", "what", "where", "there"]], [], [], []
    for task in [TASKS[name] for name in args.task or TASKS]:
        if not (data := task.embedded if args.embedded else task.data):
            continue
        data = data.below(playground())
        parts = [(what, path) for what, path in data.parts() if not (task.packed and what == "images")]
        there = ["yes" if is_there(path) else "empty" if path.exists() else "no" for _, path in parts]
        lines += [[task.name, what, str(path), state] for (what, path), state in zip(parts, there, strict=True)]
        if set(there) == {"yes"}:
            ready.append(task.name)
        else:
            lacking.append(f"\n{task.name}: {task.how_to_fetch(embedded=args.embedded)}")
        if task.judge:  # answers can be made without its judge's rules
            line, note = show_rules(task, data)
            lines.append(line)
            notes += note
    if args.ready:
        print("\n".join(ready))
        return 0
    print("\n".join([to_table(lines, left=4), *lacking, *notes]))
    return 1 if lacking else 0


def show_rules(task: Task, data: Data) -> tuple[list[str], list[str]]:
    """Say where the rules of a task's judge belong: a line of the table, and how to get them if they are missing."""
    rules = data.answers.parent / task.judge.RULES
    line = [task.name, "judge's rules", str(rules), "yes" if rules.exists() else "no"]
    note = f"\n{task.name}: for the judge, {task.judge.RULES} to {rules.parent}: {task.judge.SOURCE}"
    return line, [] if rules.exists() else [note]


def fetch_tasks(names: Sequence[str], source: str | bool) -> None:
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
