"""Where the files of the benchmarks lie: `python -m llava.eval.data [--task gqa]` says which are there.

With `--fetch` it makes those that are missing from Hugging Face data sets first.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.utils.cli import add_verbose, run_command
from llava.utils.tables import to_table


@dataclass(frozen=True)
class Data:
    """The questions, images and true answers of a benchmark.

    Args:
        question_file: in the form that the task reads.
        image_folder: what a question's image is relative to.
        annotation_file: the true answers, a file or a folder of several, or what else is needed when all is answered;
            None where nothing is.
        fetch: how to get them, one step per line; shown when a file is missing.
        spellings: the names that one folder of these goes by, the usual one first.
        hub: the task's name, if --fetch can make them.
        also: further files of the true answers, relative to `annotation_file`: names in that folder, or "../NAME".
    """

    question_file: Path
    image_folder: Path
    annotation_file: Path | None
    fetch: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    hub: str = ""
    also: tuple[str, ...] = ()

    def how_to_fetch(self) -> str:
        steps = list(self.fetch)
        if self.hub:
            steps.append(f"or from Hugging Face: python -m llava.eval.data --task {self.hub} --fetch")
        return "\n  ".join(["Fetch", *steps])

    def below(self, root: Path) -> "Data":
        """The same with paths relative to `root` made whole, each in the first spelling that is there.

        That of the question file comes first for the others, and where none is there.
        """

        def spelled(path: Path, spelling: str) -> Path:
            usual, *_ = self.spellings
            return root / (spelling / path.relative_to(usual) if path.is_relative_to(usual) else path)

        spellings = sorted(self.spellings, key=lambda name: not is_there(spelled(self.question_file, name)))
        whole = {}
        for name in ("question_file", "image_folder", "annotation_file"):
            if path := getattr(self, name):
                places = [spelled(path, spelling) for spelling in spellings] or [root / path]
                whole[name] = next((place for place in places if is_there(place)), places[0])
        return replace(self, **whole, spellings=())

    def parts(self) -> list[tuple[str, Path]]:
        """What each file or folder holds, and where it is."""
        answers = [self.annotation_file] if self.annotation_file else []
        answers += [Path(os.path.normpath(self.annotation_file / name)) for name in self.also]
        return [("questions", self.question_file), ("images", self.image_folder), *(("answers", at) for at in answers)]

    def texts(self) -> list[Path]:
        """All but the images: the question file, and those of the answers."""
        return [path for what, path in self.parts() if what != "images"]

    def missing(self) -> list[Path]:
        return [path for _, path in self.parts() if not is_there(path)]


def is_there(path: Path) -> bool:
    """Whether it is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if all files that were asked about are there, else 1."""
    return run_command(show, parse_arguments(argv))


def show(args: argparse.Namespace) -> int:
    from llava.eval.judge import BENCHES
    from llava.eval.tasks import TASKS
    from llava.inference.embedded import playground

    if args.fetch is not None:
        fetch_tasks(args.task, args.fetch)
    lines, lacking, notes, ready = [["task", "what", "where", "there"]], [], [], []
    for task in [TASKS[name] for name in args.task or TASKS]:
        if not (data := task.embedded if args.embedded else task.data):
            continue
        data = data.below(playground())
        parts = [(what, path) for what, path in data.parts() if not (task.unpack and what == "images")]
        there = ["yes" if is_there(path) else "empty" if path.exists() else "no" for _, path in parts]
        lines += [[task.name, what, str(path), state] for (what, path), state in zip(parts, there, strict=True)]
        if set(there) == {"yes"}:
            ready.append(task.name)
        else:
            lacking.append(f"\n{task.name}: {data.how_to_fetch()}")
        if bench := BENCHES.get(task.name):  # answers can be made without its judge's rules
            rules = data.annotation_file.parent / bench.RULES
            lines.append([task.name, "judge's rules", str(rules), "yes" if rules.exists() else "no"])
            if not rules.exists():
                notes.append(f"\n{task.name}: for the judge, {bench.RULES} to {rules.parent}: {bench.SOURCE}")
    if args.ready:
        print("\n".join(ready))
        return 0
    print("\n".join([to_table(lines, left=4), *lacking, *notes]))
    return 1 if lacking else 0


def fetch_tasks(names: Sequence[str], source: str | bool) -> None:
    from llava.eval.hub.fetch import fetch
    from llava.eval.tasks import TASKS
    from llava.inference.embedded import playground

    for name in names:
        written = fetch(TASKS[name], TASKS[name].data.below(playground()), source or None)
        done = f"{len(written)} files and their images written" if written else "all of it was there"
        print(f"{name}: {done}{f'; {source} was not needed' if source and not written else ''}.")


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
