"""Have answers graded, several at a time; grades are kept as they come, so the same call goes on where it stopped."""

import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from llava.eval.judging.endpoint import Judge
from llava.eval.tasks.base import Graded, Rows
from llava.utils.files import drop_lock, read_jsonl, take_lock, to_line
from llava.utils.parallel import for_all

logger = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """The result of all grades of an answers file."""

    scores: dict[str, float]  # by name, 0 to 100; none where no grade can be read
    std: float | None  # of the first score over the times that everything was graded
    judges: list[str]  # the names under which the judge has answered
    grades: int
    unreadable: list[str]  # replies without a grade; they count as the benchmark's own script counts them


def to_verdict(graded: Graded, grades: Rows) -> Verdict:
    """Add up grades, and set aside what cannot be read."""
    unreadable = [row["content"] for row in grades if not graded.is_readable(row)]
    scores, std = graded.add_up(grades) if len(unreadable) < len(grades) else ({}, None)
    return Verdict(scores, std, sorted({row["model"] for row in grades}), len(grades), unreadable)


def grade_all(graded: Graded, judge: Judge, path: Path, *, runs: int, parallel: int) -> list[dict]:
    """Have each answer graded in each run, unless a readable grade of the same judge and prompt is kept.

    Args:
        graded: what to ask about the answers in `path`.
        judge: whom to ask.
        path: the answers; grades are kept next to them.
        runs: how often to grade each answer.
        parallel: how many requests at a time.

    Raises:
        ValueError: one prompt cannot be answered, another process grades the same, or the file is broken.
    """
    kept = path.with_name(f"{path.name}.graded-by-{re.sub('[^A-Za-z0-9_.-]+', '-', judge.model)}.jsonl")
    digests = {name: hashlib.sha256(prompt.encode()).hexdigest()[:16] for name, prompt in graded.prompts.items()}
    wanted = [(name, digest, number) for number in range(runs) for name, digest in digests.items()]
    with open_to_append(kept) as file:
        grades = {
            (str(row["question_id"]), row["prompt"], row["run"]): row
            for _, row in read_jsonl(kept)
            if row["judge"] == judge.model and graded.is_readable(row)
        }
        todo, writing = [key for key in wanted if key not in grades], threading.Lock()

        def ask(key: tuple[str, str, int]) -> None:
            name, digest, number = key
            row = {**graded.grade(judge, name), "run": number, "judge": judge.model, "prompt": digest}
            with writing:
                file.write(to_line(row).encode())
                file.flush()
                grades[key] = row

        done = len(wanted) - len(todo)
        try:
            with tqdm(desc=path.name, total=len(wanted), initial=done, unit="grade", dynamic_ncols=True) as bar:
                for_all(todo, ask, parallel=parallel, stopped=judge.stopped, progress=bar.update)
        except BaseException:
            if count := sum(key in grades for key in wanted):
                logger.warning("%d of %d grades are kept in %s.", count, len(wanted), kept)
            raise
    return [grades[key] for key in wanted]


@contextmanager
def open_to_append(path: Path) -> Iterator[BinaryIO]:
    """Open a file of lines after the last whole one. Raises ValueError if another process has it open so."""
    lock_path = path.with_name(f"{path.name}.lock")
    lock = take_lock(lock_path)
    try:
        with path.open("ab") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a kill leaves half a line
            yield file
    finally:
        drop_lock(lock, lock_path)
