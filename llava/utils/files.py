"""Read files with errors that name file and line; write files whole or not at all, and never over those of others."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

KINDS = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
}

LARGEST_OBJECT = 64 * 2**20  # bytes
UNSEALED = f"sha256 {'0' * 64}"  # where `seal` puts its digest

logger = logging.getLogger(__name__)


def read_jsonl(path: str | Path, *, growing: bool = False) -> list[tuple[int, dict]]:
    """Read the objects of a JSONL file, each with its line number, from 1. Blank lines are skipped.

    Args:
        path: the file.
        growing: someone may be appending to it, so what follows the last line break is no line yet.

    Raises:
        ValueError: the file cannot be read, or a line is not a JSON object; file and line are named.
    """
    lines = read_bytes(path).split(b"\n")  # not splitlines: JSON text may hold U+2028
    rows = []
    for number, line in enumerate(lines[:-1] if growing else lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, brackets in brackets without end
            raise ValueError(f"{path}, line {number}: not JSON ({error}). It reads {shorten(line)}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object {{...}}, found {shorten(line)}.")
        rows.append((number, row))
    return rows


def read_json(path: str | Path, **hooks):
    """Read a JSON file. Raises ValueError with file and place.

    Args:
        hooks: of `json.loads`; what they refuse with a ValueError is refused.
    """
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8-sig"), **hooks)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}). Fetch or write it again.") from None


def read_object(path: str | Path) -> dict:
    """Read the object in a small JSON file that a program acts on, such as a config.json.

    Raises:
        ValueError: as `read_json`; or the file is too large to be one, holds something else, a number that is not
            finite, a key twice with different values, or half of a surrogate pair.
    """
    if is_file(path) and (size := Path(path).stat().st_size) > LARGEST_OBJECT:
        raise ValueError(f"{path}: {size:,} bytes; expected a small JSON file, of {LARGEST_OBJECT:,} bytes at most.")
    content = read_json(path, object_pairs_hook=without_contradiction, parse_float=finite, parse_constant=finite)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a JSON {type(content).__name__}; expected an object, {{...}}.")
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: a text holds half of a surrogate pair, which is no character.") from None
    return content


def without_contradiction(pairs: list[tuple]) -> dict:
    """Make an object of JSON. Raises ValueError if a key is there twice with different values."""
    values = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise ValueError(f"{name!r} is there twice, as {values[name]!r} and as {value!r}")
    return values


def finite(text: str) -> float:
    """Read a number of JSON. Raises ValueError if it is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def read_bytes(path: str | Path) -> bytes:
    """Read all of a regular file. Raises ValueError, which names it, if it is none or cannot be read."""
    try:
        require_regular(path)
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None


def require_regular(path: str | Path) -> None:
    """Refuse what has no content of its own: reading a pipe waits, and reading a device may never end.

    Raises:
        OSError: nothing is there, or it may not be looked at.
        ValueError: it is a folder, a pipe, a device or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # no file system takes such a name
        raise ValueError(f"{str(path)!r}: cannot be read ({error}).") from None
    if not stat.S_ISREG(mode):
        kind = next((name for name, is_kind in KINDS.items() if is_kind(mode)), "something else")
        raise ValueError(f"{path}: no regular file but {kind}. Name a file.")


def to_line(row: dict) -> str:
    """Write an object as a line of JSONL, line break included."""
    return dump_json(row) + "\n"


def dump_json(content, **layout) -> str:
    """Write `content` as JSON that UTF-8 can hold; `layout` are options of `json.dumps`."""
    text = json.dumps(content, ensure_ascii=False, **layout)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as in an emoji cut in two or a file name of other bytes
        return json.dumps(content, **layout)  # as an escape
    return text


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write objects as JSONL, whole or not at all."""
    write_text(path, "".join(map(to_line, rows)))


def write_json(path: str | Path, content) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, dump_json(content, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write all of `content` or, on a crash at any moment, leave what was there before."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and is gone if it does not.

    A link stays one: what it leads to is replaced.

    Raises:
        ValueError: a folder, a pipe, a device or a socket is there.
    """
    path = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        require_regular(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def require_apart(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read, by whatever name or link. Raises ValueError, which names both."""
    inputs = [path for path in inputs if os.path.exists(path)]
    for output in filter(os.path.exists, outputs):
        for path in inputs:
            if os.path.samefile(output, path):
                raise ValueError(f"{output} would be written over, and {path} is read. Choose another name to write.")


def require_distinct(outputs: Mapping[str, str | Path | None]) -> None:
    """Refuse to write two things to one file. Raises ValueError, which names both.

    Args:
        outputs: option -> the file that it names; None names none.
    """
    first: dict[Path, str] = {}
    for option, path in outputs.items():
        if path and (other := first.setdefault(Path(path).resolve(), option)) != option:
            raise ValueError(f"{other} and {option} both name {path}: give each a file of its own.")


def require_own(outputs: Iterable[str | Path], mark: str) -> None:
    """Refuse to replace files that another program or a person has written.

    Args:
        outputs: what is to be written together.
        mark: a text that one of them has whenever they are written, such as the head of a table; it speaks for all.

    Raises:
        ValueError: some are there, and none has the mark.
    """
    there = [str(path) for path in outputs if os.path.lexists(path)]
    if there and not any(os.path.isfile(path) and mark.encode() in read_bytes(path) for path in there):
        raise ValueError(
            f"{', '.join(there)}: already there, and not what this command has written. Move it away, or choose "
            f"another folder."
        )


def seal(text: str) -> bytes:
    """Encode `text` with a digest of itself in place of `UNSEALED`, which it holds somewhere: see `is_sealed`."""
    content = text.encode(errors="surrogateescape")
    return content.replace(UNSEALED.encode(), digest(content))


def is_sealed(content: bytes) -> bool:
    """Check whether `seal` made this content, and it was not changed since."""
    seals = set(re.findall(rb"sha256 [0-9a-f]{64}", content))
    return any(digest(content.replace(found, UNSEALED.encode())) == found for found in seals)


def digest(content: bytes) -> bytes:
    """Compute the seal of a content."""
    return f"sha256 {hashlib.sha256(content).hexdigest()}".encode()


def make_folder(folder: str | Path) -> Path:
    """Create `folder` and prove that files can be written there, before any long work. Raises ValueError."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: cannot write here ({error.strerror}). Choose another output folder.") from None
    return folder


def take_lock(path: Path):
    """Take an exclusive lock, as an open file; `drop_lock` or the end of the process, however it ends, releases it.

    Raises:
        ValueError: another process holds it.
    """
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"Another process is writing {path.with_suffix('')}. Wait for it, or choose another file."
            ) from None
        except OSError as error:  # file systems without locks
            logger.debug("%s cannot be locked: %s", path, error)
            return file
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # its last holder has removed it in the meantime


def drop_lock(file, path: Path) -> None:
    """Release a lock, and remove its file."""
    if not file.closed:
        path.unlink(missing_ok=True)
        file.close()


def is_file(path: str | Path) -> bool:
    """Check for a file as `Path.is_file` does; False for names that no file system takes."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def fingerprint(folder: str | Path | None) -> str | None:
    """Compute what changes when the files of a checkpoint or tower folder do; None for a hub id."""
    if folder is None or not Path(folder).is_dir():
        return None
    kinds = (".safetensors", ".bin", ".json", ".model")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in kinds)
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def shorten(text: bytes | str, limit: int = 80) -> str:
    """Quote the start of a text for a message."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return repr(text if len(text) <= limit else text[:limit] + "...")
