"""A part of an instruction file with the same mixture: `python -m llava.data.subset IN.json OUT.json --fraction 0.1`.

The paper tunes on a tenth of LLaVA-1.5's data and does not say which; here every source gives the same share.
"""

import argparse
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from llava.data.records import image_names, read_records, source_of, write_records
from llava.utils.cli import add_verbose, positive, run_command, share
from llava.utils.files import make_folder, require_apart


def draw(records: Sequence[dict], fraction: float, seed: int = 0) -> list[int]:
    """Draw a random part of `records`, stratified by `source_of`, and return its indices in their order.

    Every record draws a lot, and each source takes those of its records with the lowest lots, so a larger fraction
    with the same seed contains a smaller one, but for a record per source that rounding may move. The same on every
    machine: of Python's generator only `random()` is used, which never changes.

    Args:
        records: as `read_records` gives them.
        fraction: in (0, 1]; exactly `round(fraction * len(records))` are drawn.

    Raises:
        ValueError: another fraction, or one so small that no record would be left.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"A fraction of {fraction} cannot be drawn; it is above 0 and at most 1, such as 0.1.")
    count = round(fraction * len(records))
    if count == 0:
        raise ValueError(f"A fraction of {fraction} of {len(records)} records is less than one of them; ask for more.")
    members = defaultdict(list)
    for index, record in enumerate(records):
        members[source_of(record)].append(index)
    generator = random.Random(seed)
    lots = [generator.random() for _ in records]
    shares = apportion({source: len(indices) for source, indices in members.items()}, count)
    return sorted(
        index
        for source, indices in members.items()
        for index in sorted(indices, key=lots.__getitem__)[: shares[source]]
    )


def apportion(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Split `count` in proportion to `sizes` by largest remainder; ties go by name. The shares add up to `count`."""
    total = sum(sizes.values())
    shares = {name: size * count // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * count % total), name))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(subset, parse_arguments(argv))


def subset(args: argparse.Namespace) -> int:
    """Draw a part of an instruction file, write it and print its sources; returns the exit status."""
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} is already there. Choose another name, or replace it with --overwrite.")
    require_apart([output], [args.input])
    make_folder(output.parent)
    records = read_records(args.input)
    if args.count and args.count > len(records):
        raise ValueError(f"--count {args.count}: {args.input} holds only {len(records)} records.")
    fraction = args.count / len(records) if args.count else args.fraction
    drawn = [records[index] for index in draw(records, fraction, args.seed)]
    write_records(output, drawn)
    print(table(records, drawn))
    print(f"\nWritten: {output}")
    return 0


def table(records: Sequence[dict], drawn: Sequence[dict]) -> str:
    """Format how many records of each source there are and were drawn, then all records and those of text alone."""
    there, taken = (Counter(map(source_of, part)) for part in (records, drawn))
    textual, kept = (sum(not image_names(record) for record in part) for part in (records, drawn))
    rows = [(name, there[name], taken[name]) for name in sorted(there, key=lambda name: (-there[name], name))]
    rows += [("total", len(records), len(drawn)), ("without image", textual, kept)]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {before:>11,}  {after:>9,}" for name, before, after in rows]
    return "\n".join([f"{'source':<{width}}  {'in the file':>11}  {'drawn':>9}", *lines])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of `subset`."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.data.subset",
        description="Draw a part of an instruction file in which every source keeps its share.",
    )
    add = parser.add_argument
    add("input", metavar="INPUT", help="instruction file, .json or .jsonl")
    add("output", metavar="OUTPUT", help="file to write, .json or .jsonl; the records keep their order and all keys")
    size = parser.add_mutually_exclusive_group(required=True).add_argument
    size("--fraction", type=share, metavar="F", help="part to draw, above 0 and at most 1, such as 0.1")
    size("--count", type=positive, metavar="N", help="instead: number of records to draw")
    add("--seed", type=int, default=0, help="another seed draws other records (default: 0)")
    add("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
