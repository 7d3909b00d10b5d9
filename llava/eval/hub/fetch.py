"""Fetch the files of a benchmark from a data set of the hub: all of them, or those that are missing."""

import re
from pathlib import Path

from llava.eval.hub.tables import Source, Table, open_table
from llava.eval.questions import missing_images
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data, Task, is_there
from llava.utils.files import make_folder, write_text

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
OWNERS = ("lmms-lab-encoder", "lmms-lab")  # the sets moved from the second to the first in 2026; caches have either


def fetch(task: Task, data: Data, source: str | None = None) -> list[Path]:
    """Write the files of a benchmark that are not there yet, and its images; returns the files, none if all are there.

    The files come last, each whole or not at all, and images that are there are kept: so an interrupted fetch goes on
    where it stopped, and is not taken for a finished one.

    Args:
        task: the benchmark.
        data: its files, with whole paths.
        source: a hub id, a folder of parquet files in the hub's layout, or one that `save_to_disk` made; by default the
            hub ids that lmms-eval reads, the new one and then the old.

    Raises:
        ValueError: there is no such data set, it is not that of this benchmark, or files of another origin are there
            that do not go with its.
    """
    if is_complete(task, data):
        return []
    wanted = source_of(task, data)
    tables = open_first(task.name, data_sets(task.name, wanted, source), wanted)
    make_folder(data.image_folder)
    try:
        texts = wanted.convert(data, *(table.rows(task.name) for table in tables))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{task.name}: a row of the data set is not as it should be: {error!r}.") from error
    lacking = [path for path in texts if not path.exists()]
    for path in lacking:
        make_folder(path.parent)
        write_text(path, texts[path])
    return lacking


def source_of(task: Task, data: Data) -> Source:
    """Look up the data set that a task's files can be made from.

    Raises:
        ValueError: there is none, or files are there that would not go with its.
    """
    if not task.source:
        known = ", ".join(name for name, other in TASKS.items() if other.source)
        raise ValueError(f"{task.name} is in no data set known here; those that are: {known}.")
    there = [str(path) for path in data.texts() if is_there(path)]
    if task.source.whole and there:
        raise ValueError(
            f"{task.name}: {' and '.join(there)} would not go with the files of the data set, where questions have "
            f"other numbers. Move it away and fetch again, or get what is missing as follows. {task.how_to_fetch()}"
        )
    return task.source


def data_sets(task: str, wanted: Source, source: str | None) -> list[str]:
    """List the folders and hub ids to try: `source` alone where it is given, else the usual ones.

    Raises:
        ValueError: `source` is neither a folder that is there nor a hub id.
    """
    if not source:
        return [f"{owner}/{wanted.name}" for owner in OWNERS]
    path = Path(source)
    if not path.is_dir() and (path.exists() or not HUB_ID.fullmatch(source)):
        what = "a file" if path.exists() else "no folder that is there, and no hub id, which reads OWNER/NAME"
        raise ValueError(f"{task}: {source} is {what}. Name the folder that the data set's files are in.")
    return [source]


def is_complete(task: Task, data: Data) -> bool:
    """Tell whether questions and answers are there, and every image that the questions name."""
    if not all(map(is_there, data.texts())):
        return False
    return task.packed is not None or not missing_images(task.read(data.question_file, None), data.image_folder)


def open_first(task: str, names: list[str], wanted: Source) -> list[Table]:
    """Open the tables of the first of the data sets that can be opened.

    Raises:
        ValueError: none of them can; it says why for each.
    """
    try:
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise ValueError("Fetching from Hugging Face needs datasets: pip install datasets.") from None
    reasons = []
    for name in names:
        try:
            return [open_table(name, part) for part in wanted.parts]
        except (DatasetsError, ValueError, OSError, RuntimeError) as error:  # the hub and `datasets` raise all of these
            kind = "folder" if Path(name).is_dir() else "hub id"
            reasons.append(f"  {kind} {name}: {str(error).strip().splitlines()[0]}")
    includes = " ".join(f"--include '{part.pattern}'" for part in wanted.parts)
    raise ValueError(
        "\n".join([f"{task}: no data set could be opened.", *reasons])
        + "\nWhere there is no network, name a folder: --fetch FOLDER, filled on a machine that has one by\n  "
        f"hf download {OWNERS[0]}/{wanted.name} --repo-type dataset {includes} --local-dir FOLDER\n"
        "Where the hub wants to know who asks: hf auth login."
    )
