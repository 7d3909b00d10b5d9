"""The answers of one run on disk: appended as they come, resumed after an interruption, shared out over processes.

    NAME.jsonl               one row per question, in upstream's fields; grows during the run, sorted at its end
    NAME.jsonl.meta.json     the settings these answers were made with; other settings may not add to them
    NAME.jsonl.result.json   the score, written by who scores; deleted with the answers
    NAME.jsonl.submission.*  the answers as the benchmark's server takes them, deleted with them too
    NAME.jsonl.part-R-of-N   what process R of N has answered; process 0 merges the parts into NAME.jsonl
    NAME.jsonl.time.json     the seconds that the answers took so far, over all starts; at the end the result has them

`metadata` of an answer holds its `row` in the question file and `image_tokens`, the visual tokens that the model saw,
those of all images together. A question is known by its row together with its id and prompt: in TextVQA the id is that
of the image, so ids repeat.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llava.eval.questions import Question, by_image
from llava.utils.distributed import first_process_first, gather
from llava.utils.files import (
    drop_lock,
    fingerprint,
    is_file,
    make_folder,
    read_json,
    read_jsonl,
    shorten,
    take_lock,
    to_line,
    write_json,
    write_jsonl,
)
from llava.utils.processes import ALONE, Shard
from visionzip_patch.config import with_current_names

logger = logging.getLogger(__name__)

WAYS_OUT = "Choose another answers file, or --overwrite to discard the old answers."


class Refused(NamedTuple):
    """A question without an answer, and the reason."""

    question: Question
    reason: str


def describe_settings(
    checkpoint: str, model_base: str | None, tower: str, questions: list[Question], image_folder: str | Path, **others
) -> dict:
    """Collect what must be equal for two runs to share answers, as an `AnswerFile` takes it.

    Args:
        checkpoint: folder or hub id.
        model_base: language model that the checkpoint goes on, if any.
        tower: folder or hub id of the vision tower.
        questions: all that are asked.
        image_folder: what their images are relative to.
        others: further settings, added as they are.

    Returns:
        the settings, as JSON can hold them: among them fingerprints of the weights and a digest of the questions.
    """
    # No image is written as null: digests stay those of files from before a question could have several images.
    content = json.dumps([(q.question_id, *(q.images or [None]), q.text) for q in questions])
    return {
        "checkpoint": str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint,
        "weights": [fingerprint(folder) for folder in (checkpoint, model_base, tower)],
        "model_base": model_base,
        "questions": f"{len(questions)}, sha256 {hashlib.sha256(content.encode()).hexdigest()[:16]}",
        "image_folder": str(Path(image_folder).resolve()),
        **others,
    }


class TimeSpent(NamedTuple):
    """The time that answers took, over all starts of their run."""

    seconds: float = 0.0
    untimed: int = 0  # answers whose time is not in it, as it is not known


def meta_file(path: Path) -> Path:
    """Name the file with the settings of the answers in `path`."""
    return path.with_name(f"{path.name}.meta.json")


def settings_of(path: Path) -> dict | None:
    """Read the settings with which the answers in `path` were made; None if there are none.

    Raises:
        ValueError: the file that holds them is damaged.
    """
    meta = meta_file(path)
    try:
        return with_current_names(dict(read_json(meta))) if meta.exists() else None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{meta}, which says how {path.name} was made, is damaged. {WAYS_OUT}") from error


def part_of(questions: Sequence[Question], shard: Shard) -> Iterator[Question]:
    """Choose the questions that one process answers: an even share, with all about the same images together."""
    before = 0
    for group in by_image(questions):
        middle = before + len(group) / 2
        if int(middle * shard.count / len(questions)) == shard.index:
            yield from group
        before += len(group)


class AnswerFile:
    """The answers to `questions` on disk, opened anew or resumed.

    Args:
        path: NAME.jsonl; its folder is made if need be.
        questions: all questions this file is to answer, whichever process answers them.
        settings: whatever must be equal for two runs to share answers; goes to the meta file, so JSON.
        shard: this process among those that write to the same `path`. Each takes a part of `questions`, those about the
            same images together, and all open, and finish, the same files in the same order inside a `process_group`.
        model_id: written into every row.
        overwrite: discard earlier answers, but nothing that may be something else, such as a question file.
        fields: row of a question -> more fields that its answer carries.

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
        fields: Mapping[int, dict] | None = None,
    ):
        path = Path(path)
        if path.exists() and not is_file(path):
            raise ValueError(f"{path} is no regular file: answers cannot be kept there. Choose another answers file.")
        self.path = path.resolve() if path.is_symlink() else path  # a link stays one
        self.questions, self.shard, self.model_id, self.fields = questions, shard, model_id, fields or {}
        self.own = self.path if shard.count == 1 else self.sibling(f".part-{shard.index}-of-{shard.count}")
        self.meta, self.result, self.time = (
            meta_file(self.path),
            self.sibling(".result.json"),
            self.sibling(".time.json"),
        )
        self.refused: list[Refused] = []
        self.by_row = {question.row: question for question in questions}

        make_folder(self.path.parent)
        self.file = self.lock = None
        try:
            with first_process_first(shard):
                if shard.index == 0:  # for all processes of the run, before anything is touched
                    self.lock = take_lock(self.sibling(".lock"))
                is_ours = self.meta.exists() or not self.path.exists()  # else `claim` refuses it
                if overwrite and is_ours and shard.index == 0:
                    made_from_them = (self.result, self.time, *self.siblings(".submission."))
                    for old in (
                        *made_from_them,
                        *self.parts(),
                        self.path,
                        self.meta,
                    ):  # so ordered, should it be killed
                        old.unlink(missing_ok=True)
                self.claim(settings)
            self.file = self.open_own()
            self.rows = self.read_all()  # row -> answer
        except ValueError:
            self.close()
            raise
        self.resumed = len(self.rows)
        self.before, self.began = self.spent_before(), None
        self.todo = [question for question in part_of(questions, shard) if question.row not in self.rows]

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
                **self.fields.get(question.row, {}),
            }
            for question, text, tokens in zip(questions, texts, image_tokens, strict=True)
        ]
        content = "".join(map(to_line, rows)).encode()
        try:
            while content:
                content = content[self.file.write(content) :]
        except OSError as error:
            raise ValueError(
                f"{self.own}: cannot be written ({error.strerror}). What is in it is kept: fix that, and the same "
                f"command goes on from there."
            ) from error
        self.rows.update({row["metadata"]["row"]: row for row in rows})
        if self.began is not None and self.shard.index == 0:
            write_json(self.time, self.spent()._asdict())

    def begin(self) -> None:
        """Start the clock of the answers."""
        self.began = time.perf_counter()

    def spent(self) -> TimeSpent:
        """Sum up the time that the answers took until now."""
        now = 0.0 if self.began is None else time.perf_counter() - self.began
        return self.before._replace(seconds=self.before.seconds + now)

    def spent_before(self) -> TimeSpent:
        """Look up the time of the answers that are there, as an interrupted run or a result has noted it."""
        try:
            if self.time.exists():
                return TimeSpent(**read_json(self.time))
            if self.result.exists() and (timing := read_json(self.result)["timing"]):
                return TimeSpent(timing["seconds"], max(0, self.resumed - timing["questions"]))
        except (KeyError, TypeError, ValueError) as error:
            logger.debug("What the answers in %s took is not known: %s", self.path, error)
        return TimeSpent(untimed=self.resumed)

    def refuse(self, question: Question, reason: str) -> None:
        """Note that `question` cannot be answered. The next run tries again."""
        self.refused.append(Refused(question, reason))

    def finish(self) -> bool:
        """Bring the answers together, in the order of the questions; to be called once, when `todo` is done.

        Returns True in the process that now holds all answers in `rows` and all failures in `refused`: the first. It
        waits for the others.

        Raises:
            ValueError: one of the others ended early.
        """
        if self.shard.count > 1:
            if self.shard.index > 0:
                self.close()  # so that all of it is found, on a network drive too
            refused = gather(self.refused, self.shard)
            if refused is None:
                return False
            self.rows, self.refused = self.read_all(), [refusal for part in refused for refusal in part]
        self.refused.sort(key=lambda refusal: refusal.question.row)
        write_jsonl(self.path, [self.rows[row] for row in sorted(self.rows)])
        for part in self.parts():
            part.unlink()
        self.time.unlink(missing_ok=True)
        self.close()
        return True

    def close(self) -> None:
        """Close the files and let other processes write them; `finish` does so too."""
        if self.file:
            self.file.close()
        if self.lock:
            drop_lock(self.lock, self.sibling(".lock"))

    def sibling(self, suffix: str) -> Path:
        """Name a file next to the answers: their own name and a suffix."""
        return self.path.with_name(self.path.name + suffix)

    def parts(self) -> list[Path]:
        """List the files of single processes that are there."""
        return self.siblings(".part-")

    def siblings(self, suffix: str) -> list[Path]:
        """List the files next to the answers whose names go on with `suffix`."""
        prefix = self.path.name + suffix
        return [path for path in self.path.parent.iterdir() if path.name.startswith(prefix)]

    def claim(self, settings: dict) -> None:
        """Write the settings next to the answers, or compare them with those already there.

        Raises:
            ValueError: they differ, or answers are there without any.
        """
        answered = any(path.stat().st_size for path in [self.path, *self.parts()] if path.exists())
        before = settings_of(self.path)
        if not answered:
            if before != settings:
                write_json(self.meta, settings)
            return
        if before is None:
            raise ValueError(
                f"{self.path} exists without {self.meta.name}, as all answers have it, so it may be anything: not even "
                f"--overwrite touches it. Choose another answers file, or move this one away."
            )
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if names:
            changes = "; ".join(f"{name}: {before.get(name)!r} then, {settings.get(name)!r} now" for name in names)
            raise ValueError(f"{self.path} holds answers made with other settings ({changes}). {WAYS_OUT}")

    def open_own(self):
        """Open this process's file for appending, without a last line that a kill left unfinished."""
        file = self.own.open("ab", buffering=0)
        content = self.own.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s: dropped its unfinished last line; that question is asked again", self.own)
            file.truncate(whole)
        return file

    def read_all(self) -> dict[int, dict]:
        """Read the answers of all processes, by row of the question file."""
        rows = {}
        for path in [self.path, *self.parts()]:
            if path.exists():
                rows = {**self.read_rows(path), **rows}
        return rows

    def read_rows(self, path: Path) -> dict[int, dict]:
        """Read the answers of one file, by row; of several to one row the first counts.

        Raises:
            ValueError: one is to another question than this row's.
        """
        rows = {}
        for line, answer in read_jsonl(path, growing=True):
            metadata = answer.get("metadata")
            row = metadata.get("row") if isinstance(metadata, dict) else None
            question = self.by_row.get(row) if isinstance(row, int) else None
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
