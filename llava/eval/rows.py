"""Bring the results of a folder into tables: one for each checkpoint, with a row for each budget."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from llava.eval.paper import PAPER, PaperModel
from llava.eval.tasks import TASKS
from llava.utils.files import read_json

WHOLE = "full"  # the budget that is all tokens


class Row(NamedTuple):
    """One budget of one checkpoint."""

    budget: str
    tokens: float  # of an image, mean over its benchmarks
    most_tokens: float  # of any image
    scores: dict[str, float]  # by task
    questions: dict[str, str]  # by task: a digest of what was asked
    partial: frozenset[str]  # tasks of which questions were left out

    def relative_to(self, whole: "Row | None") -> float | None:
        """Average the scores relative to those of `whole`, in percent; None if no benchmark is in both."""
        shared = self.shared_with(whole)
        return 100 * fmean(self.scores[task] / whole.scores[task] for task in shared) if whole and shared else None

    def shared_with(self, whole: "Row | None") -> list[str]:
        """List the benchmarks of which both rows have answered the same questions, and `whole` not all wrong."""
        if whole is None:
            return []
        same = [task for task in self.scores if self.questions[task] == whole.questions.get(task)]
        return [task for task in same if whole.scores[task]]


class Table(NamedTuple):
    """All budgets of one checkpoint, and what they are compared with."""

    name: str  # of the checkpoint
    rows: list[Row]  # all tokens first, then most tokens first
    whole: Row | None  # what its averages are relative to
    paper: PaperModel | None  # the paper's model that it is like

    @property
    def curve(self) -> list[tuple[float, float]]:
        """List tokens and average relative score, fewest tokens first."""
        averages = [(row.tokens, row.relative_to(self.whole)) for row in self.rows]
        return sorted((tokens, average) for tokens, average in averages if average is not None)


def to_tables(found: dict[str, list[dict]], relative_to: str | None) -> list[Table]:
    """Make the table of each checkpoint.

    Args:
        found: results by the checkpoint's name.
        relative_to: the table whose run with all tokens is 100 % for all of them; None: each its own.

    Raises:
        ValueError: there is no such table, or no such row in it.
    """
    rows = {name: to_rows(results) for name, results in found.items()}
    wholes = choose_wholes(rows, relative_to)
    return [Table(name, rows[name], wholes[name], paper_of(results)) for name, results in found.items()]


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Read the results below a folder that have scores, by checkpoint; those of other precisions apart.

    Raises:
        ValueError: there are none, or a file holds something else.
    """
    found: dict[tuple[str, str], list[dict]] = {}
    for path in sorted(folder.rglob("*.result.json")):
        try:
            result = read_json(path)
            settings = result["settings"]
            if result["scores"] and settings["task"] in TASKS:
                to_rows([result])  # raises if something is lacking
                precision = settings.get("quantization") or settings.get("dtype") or ""
                found.setdefault((settings["checkpoint"], precision), []).append(result)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no result of llava.eval.run. Move it away, or run that again.") from error
    if not found:
        raise ValueError(f"{folder}: no results in it. `bash scripts/eval/all.sh` makes some.")
    return dict(zip(short_names(found), found.values(), strict=True))


def short_names(keys: Iterable[tuple[str, str]]) -> list[str]:
    """Name checkpoints by the last part of their path; where two are alike, by the whole path or the precision too."""
    keys = list(keys)
    names = []
    for checkpoint, precision in keys:
        others = {other for other, _ in keys if Path(other).name == Path(checkpoint).name}
        name = checkpoint if len(others) > 1 else Path(checkpoint).name
        precisions = {other for same, other in keys if same == checkpoint}
        names.append(f"{name}, {precision}" if len(precisions) > 1 else name)
    return names


def choose_wholes(rows: dict[str, list[Row]], name: str | None) -> dict[str, Row | None]:
    """Choose the row that each table's averages are relative to: its own with all tokens, or that of the table `name`.

    Raises:
        ValueError: there is no such table, or no such row in it.
    """
    wholes = {other: of[0] if of[0].budget == WHOLE else None for other, of in rows.items()}
    if name is None:
        return wholes
    if not wholes.get(name):
        known = ", ".join(other for other, row in wholes.items() if row) or "none"
        raise ValueError(f"--relative-to {name}: no results of it with all tokens. There are those of: {known}.")
    return dict.fromkeys(rows, wholes[name])


def to_rows(results: Sequence[dict]) -> list[Row]:
    """Make a row of each budget, all tokens first; of results for the same task the one with most answers counts."""
    best: dict[str, dict[str, dict]] = {}  # budget -> task -> result
    for result in sorted(results, key=lambda result: result["answered"]):
        best.setdefault(result["budget"], {})[result["settings"]["task"]] = result
    rows = [to_row(budget, of) for budget, of in best.items()]
    return sorted(rows, key=lambda row: (row.budget != WHOLE, -row.tokens))


def to_row(budget: str, results: dict[str, dict]) -> Row:
    """Make the row of one budget from its results, which are given by task."""
    scores = {task: result["scores"].get(TASKS[task].headline) for task, result in results.items()}
    tokens = [result["tokens_per_image"] for result in results.values() if result["tokens_per_image"]]
    return Row(
        budget,
        tokens=fmean(spread["mean"] for spread in tokens) if tokens else 0.0,
        most_tokens=max((spread["max"] for spread in tokens), default=0.0),
        scores={task: score for task, score in scores.items() if score is not None},
        questions={task: result["settings"].get("questions", "") for task, result in results.items()},
        partial=frozenset(task for task, result in results.items() if is_partial(result)),
    )


def is_partial(result: dict) -> bool:
    """Tell whether questions were left out."""
    return result["answered"] < result["questions"] or bool(result.get("limit"))


def paper_of(results: Sequence[dict]) -> PaperModel | None:
    """Find the paper's model that a checkpoint is like, by what its results note about it."""
    noted = [result["model"] for result in results if result.get("model")]
    for paper in PAPER:
        like = {"model_type": "llava", "hidden_size": paper.hidden_size, "visual_tokens": paper.visual_tokens}
        if noted and noted[-1] == like:
            return paper
    return None
