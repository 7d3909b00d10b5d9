"""Can all of this be trained on? `python -m llava.data.verify DATA.json --image-folder DIR [--clean CLEAN.json]`.

Looks at every record and every image file and reports what would stop training, apart from what is merely odd.
"""

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from llava.data.records import Problem, image_names, inspect, read_records, write_records
from llava.utils.cli import add_verbose, positive, run_command
from llava.utils.files import is_file, make_folder, require_apart, require_distinct, write_json

BAD_RECORDS = 1  # exit status
EXIT_STATUSES = "Exit status: 0 all can be trained on, 1 some cannot, 2 bad request, 70 a bug, 130 interrupted."

HARMLESS = ("no id", "duplicate id", "ids of mixed type", "mislabelled")  # every other kind stops training
WORKERS = 8  # reading headers waits for the disk, not for a core
AT_ONCE = 64  # images per task of a thread: a header takes 50 us, a task of its own would take as long again

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"}


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        records: the records that were checked.
        bad: index of a record to what stops training on it.
        odd: index of a record to what is harmless.
        renamed: image name to the name with another extension under which the file is there.
    """

    records: Sequence[dict]
    bad: dict[int, list[Problem]]
    odd: dict[int, list[Problem]]
    renamed: dict[str, str]

    @property
    def notes(self) -> dict[str, int]:
        """Count the records of each harmless kind."""
        return count_kinds(self.odd)

    def summary(self, examples: int = 1) -> str:
        """Format the kinds of problems, the number of records of each, and the first `examples` of them."""
        total = f"{len(self.records):,} records"
        lines = (
            [f"{len(self.bad):,} of {total} cannot be trained on:"] if self.bad else [f"All {total} can be trained on."]
        )
        lines += self._table(self.bad, examples)
        if self.odd:
            lines += ["Harmless:", *self._table(self.odd, examples)]
        return "\n".join(lines)

    def _table(self, found: dict[int, list[Problem]], examples: int) -> Iterator[str]:
        """Format each kind of problem with the number of its records and some examples, line by line."""
        for kind, count in count_kinds(found).items():
            yield f"  {kind:<24}{count:>9,}"
            having = (
                (i, problem.detail) for i, problems in found.items() for problem in problems if problem.kind == kind
            )
            for index, detail in islice(having, examples):
                yield f"      record {index} (id {self.records[index].get('id')!r}){': ' * bool(detail)}{detail}"

    def clean(self) -> list[dict]:
        """Return the records that can be trained on, with images named as their files are."""
        kept = []
        for index, record in enumerate(self.records):
            problems = self.bad.get(index, ())
            if any(problem.kind != "wrong extension" for problem in problems):
                continue
            kept.append(self._rename(record) if problems else record)
        return kept

    def _rename(self, record: dict) -> dict:
        """Return a record with its images named as their files are."""
        names = [self.renamed.get(name, name) for name in image_names(record)]
        return record | {"image": names if isinstance(record["image"], list) else names[0]}

    def to_dict(self) -> dict:
        """Return everything found, for a JSON file."""
        return {
            "records": len(self.records),
            "bad_records": len(self.bad),
            "bad": count_kinds(self.bad),
            "harmless": self.notes,
            "problems": [
                {"record": index, "id": self.records[index].get("id"), **problem._asdict()}
                for index, problems in sorted([*self.bad.items(), *self.odd.items()])
                for problem in problems
            ],
        }


def count_kinds(found: dict[int, list[Problem]]) -> dict[str, int]:
    """Count the records of each kind of problem, the most frequent first."""
    kinds = Counter(kind for problems in found.values() for kind in {problem.kind for problem in problems})
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def check(
    records: Sequence[dict],
    image_folder: str | Path | None,
    *,
    decode: bool = False,
    num_workers: int = WORKERS,
    progress: Callable[..., Iterable] | None = None,
) -> Report:
    """Look at all records and, once each, at the image files they name.

    Args:
        records: as `read_records` gives them.
        image_folder: where the names of the images start; None: they are paths by themselves.
        decode: decode every image as training does, instead of reading its header only.
        num_workers: threads.
        progress: wraps an iterator with one item per image and is given its `total`, as `tqdm` does.

    Raises:
        ValueError: there are images, but no such folder.
    """
    found = record_problems(records)
    users = users_of_images(records)
    folder = image_folder or ""
    if users and not Path(folder).is_dir():
        raise ValueError(
            f"Image folder {folder}: no such folder. {len(users)} image files are needed, the first of them "
            f"{next(iter(users))}; give the folder that this name starts from."
        )
    renamed = {}
    for name, seen in zip(users, look_at_all(list(users), folder, decode, num_workers, progress), strict=True):
        if seen.name != name:
            renamed[name] = seen.name
        if seen.problem:
            for index in users[name]:
                found[index].append(seen.problem)

    return Report(records, part_of(found, harmless=False), part_of(found, harmless=True), renamed)


def record_problems(records: Sequence[dict]) -> dict[int, list[Problem]]:
    """Find what is wrong with each record, by its index, without a look at image files."""
    found = {index: inspect(record) for index, record in enumerate(records)}
    for index, problem in id_problems(records):
        found[index].append(problem)
    return found


def users_of_images(records: Sequence[dict]) -> dict[str, list[int]]:
    """List for each image name the indices of the records that use it."""
    users = defaultdict(list)
    for index, record in enumerate(records):
        for name in dict.fromkeys(name for name in image_names(record) if isinstance(name, str) and name):
            users[name].append(index)
    return users


def part_of(found: dict[int, list[Problem]], *, harmless: bool) -> dict[int, list[Problem]]:
    """Keep of each record's problems the harmless ones or the others, and of the records those that have any."""
    kept = {
        index: [problem for problem in problems if (problem.kind in HARMLESS) is harmless]
        for index, problems in found.items()
    }
    return {index: problems for index, problems in kept.items() if problems}


def id_problems(records: Sequence[dict]) -> Iterator[tuple[int, Problem]]:
    """Find ids that come twice, and ids of another type than most have, each with the index of its record."""
    ids = {index: record["id"] for index, record in enumerate(records) if record.get("id") is not None}
    types = Counter(type(one).__name__ for one in ids.values()).most_common(1)
    first_use = {}
    for index, one in ids.items():
        ((usual, _),) = types
        if (own := type(one).__name__) != usual:
            yield index, Problem("ids of mixed type", f"{own}, most are {usual}")
        if (first := first_use.setdefault(repr(one), index)) != index:
            yield index, Problem("duplicate id", f"as record {first}")


class Seen(NamedTuple):
    """An image file: the name under which it is there, if it is, and what is wrong with it."""

    name: str
    problem: Problem | None


def look_at_all(
    names: list[str], folder: str | Path, decode: bool, num_workers: int, progress: Callable[..., Iterable] | None
) -> Iterator[Seen]:
    """Call `look_at` for each name, in order, by threads."""
    batches = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="verify")
    try:
        seen = chain.from_iterable(pool.map(lambda batch: [look_at(folder, name, decode) for name in batch], batches))
        yield from progress(seen, total=len(names)) if progress else seen
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(folder: str | Path, name: str, decode: bool) -> Seen:
    """Check whether an image is there, under this name, and readable."""
    path = os.path.join(folder, name)
    if is_file(path):
        return Seen(name, flaw(path, decode))
    stem = os.path.splitext(name)[0]
    for suffix in chain.from_iterable((suffix, suffix.upper()) for suffix in FORMATS):
        if is_file(other := os.path.join(folder, stem + suffix)):
            wrong = Problem("wrong extension", f"{name} is there as {os.path.basename(other)}")
            problem = flaw(other, decode)
            return Seen(stem + suffix, problem if problem and problem.kind == "corrupt" else wrong)
    return Seen(name, Problem("missing file", f"{name} is not in {folder or os.curdir}"))


def flaw(path: str, decode: bool) -> Problem | None:
    """Return what is wrong with an image file that is there; None if nothing is."""
    try:
        with Image.open(path) as image:
            form, pixels = image.format, image.width * image.height
    except Exception:  # damaged files make the readers raise anything
        form, pixels = None, 0
    if decode or form is None or pixels > (Image.MAX_IMAGE_PIXELS or pixels):
        from llava.mm_utils import load_image  # imports torch, and few files need it

        try:
            load_image(path)
        except ValueError as error:  # what training would say, too
            return Problem("corrupt", str(error))
    expected = FORMATS.get(os.path.splitext(path)[1].lower(), form)
    if form != expected and (form, expected) != ("MPO", "JPEG"):  # MPO: what cameras add to a JPEG
        return Problem("mislabelled", f"{path} is {form}")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(verify, parse_arguments(argv))


def verify(args: argparse.Namespace) -> int:
    """Check an instruction file, print what was found and write what was asked for; returns the exit status."""
    outputs = [Path(path) for path in (args.clean, args.report) if path]
    require_apart(outputs, [args.data])
    require_distinct({"--clean": args.clean, "--report": args.report})
    for path in outputs:
        if path.exists() and not args.overwrite:
            raise ValueError(f"{path} is already there. Choose another name, or replace it with --overwrite.")
        make_folder(path.parent)
    records = read_records(args.data)
    bar = partial(tqdm, desc="Decoding images" if args.decode else "Reading headers", unit="image", dynamic_ncols=True)
    report = check(records, args.image_folder, decode=args.decode, num_workers=args.num_workers, progress=bar)
    print(report.summary(examples=3))
    if not args.decode:
        print("Of each image only the header was read; --decode finds damage behind it.")
    if args.report:
        write_json(args.report, {"data": str(args.data), "decoded": args.decode, **report.to_dict()})
    if args.clean:
        kept = report.clean()
        write_records(args.clean, kept)
        mended = len(kept) - (len(records) - len(report.bad))
        print(
            f"Kept {len(kept):,} records, {mended:,} with a corrected extension; left out {len(records) - len(kept):,}."
        )
    elif report.bad:
        print("--clean FILE writes those that can be trained on.")
    if outputs:
        print(f"Written: {', '.join(map(str, outputs))}")
    return BAD_RECORDS if report.bad else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of `verify`."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.data.verify",
        description="Check the records of an instruction file and the images they name.",
        epilog=EXIT_STATUSES,
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="instruction file, .json or .jsonl")
    add(
        "--image-folder",
        metavar="DIR",
        help="where the names of the images start; default: they are paths by themselves",
    )
    add("--decode", action="store_true", help="decode every image in full; default: read its header")
    add("--clean", metavar="FILE", help="write the records that can be trained on, with wrong extensions corrected")
    add("--report", metavar="FILE", help="write everything found as JSON")
    add("--overwrite", action="store_true", help="replace the files of --clean and --report if they are there")
    add("--num-workers", type=positive, default=WORKERS, metavar="N", help=f"threads (default: {WORKERS})")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
