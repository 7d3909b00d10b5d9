"""Where the files of the benchmarks lie: `python -m llava.eval.data [--task gqa]` says which are there."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.cli import add_verbose, status_of
from llava.tables import to_table


@dataclass(frozen=True)
class Data:
    """The questions, images and true answers of a benchmark.

    Args:
        question_file: in the form that the task reads.
        image_folder: what a question's image is relative to.
        annotation_file: the true answers: a file, or a folder of several.
        fetch: how to get them, one step per line; shown when a file is missing.
    """

    question_file: Path
    image_folder: Path
    annotation_file: Path
    fetch: tuple[str, ...] = ()

    def how_to_fetch(self) -> str:
        return "Fetch\n" + "\n".join(f"  {step}" for step in self.fetch)

    def below(self, root: Path) -> "Data":
        """The same with paths relative to `root` made whole."""
        return Data(root / self.question_file, root / self.image_folder, root / self.annotation_file, self.fetch)

    def missing(self) -> list[Path]:
        return [path for path in (self.question_file, self.image_folder, self.annotation_file) if not path.exists()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if all files that were asked about are there, else 1."""
    return status_of(show, parse_arguments(argv))


def show(args: argparse.Namespace) -> int:
    from llava.eval.tasks import TASKS, playground

    root, tasks = playground(), [TASKS[name] for name in args.task or TASKS]
    found = {task.name: (task.embedded if args.embedded else task.data) for task in tasks}
    found = {name: data.below(root) for name, data in found.items() if data}
    if args.ready:
        print("\n".join(name for name, data in found.items() if not data.missing()))
        return 0
    lines = [["task", "what", "where", "there"]]
    for name, data in found.items():
        for what, path in (
            ("questions", data.question_file),
            ("images", data.image_folder),
            ("answers", data.annotation_file),
        ):
            lines.append([name, what, str(path), "yes" if path.exists() else "no"])
    print(to_table(lines, left=4))
    lacking = {name: data for name, data in found.items() if data.missing()}
    for name, data in lacking.items():
        print(f"\n{name}: {data.how_to_fetch()}")
    return 1 if lacking else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from llava.eval.tasks import TASKS

    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.data",
        description="Which files of the benchmarks are there, where they belong, and where they come from. "
        "Exit status 1 if one is missing.",
    )
    add = parser.add_argument
    add("--task", nargs="+", choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)} (default: all)")
    add("--embedded", action="store_true", help="the small sets for the embedded model, which come with the project")
    add("--ready", action="store_true", help="print just the names of those that are complete, one in a line")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
