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

    def parts(self) -> dict[str, Path]:
        return {"questions": self.question_file, "images": self.image_folder, "answers": self.annotation_file}

    def missing(self) -> list[Path]:
        return [path for path in self.parts().values() if not path.exists()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if all files that were asked about are there, else 1."""
    return status_of(show, parse_arguments(argv))


def show(args: argparse.Namespace) -> int:
    from llava.eval.tasks import TASKS, playground

    lines, lacking, ready = [["task", "what", "where", "there"]], [], []
    for task in [TASKS[name] for name in args.task or TASKS]:
        if not (data := task.embedded if args.embedded else task.data):
            continue
        data = data.below(playground())
        parts = {what: path for what, path in data.parts().items() if not (task.unpack and what == "images")}
        there = {what: path.exists() for what, path in parts.items()}
        lines += [[task.name, what, str(path), "yes" if there[what] else "no"] for what, path in parts.items()]
        if all(there.values()):
            ready.append(task.name)
        else:
            lacking.append(f"\n{task.name}: {data.how_to_fetch()}")
    if args.ready:
        print("\n".join(ready))
        return 0
    print("\n".join([to_table(lines, left=4), *lacking]))
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
