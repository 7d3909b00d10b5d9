"""All results of a folder in one table, the paper's under them: `python -m llava.eval.report [DIR]`.

Prints it, and writes report.md, report.csv and report.png into the folder, or into --out. A row's average is the mean
of its scores relative to those with all tokens, over the benchmarks that both have.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from llava.cli import add_verbose, status_of, tell
from llava.eval.paper import FULL, NOTES, PAPER, PaperRow
from llava.eval.tasks import TASKS, playground
from llava.files import make_folder, read_json, write_text
from llava.plots import pyplot
from llava.tables import to_table

WHOLE = "full"  # the budget that is all tokens


class Row(NamedTuple):
    """One budget of one checkpoint."""

    budget: str
    tokens: float  # of an image, mean over its benchmarks
    scores: dict[str, float]  # by task
    partial: frozenset[str]  # tasks of which questions were left out

    def relative_to(self, whole: "Row") -> float | None:
        """The average relative score in %; None if no benchmark is in both."""
        shared = [task for task in self.scores if whole.scores.get(task)]
        return 100 * fmean(self.scores[task] / whole.scores[task] for task in shared) if shared else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return status_of(report, parse_arguments(argv))


def report(args: argparse.Namespace) -> int:
    folder = Path(args.folder or playground() / "results")
    tables = {name: to_rows(results) for name, results in read_results(folder).items()}
    tasks = [name for name in TASKS if any(name in row.scores for rows in tables.values() for row in rows)]
    sections = [f"## {name}\n\n{to_markdown(rows, tasks)}" for name, rows in tables.items()]
    if any(is_like_the_papers(rows) for rows in tables.values()):
        sections.append("\n".join(NOTES[task] for task in tasks if task in NOTES))
    text = "\n\n".join(sections)
    print(text)
    out = make_folder(args.out or folder)
    write_text(out / "report.md", f"{text}\n")
    write_text(out / "report.csv", to_csv(tables, tasks))
    written = ["report.md", "report.csv"]
    if draw(tables, out / "report.png"):
        written.append("report.png")
    tell(f"\nWritten: {', '.join(str(out / name) for name in written)}")
    return 0


def read_results(folder: Path) -> dict[str, list[dict]]:
    """The results below a folder that have scores, by checkpoint.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.rglob("*.result.json")):
        result = read_json(path)
        if result.get("scores") and result["settings"].get("task") in TASKS:
            found.setdefault(Path(result["settings"]["checkpoint"]).name, []).append(result)
    if not found:
        raise ValueError(f"{folder}: no results in it. `bash scripts/eval/all.sh` makes some.")
    return found


def to_rows(results: Sequence[dict]) -> list[Row]:
    """A row for each budget, most tokens first; of results for the same question the one with most answers counts."""
    best: dict[tuple[str, str], dict] = {}
    for result in sorted(results, key=lambda result: result["answered"]):
        best[result["budget"], result["settings"]["task"]] = result
    rows = []
    for budget in dict.fromkeys(budget for budget, _ in best):
        of = {task: result for (other, task), result in best.items() if other == budget}
        scores = {task: result["scores"][TASKS[task].headline] for task, result in of.items()}
        partial = frozenset(task for task, result in of.items() if result["answered"] < result["questions"])
        tokens = [result["tokens_per_image"]["mean"] for result in of.values() if result["tokens_per_image"]]
        rows.append(Row(budget, fmean(tokens) if tokens else 0.0, scores, partial))
    return sorted(rows, key=lambda row: (row.budget != WHOLE, -row.tokens))


def is_like_the_papers(rows: Sequence[Row]) -> bool:
    return rows[0].budget == WHOLE and abs(rows[0].tokens - FULL) < 1


def to_markdown(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A line per budget, and under it the paper's of as many tokens, with how far ours is above it in brackets."""
    whole = rows[0] if rows[0].budget == WHOLE else None
    compare = is_like_the_papers(rows)
    lines = [["", "tokens", *tasks, "average %"]]
    for row in rows:
        cells = [score_text(row.scores.get(task)) + "*" * (task in row.partial) for task in tasks]
        lines.append([row.budget, f"{row.tokens:.0f}", *cells, score_text(whole and row.relative_to(whole))])
        for paper in [paper for paper in PAPER if compare and abs(paper.tokens - row.tokens) < 1]:
            lines.append(paper_line(paper, row, tasks))
    text = to_table(lines)
    if any(row.partial for row in rows):
        text += "\n\n\\* some questions were left out"
    return text if whole else f"{text}\n\nNo averages: there is no run with all tokens (--budgets full)."


def paper_line(paper: PaperRow, row: Row, tasks: Sequence[str]) -> list[str]:
    cells = []
    for task in tasks:
        value, own = paper.scores.get(task), row.scores.get(task)
        cells.append("" if value is None else score_text(value) + (f" ({own - value:+.1f})" if own is not None else ""))
    shared = [task for task in tasks if task in paper.scores]
    average = 100 * fmean(paper.scores[task] / PAPER[0].scores[task] for task in shared) if shared else None
    return ["the paper, tuned ‡" if paper.is_tuned else "the paper", str(paper.tokens), *cells, score_text(average)]


def score_text(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def to_csv(tables: dict[str, list[Row]], tasks: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["checkpoint", "budget", "tokens", *tasks, "average"])
    for name, rows in tables.items():
        for row in rows:
            average = row.relative_to(rows[0]) if rows[0].budget == WHOLE else None
            values = [*(row.scores.get(task) for task in tasks), average]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            writer.writerow([name, row.budget, f"{row.tokens:.1f}", *cells])
    return text.getvalue()


def draw(tables: dict[str, list[Row]], path: Path) -> bool:
    """Average relative score against tokens. Returns False if there is nothing to draw, or no matplotlib."""
    curves = {name: rows for name, rows in tables.items() if len(rows) > 1 and rows[0].budget == WHOLE}
    plt = pyplot()
    if plt is None or not curves:
        return False
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, rows in curves.items():
        points = sorted((row.tokens, row.relative_to(rows[0])) for row in rows if row.relative_to(rows[0]) is not None)
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    if any(map(is_like_the_papers, curves.values())):
        for is_tuned, label in ((False, "the paper"), (True, "the paper, tuned ‡")):
            lines = [paper for paper in PAPER if paper.is_tuned == is_tuned]
            shared = [task for task in TASKS if task in PAPER[0].scores]
            means = [100 * fmean(p.scores[task] / PAPER[0].scores[task] for task in shared) for p in lines]
            axis.plot([paper.tokens for paper in lines], means, marker="s", linestyle="--", label=label)
    ticks = sorted({round(row.tokens) for rows in curves.values() for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="tokens per image", ylabel="average of scores relative to all tokens (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.report",
        description="Put all results of a folder into one table, with the paper's where as many tokens were used.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="searched with all below (default: playground/results)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where report.md, report.csv and report.png go (default: the same)"
    )
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
