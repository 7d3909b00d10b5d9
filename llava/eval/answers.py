"""The answers of one run on disk: appended as they come, resumed after an interruption, shared out over processes.

    NAME.jsonl                 one row per question, in upstream's fields; grows during the run, sorted at its end
    NAME.jsonl.meta.json       the settings these answers were made with; other settings may not add to them
    NAME.jsonl.result.json     the score, written by who scores; thrown away with the answers
    NAME.jsonl.part-R-of-N     what process R of N has answered; process 0 merges the parts into NAME.jsonl
    NAME.jsonl.part-R-of-N.end process R has finished, and which questions it could not answer

`metadata` of an answer holds its `row` in the question file and `image_tokens`, the visual tokens that the model saw. A
question is known by its row together with its id and prompt: in TextVQA the id is that of the image, so ids repeat.
"""

import fcntl
import functools
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from torch import distributed

from llava.eval.files import make_folder, read_json, read_jsonl, shorten, to_line, write_json, write_jsonl

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
START_TIMEOUT = timedelta(minutes=10)  # for process 0 to clear the ground for the others
MERGE_TIMEOUT = 1800.0  # seconds without a new answer from anyone; loading 13B from a slow disk takes long


class Question(NamedTuple):
    """One line of a question file."""

    row: int  # place in the file, from 0
    question_id: str | int
    image: str  # relative to the image folder
    text: str
    line: int  # line in the file, from 1, for messages


class Shard(NamedTuple):
    """Which part of a run this process is."""

    index: int = 0
    count: int = 1


ALONE = Shard()


class Refused(NamedTuple):
    """A question without an answer, and why."""

    question: Question
    reason: str


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """The questions of a JSONL file, the first `limit` of them if given.

    Raises:
        ValueError: an unreadable file, no question in it, or a line without `question_id`, `image` and `text` of the
            right types; file and line are named.
    """
    questions = []
    for row, (line, fields) in enumerate(read_jsonl(path)[:limit]):
        where = f"{path}, line {line}"
        for name, kinds in (("question_id", (str, int)), ("image", str), ("text", str)):
            if name not in fields:
                raise ValueError(f"{where}: no {name!r}; a question needs question_id, image and text.")
            if not isinstance(fields[name], kinds) or isinstance(fields[name], bool):
                expected = "text" if kinds is str else "text or a whole number"
                raise ValueError(f"{where}: {name} is {fields[name]!r}; expected {expected}.")
        if "<image>" in fields["text"]:
            raise ValueError(f"{where}: the text holds '<image>', which is added by itself. Take it out.")
        questions.append(Question(row, fields["question_id"], fields["image"], fields["text"], line))
    if not questions:
        raise ValueError(f"{path}: no questions in it.")
    return questions


class AnswerFile:
    """Opens, or resumes, the answers to `questions`.

    Args:
        path: NAME.jsonl; its folder is made if need be.
        questions: all questions this file is to answer, whichever process answers them.
        settings: whatever must be equal for two runs to share answers; goes to the meta file, so JSON.
        shard: this process among those that write to the same `path`. Each takes a contiguous part of `questions`.
        model_id: written into every row.
        overwrite: throw earlier answers away.

    Raises:
        ValueError: the folder cannot be written; there are answers of other settings or of unknown origin; a line in
            the middle of a file is broken; another process is writing the same file.
    """

    def __init__(
        self,
        path: str | Path,
        questions: list[Question],
        settings: dict,
        *,
        shard: Shard = ALONE,
        model_id: str = "",
        overwrite: bool = False,
    ):
        self.path, self.questions, self.shard, self.model_id = Path(path), questions, shard, model_id
        self.own = self.path if shard.count == 1 else self._part(shard.index)
        self.meta, self.result = self._beside(".meta.json"), self._beside(".result.json")
        self.refused: list[Refused] = []
        self._by_row = {question.row: question for question in questions}

        make_folder(self.path.parent)
        with starting_order(shard, str(self.path)) as others_wait:
            self._clear(overwrite, stale_ends=others_wait)
            self._claim(settings)
        self._file = self._open()
        try:
            self.rows = self._read()  # row -> answer
        except ValueError:
            self.close()
            raise
        self.resumed = len(self.rows)
        start, stop = (index * len(questions) // shard.count for index in (shard.index, shard.index + 1))
        self.todo = [question for question in questions[start:stop] if question.row not in self.rows]

    def append(self, questions: list[Question], texts: list[str], image_tokens: list[int]) -> None:
        """Put the answers to `questions` on disk. A kill at any moment costs no row that was appended before."""
        rows = [
            {
                "question_id": question.question_id,
                "prompt": question.text,
                "text": text,
                "answer_id": uuid.uuid4().hex,
                "model_id": self.model_id,
                "metadata": {"row": question.row, "image_tokens": tokens},
            }
            for question, text, tokens in zip(questions, texts, image_tokens, strict=True)
        ]
        self._file.write("".join(map(to_line, rows)).encode())
        self._file.flush()
        self.rows.update({row["metadata"]["row"]: row for row in rows})

    def refuse(self, question: Question, reason: str) -> None:
        """Note that `question` cannot be answered. The next run tries again."""
        self.refused.append(Refused(question, reason))

    def finish(self, timeout: float = MERGE_TIMEOUT) -> bool:
        """Bring the answers together, in the order of the questions. Call once, when all of `todo` is dealt with.

        Returns:
            whether this process now holds all answers in `rows` and all failures in `refused`; False in every process
            of a shared run but the first.

        Raises:
            ValueError: the other processes made no progress for `timeout` seconds.
        """
        if self.shard.count > 1:
            write_json(self._end(self.shard.index), {"refused": [[q.row, reason] for q, reason in self.refused]})
            if self.shard.index > 0:
                self.close()
                return False
            self._wait(timeout)
        self.refused.sort(key=lambda refusal: refusal.question.row)
        rows = [self.rows[row] for row in sorted(self.rows)]
        write_jsonl(self.path, rows)
        self.close()
        for part in self._parts():
            part.unlink()
        return True

    def close(self) -> None:
        """Let other processes write this file; `finish` does so too."""
        self._file.close()

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.questions)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _part(self, index: int) -> Path:
        return self._beside(f".part-{index}-of-{self.shard.count}")

    def _end(self, index: int) -> Path:
        return self._beside(f".part-{index}-of-{self.shard.count}.end")

    def _parts(self) -> list[Path]:
        prefix = f"{self.path.name}.part-"
        return [path for path in self.path.parent.iterdir() if path.name.startswith(prefix)]

    def _clear(self, overwrite: bool, stale_ends: bool) -> None:
        """Remove what must not be found again: everything if `overwrite`, else the end marks of an earlier run."""
        mine = (self._part(self.shard.index), self._end(self.shard.index))
        for path in self._parts():
            others = self.shard.index == 0 and (self.shard.count == 1 or stale_ends)  # no one else writes yet
            if (others or path in mine) and (overwrite or path.suffix == ".end"):
                path.unlink(missing_ok=True)
        if overwrite and self.shard.index == 0:
            for path in (self.path, self.meta, self.result):
                path.unlink(missing_ok=True)

    def _claim(self, settings: dict) -> None:
        """Write the settings beside the answers, or hold them against those already there."""
        answered = any(path.stat().st_size for path in [self.path, *self._parts()] if path.exists())
        before = read_json(self.meta) if self.meta.exists() else None
        if not answered:
            if before != settings:
                write_json(self.meta, settings)
            return
        ways_out = "Choose another answers file, or --overwrite to throw the old answers away."
        if before is None:
            raise ValueError(f"{self.path} exists without {self.meta.name}, which says how it was made. {ways_out}")
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if names:
            changes = "; ".join(f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now" for name in names)
            raise ValueError(f"{self.path} holds answers made with other settings ({changes}). {ways_out}")

    def _open(self):
        """Open for appending, alone, and cut off a last line that a kill left unfinished."""
        file = self.own.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"Another process is writing {self.own}. Wait for it, or choose another file.") from None
        except OSError as error:  # file systems without locks
            logger.debug("%s cannot be locked: %s", self.own, error)
        content = self.own.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s: dropped its unfinished last line; that question is asked again", self.own)
            file.truncate(whole)
        return file

    def _read(self) -> dict[int, dict]:
        rows = {}
        for path in [self.path, *self._parts()]:
            if path.suffix != ".end" and path.exists():
                rows = {**self._read_rows(path), **rows}
        return rows

    def _read_rows(self, path: Path) -> dict[int, dict]:
        """Answers in one file, by row; of doubled rows the first."""
        rows = {}
        for line, answer in read_jsonl(path, growing=True):
            metadata = answer.get("metadata")
            row = metadata.get("row") if isinstance(metadata, dict) else None
            question = self._by_row.get(row) if isinstance(row, int) else None
            if question is None or (answer.get("question_id"), answer.get("prompt")) != (
                question.question_id,
                question.text,
            ):
                raise ValueError(
                    f"{path}, line {line}: answers a question that is not row {row} of the question file: "
                    f"{shorten(str(answer.get('prompt')))}. Choose another answers file, or --overwrite."
                )
            rows.setdefault(row, answer)
        return rows

    def _wait(self, timeout: float) -> None:
        """Until every process has ended and every question has an answer or a reason, or `timeout` without progress."""
        ends = [self._end(index) for index in range(self.shard.count)]
        missing, seen, since = self.questions, None, time.monotonic()
        while missing:
            sizes = {path: path.stat().st_size for path in self._parts()}
            if sizes != seen:
                seen, since = sizes, time.monotonic()
                if all(end in sizes for end in ends):
                    self.rows = self._read()
                    reasons = {
                        row: why for end in ends for row, why in read_json(end)["refused"] if row not in self.rows
                    }
                    self.refused = [
                        Refused(self._by_row[row], why) for row, why in sorted(reasons.items()) if row not in self.rows
                    ]
                    missing = [q for q in self.questions if q.row not in self.rows and q.row not in reasons]
            elif time.monotonic() - since > timeout:
                silent = ", ".join(str(index) for index, end in enumerate(ends) if end not in sizes) or "(restarted)"
                raise ValueError(
                    f"No new answer for {timeout:.0f} s while waiting to merge {self.path}. Process {silent} of "
                    f"{self.shard.count} has not finished. Finished answers are kept: see why it stopped, then run the "
                    f"same command again."
                )
            else:
                time.sleep(POLL_SECONDS)


def current_shard() -> Shard:
    """This process as a launcher such as torchrun numbers it (RANK, WORLD_SIZE); alone without one."""
    return Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def starting_order(shard: Shard, key: str) -> Iterator[bool]:
    """Run the block in process 0 before the others, if a launcher lets processes talk; yields whether it does."""
    store = _store() if shard.count > 1 and "MASTER_ADDR" in os.environ else None
    if store is not None and shard.index > 0:
        store.wait([key], START_TIMEOUT)
    try:
        yield store is not None
    finally:
        if store is not None and shard.index == 0:
            store.set(key, "ready")


@functools.cache
def _store() -> distributed.Store:
    return next(distributed.rendezvous("env://"))[0]
