"""Tables of Hugging Face data sets: from the hub, its cache, a folder of parquet files or one of `save_to_disk`."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from llava.utils.files import shorten

BATCH = 16  # rows in memory at a time; one of SEED-Bench's videos has eight pictures


class Part(NamedTuple):
    """One table of a data set, and the columns of it that are used."""

    columns: str  # with blanks between
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return f"split {self.split!r}" + (f" of {self.config!r}" if self.config else "")

    @property
    def pattern(self) -> str:
        """Name the files of a data set on the hub that hold this table, in the layout that `push_to_hub` makes."""
        return f"{self.config or '*'}/{self.split}-*.parquet"


class Source(NamedTuple):
    """Where a benchmark is on the hub, and how it becomes files.

    Args:
        name: of the data set, after its owner.
        convert: the task's files, then the rows of each of `parts` -> file: its text, in the order of writing.
        parts: the tables. Their columns are those that lmms-eval's tasks read.
        whole: its files know each other by place or by numbers made up here, so they must be of one origin.
    """

    name: str
    convert: Callable[..., dict[Path, str]]
    parts: tuple[Part, ...]
    whole: bool = False


class Table(NamedTuple):
    """An opened table of a data set."""

    part: Part
    dataset: Any  # a Dataset or IterableDataset
    count: int  # of rows

    def rows(self, name: str) -> Iterator[dict]:
        """Go through the rows with the wanted columns, and show a bar; images are the bytes of their files, or None.

        Raises:
            ValueError: what should be an image is none; row and column are named.
        """
        from tqdm import tqdm

        columns = self.part.columns.split()
        images = [column for column in columns if re.fullmatch(r"image(_\d)?", column)]
        # As Arrow nothing is decoded.
        wanted = self.dataset.select_columns(columns).with_format("arrow")
        with tqdm(desc=f"{name}, {self.part}", unit="row", total=self.count) as bar:
            for batch in wanted.iter(batch_size=BATCH):
                for number, row in enumerate(batch.to_pylist(), start=bar.n + 1):
                    where = f"{name}, {self.part}, row {number}, column {{}}".format
                    yield row | {column: stored(row[column], where(column)) for column in images}
                bar.update(batch.num_rows)


def stored(image: dict | list | None, where: str) -> bytes | list | None:
    """Read the file of an image, of each image in a list, or None.

    Raises:
        ValueError: Pillow cannot open one; the text begins with `where`.
    """
    if image is None or isinstance(image, list):
        return image and [stored(one, where) for one in image]
    try:
        content = image["bytes"] or Path(image["path"]).read_bytes()
        Image.open(io.BytesIO(content)).close()  # reads no more than the header
    except (KeyError, TypeError, OSError, Image.DecompressionBombError) as error:
        found = f"found {shorten(repr(image))} ({error})"
        raise ValueError(f"{where}: expected an image, {{'bytes': ..., 'path': ...}}, {found}.") from error
    return content


def open_table(name: str, part: Part) -> Table:
    """Open a table of a data set in a folder or on the hub.

    Raises:
        ValueError, OSError or RuntimeError: there is none, or it lacks a column.
    """
    table = open_folder(Path(name), part) if Path(name).is_dir() else open_hub(name, part)
    columns = table.dataset.column_names
    if missing := set(part.columns.split()) - set(columns):
        raise ValueError(f"{part} has no column {', '.join(sorted(missing))}; its columns are {', '.join(columns)}.")
    return table


def open_folder(folder: Path, part: Part) -> Table:
    """Open a table that `save_to_disk` has made, or that lies in parquet files.

    Raises:
        ValueError: the folder has no such table.
    """
    from datasets import Dataset, DatasetDict

    saved = folder / part.config if part.config and (folder / part.config).is_dir() else folder
    if (saved / "dataset_dict.json").is_file():
        splits = DatasetDict.load_from_disk(str(saved))
        if part.split not in splits:
            raise ValueError(f"there is no {part}, only {', '.join(map(str, splits))}.")
        return Table(part, splits[part.split], splits[part.split].num_rows)
    if (saved / "state.json").is_file():
        dataset = Dataset.load_from_disk(str(saved))
        return Table(part, dataset, dataset.num_rows)
    if files := parquet_files(folder, part):
        return read_parquet(files, part)
    raise ValueError(f"no parquet files of {part} ({part.pattern}) are there, and `save_to_disk` has not made it.")


def open_hub(name: str, part: Part) -> Table:
    """Open a table of the hub or its cache; in the usual layout only the files of this split are downloaded."""
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, RepositoryNotFoundError):  # load_dataset finds better words
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=part.pattern)
        if files := parquet_files(Path(folder), part):
            return read_parquet(files, part)
    dataset = load_dataset(name, part.config, split=part.split)
    return Table(part, dataset, dataset.num_rows)


def parquet_files(folder: Path, part: Part) -> list[Path]:
    """Find the files of a split below a folder, as the hub names them.

    They are called SPLIT-00000-of-00001.parquet, or SPLIT/0000.parquet.

    Raises:
        ValueError: some of them are missing, by the count in their names.
    """

    def is_of_part(path: Path) -> bool:
        below = path.relative_to(folder)  # where the folder itself lies says nothing
        is_of_split = below.name.startswith((f"{part.split}-", f"{part.split}.")) or below.parent.name == part.split
        return is_of_split and (part.config is None or part.config in below.parent.parts)

    files = list(filter(is_of_part, sorted(folder.rglob("*.parquet"))))
    counts = Counter(path.parent for path in files)
    for path in files:
        if (total := re.search(r"-of-(\d+)", path.name)) and int(total[1]) != counts[path.parent]:
            raise ValueError(f"{path.parent} has {counts[path.parent]} of the {int(total[1])} files of {part}.")
    return files


def read_parquet(files: list[Path], part: Part) -> Table:
    """Open parquet files as a stream: else they would be copied into the cache."""
    from datasets import load_dataset
    from pyarrow.parquet import read_metadata

    names = {part.split: [str(path) for path in files]}
    dataset = load_dataset("parquet", data_files=names, split=part.split, streaming=True)
    return Table(part, dataset, sum(read_metadata(path).num_rows for path in files))
