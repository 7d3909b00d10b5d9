"""What a benchmark consists of, and what several of them share.

A benchmark is one file of this folder, which ends in `TASKS`, and a line in `llava.eval.tasks`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from llava.eval.hub.tables import Source
from llava.eval.judging.endpoint import Judge
from llava.eval.metrics.tally import Tally
from llava.eval.questions import Question, read_questions
from llava.inference.embedded import EMBEDDED_DATA, EMBEDDED_IMAGES

LONG = 1024  # tokens; LLaVA asks for free answers so
EVAL_ZIP = (
    "questions: LLaVA's eval.zip, unpacked to playground/data/eval: "
    "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view"
)

Rows = Sequence[Mapping]  # answers, each with `question_id`, `prompt` and `text`


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
        also: further files of the true answers, relative to `annotation_file`: names in that folder, or "../NAME".
    """

    question_file: Path
    image_folder: Path
    annotation_file: Path | None
    fetch: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def answers(self) -> Path:
        """Return where the true answers are, of a benchmark that has a file or a folder of them."""
        if self.annotation_file is None:
            raise ValueError(f"{self.question_file} comes without true answers: it cannot be scored here.")
        return self.annotation_file

    def below(self, root: Path) -> "Data":
        """Make paths relative to `root` whole, each in the first spelling that is there.

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
        """List what each file or folder holds, and where it is."""
        answers = [self.annotation_file] if self.annotation_file else []
        answers += [Path(os.path.normpath(self.answers / name)) for name in self.also]
        return [("questions", self.question_file), ("images", self.image_folder), *(("answers", at) for at in answers)]

    def texts(self) -> list[Path]:
        """List all but the images: the question file, and those of the answers."""
        return [path for what, path in self.parts() if what != "images"]

    def missing(self) -> list[Path]:
        """List the files and folders that are not there."""
        return [path for _, path in self.parts() if not is_there(path)]


def is_there(path: Path) -> bool:
    """Tell whether a path is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


class Submission(NamedTuple):
    """The file that a benchmark's own server or judge takes.

    `make` turns the benchmark's files and all answers into its content. It raises ValueError where the answers are no
    whole set, and ImportError where a package is missing.
    """

    make: Callable[[Data, Rows], bytes]
    suffix: str = ".json"


class Packed(NamedTuple):
    """A question file that holds its images: where they are unpacked to, and how."""

    folder_of: Callable[[Path], Path]  # question file -> image folder
    unpack: Callable[[Data], None]


class Graded(Protocol):
    """Answers to a benchmark, as its own script has them graded by a language model.

    Made from the folder of the benchmark's files, the file with its rules for the judge, and the answers.
    """

    RULES: ClassVar[str]  # name of the file with the rules
    SOURCE: ClassVar[str]  # where that comes from
    UNREADABLE: ClassVar[str]  # what a grade that cannot be read counts as
    REPEATS: ClassVar[bool]  # whether everything may be graded several times

    asked: int  # questions of the benchmark, answered or not
    prompts: dict[str, str]  # of each answered question

    def __init__(self, folder: Path, rules: Path, answers: Rows): ...

    def grade(self, judge: Judge, name: str) -> dict[str, Any]:
        """Have one answer graded."""
        ...

    def is_readable(self, row: Mapping) -> bool:
        """Tell whether a grade could be read out of the judge's reply."""
        ...

    def add_up(self, grades: Rows) -> tuple[dict[str, float], float | None]:
        """Compute the scores, and the standard deviation of the first over repetitions."""
        ...


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name: what the user types.
        title: what its authors call it; tasks of one benchmark have the same.
        about: what it asks for, in a few words.
        data: its files, relative to playground/.
        metric: files and answers -> scores by name; ValueError if they do not belong together. Only answered questions
            count, unless the benchmark's own script counts the others as wrong; a part of which no question is answered
            has no score. None: a judge or server scores them.
        headline: which of the scores stands for all of them where there is place for one; None if there never are any.
            Scores lack it where none of its questions is answered.
        embedded: a small stand-in for the files that comes with the project, for the embedded model, if there is one.
        read: question file, and how many at most -> questions.
        packed: how images come out of the question file, where they are in it.
        source: the data set of the hub that its files can be made from, if there is one.
        max_new_tokens: longest answer, in tokens.
        prompt_suffix: put after every question, where the question file leaves the instruction out.
        unit: of the scores.
        submission: the file that the benchmark's own server or judge takes, if it takes one.
        judge: how a language model grades the answers, if it does.
        elsewhere: who scores the answers or that file, and where.
        paper: its column in the paper's table, spelled as in `llava.eval.paper`; empty where it has none.
        note: what has to be known to compare a score with the paper's.
    """

    name: str
    title: str
    about: str
    data: Data
    metric: Callable[[Data, Rows], dict[str, float]] | None
    headline: str | None
    embedded: Data | None = None
    read: Callable[[Path, int | None], list[Question]] = read_questions
    packed: Packed | None = None
    source: Source | None = None
    max_new_tokens: int = 128
    prompt_suffix: str = ""
    unit: str = "%"
    submission: Submission | None = None
    judge: type[Graded] | None = None
    elsewhere: str = ""
    paper: str = ""
    note: str = ""

    def how_to_fetch(self, *, embedded: bool = False) -> str:
        """Say how to get the files, one step per line."""
        data = self.embedded if embedded and self.embedded else self.data
        steps = list(data.fetch)
        if self.source and data is self.data:
            steps.append(f"or from Hugging Face: python -m llava.eval.data --task {self.name} --fetch")
        return "\n  ".join(["Fetch", *steps])


def files(
    folder: str,
    questions: str,
    images: str,
    annotation: str | None,
    *fetch: str,
    spellings: Sequence[str] = (),
    also: tuple[str, ...] = (),
) -> Data:
    """Name files below data/eval/`folder`, which LLaVA's eval.zip makes; `fetch` says how to get the others."""
    root = Path("data/eval") / folder
    return Data(
        root / questions,
        root / images,
        root / annotation if annotation else None,
        fetch=(EVAL_ZIP, *fetch),
        spellings=tuple(f"data/eval/{spelling}" for spelling in spellings),
        also=also,
    )


def signs(questions: str, annotation: str, also: tuple[str, ...] = ()) -> Data:
    """Name the embedded pictures, and questions about them."""
    root = Path(EMBEDDED_DATA)
    fetch = f"these files come with the project: restore playground/{root} from its repository"
    return Data(root / questions, Path(EMBEDDED_IMAGES), root / annotation, fetch=(fetch,), also=also)


def judged_by(task: str) -> str:
    """Say which command has the answers to a task graded."""
    command = f"python -m llava.eval.judge {task} ANSWERS --base-url URL --model NAME"
    return f"A language model grades the answers: {command}."


@contextmanager
def naming_files(benchmark: str, *files: Path) -> Iterator[None]:
    """Raise ValueError, which names `files`, where what reads them finds that they are not a benchmark's own."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{' or '.join(map(str, files))} is not {benchmark}'s annotation file: {error!r}.") from error


def answered_in(rows: Rows, known: Iterable, path: Path) -> set[str]:
    """Collect the ids of the answered questions.

    Raises:
        ValueError: one of them is not among the `known`, those in `path`.
    """
    answered, ids = {str(row["question_id"]) for row in rows}, {str(key) for key in known}
    if unknown := sorted(answered - ids):
        raise ValueError(
            f"{len(unknown)} of {len(answered)} questions are none of the {len(ids)} in {path.name}, for instance "
            f"{', '.join(unknown[:3])}. Both must be of one release."
        )
    return answered


def percent(parts: Mapping[str, Tally]) -> dict[str, float]:
    """Compute right answers in percent, of the parts that have questions."""
    return {name: 100 * part.accuracy for name, part in parts.items() if part.count}


def to_json_bytes(content) -> bytes:
    """Write one JSON value, as the content of a submission."""
    return json.dumps(content, ensure_ascii=False).encode()
