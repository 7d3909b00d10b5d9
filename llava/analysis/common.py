"""What the analyses share: how they begin, and files that are whole or not there at all."""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from llava.inference.embedded import EMBEDDED_CHECKPOINT, playground
from llava.mm_utils import get_model_name_from_path
from llava.utils.files import make_folder, require_own, write_bytes, write_text
from llava.utils.plots import pyplot

COLORS = 64  # of a figure


class Job(NamedTuple):
    """What to look at, and where the results go."""

    checkpoint: str
    name: str  # of the checkpoint, for people
    out: Path
    plt: Any  # matplotlib.pyplot


def begin(analysis: str, args: argparse.Namespace, tables: Mapping[str, type]) -> Job:
    """Check all that can fail before the work begins: matplotlib, the output folder, files of others in it.

    Args:
        analysis: its name.
        args: of `make_parser`.
        tables: the type of row by the name of the files; each is written as .csv and .png.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the folder cannot be written to, or holds files of that name that no analysis wrote.
    """
    plt = pyplot()
    if plt is None:
        raise ImportError("The plots need matplotlib: pip install matplotlib.")
    checkpoint = args.checkpoint or str(playground() / EMBEDDED_CHECKPOINT)
    name = get_model_name_from_path(checkpoint)
    out = make_folder(args.out or playground() / "results/analysis" / analysis / name)
    for file, row in tables.items():
        require_own([out / f"{file}.csv", out / f"{file}.png"], ",".join(row._fields))
    return Job(checkpoint, name, out, plt)


def write_csv(path: Path, rows: Sequence[NamedTuple]) -> None:
    """Write rows of one kind under the names of their fields; floats with four digits, nothing for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    writer.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_text(path, text.getvalue())


def write_figure(plt, figure, path: Path) -> None:
    """Write a figure as a PNG of few colours, a third as large as with all, and close it."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(content, "PNG", optimize=True)
    write_bytes(path, content.getvalue())
