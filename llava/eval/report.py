"""All results of a folder in one table, the paper's under them: `python -m llava.eval.report [DIR]`.

Prints it, and writes report.md, report.csv and report.png into the folder, or into --out. A row's average is the mean
of its scores relative to those with all tokens, over the benchmarks of which both have answered the same questions; it
says so where these are fewer.
"""

import argparse
import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from llava.eval.paper import PAPER, PaperModel, PaperRow
from llava.eval.tasks import TASKS
from llava.inference.embedded import playground
from llava.utils.cli import add_verbose, print_once, program, run_command
from llava.utils.files import make_folder, read_json, require_own, write_text
from llava.utils.plots import pyplot
from llava.utils.tables import to_table

WHOLE = "full"  # the budget that is all tokens
ALL_ITS_OWN = " †"
FEWER = re.compile(r" \(\d+ of \d+\)$")
COLUMNS = ("checkpoint", "budget", "tokens")  # that report.csv begins with


class Row(NamedTuple):
    """One budget of one checkpoint."""

    budget: str
    tokens: float  # of an image, mean over its benchmarks
    most_tokens: float  # of any image
    scores: dict[str, float]  # by task
    questions: dict[str, str]  # by task: a digest of what was asked
    partial: frozenset[str]  # tasks of which questions were left out

    def relative_to(self, whole: "Row | None") -> float | None:
        """The average relative score in %; None if no benchmark is in both."""
        shared = self.shared_with(whole)
        return 100 * fmean(self.scores[task] / whole.scores[task] for task in shared) if shared else None

    def shared_with(self, whole: "Row | None") -> list[str]:
        """The benchmarks that an average relative to `whole` is over."""
        if whole is None:
            return []
        same = [task for task in self.scores if self.questions[task] == whole.questions.get(task)]
        return [task for task in same if whole.scores[task]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(report, parse_arguments(argv))


def report(args: argparse.Namespace) -> int:
    folder = Path(args.folder or playground() / "results")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder to search with all below, such as {folder.parent}.")
    found = read_results(folder)
    tables = {name: to_rows(results) for name, results in found.items()}
    papers = {name: paper_of(results) for name, results in found.items()}
    wholes = choose_wholes(tables, args.relative_to)
    tasks = [name for name in TASKS if any(name in row.scores for rows in tables.values() for row in rows)]
    sections = [f"## {name}\n\n{to_markdown(rows, tasks, wholes[name], papers[name])}" for name, rows in tables.items()]
    if args.relative_to:
        sections.append(f"Averages are relative to {args.relative_to} with all tokens.")
    if any(papers.values()):
        sections.append("\n".join(TASKS[task].note for task in tasks if TASKS[task].note))
    sections += dict.fromkeys(paper.note for paper in papers.values() if paper and paper.note)
    sections += judge_notes([result for results in found.values() for result in results])
    text = "\n\n".join(sections)
    print(text)
    out = make_folder(args.out or folder)
    require_own([out / f"report.{kind}" for kind in ("md", "csv", "png")], ",".join(COLUMNS))
    write_text(out / "report.md", f"{text}\n")
    write_text(out / "report.csv", to_csv(tables, tasks, wholes))
    written = ["report.md", "report.csv"]
    if draw(tables, wholes, papers, out / "report.png"):
        written.append("report.png")
    elif pyplot() is None:
        print_once("No plot: it needs matplotlib.")
    print_once(f"\nWritten: {', '.join(str(out / name) for name in written)}")
    return 0


def read_results(folder: Path) -> dict[str, list[dict]]:
    """The results below a folder that have scores, by checkpoint; those of other precisions apart.

    Raises:
        ValueError: there are none, or a file is none.
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
    """The last part of each checkpoint's path, with more of it, and the precision, where these tell some apart."""
    keys = list(keys)
    names = []
    for checkpoint, precision in keys:
        others = {other for other, _ in keys if Path(other).name == Path(checkpoint).name}
        name = checkpoint if len(others) > 1 else Path(checkpoint).name
        precisions = {other for same, other in keys if same == checkpoint}
        names.append(f"{name}, {precision}" if len(precisions) > 1 else name)
    return names


def choose_wholes(tables: dict[str, list[Row]], name: str | None) -> dict[str, Row | None]:
    """For each table the row that its averages are relative to: its own with all tokens, or that of the table `name`.

    Raises:
        ValueError: there is no such table, or no such row in it.
    """
    wholes = {other: rows[0] if rows[0].budget == WHOLE else None for other, rows in tables.items()}
    if name is None:
        return wholes
    if not wholes.get(name):
        known = ", ".join(other for other, row in wholes.items() if row) or "none"
        raise ValueError(f"--relative-to {name}: no results of it with all tokens. There are those of: {known}.")
    return dict.fromkeys(tables, wholes[name])


def to_rows(results: Sequence[dict]) -> list[Row]:
    """A row for each budget, most tokens first; of results for the same question the one with most answers counts."""
    best: dict[tuple[str, str], dict] = {}
    for result in sorted(results, key=lambda result: result["answered"]):
        best[result["budget"], result["settings"]["task"]] = result
    rows = []
    for budget in dict.fromkeys(budget for budget, _ in best):
        of = {task: result for (other, task), result in best.items() if other == budget}
        scores = {task: result["scores"].get(TASKS[task].headline) for task, result in of.items()}
        scores = {task: score for task, score in scores.items() if score is not None}
        asked = {task: result["settings"].get("questions", "") for task, result in of.items()}
        partial = frozenset(
            task for task, result in of.items() if result["answered"] < result["questions"] or result.get("limit")
        )
        tokens = [result["tokens_per_image"] for result in of.values() if result["tokens_per_image"]]
        mean = fmean(spread["mean"] for spread in tokens) if tokens else 0.0
        most = max((spread["max"] for spread in tokens), default=0.0)
        rows.append(Row(budget, mean, most, scores, asked, partial))
    return sorted(rows, key=lambda row: (row.budget != WHOLE, -row.tokens))


def judge_notes(results: Sequence[dict]) -> list[str]:
    """Which language models have graded, and where not all could be read; a line for each benchmark that needs one."""
    judges, unreadable = defaultdict(set), defaultdict(str)
    for result in results:
        if judge := result.get("judge"):
            settings = result["settings"]
            judges[settings["task"]].update(judge["answered"])
            if count := judge.get("unreadable"):
                which = f"{Path(settings['checkpoint']).name}, {result['budget']}"
                unreadable[settings["task"]] += f" {which}: {count} of {judge['grades']} grades unreadable."
    return [
        f"{task}: graded by {', '.join(sorted(names))}; grades of another judge, as the paper's, do not compare."
        f"{unreadable[task]}"
        for task, names in judges.items()
    ]


def paper_of(results: Sequence[dict]) -> PaperModel | None:
    """The paper's model that a checkpoint is like, by what is noted of it in its results."""
    noted = [result["model"] for result in results if result.get("model")]
    for paper in PAPER:
        like = {"model_type": "llava", "hidden_size": paper.hidden_size, "visual_tokens": paper.visual_tokens}
        if noted and noted[-1] == like:
            return paper
    return None


def paper_rows(paper: PaperModel | None, row: Row) -> list[PaperRow]:
    """Those of as many tokens."""
    if paper is None:
        return []
    tokens = paper.visual_tokens if row.budget == WHOLE else row.most_tokens
    return [line for line in paper.rows if line.tokens == tokens]


def to_markdown(rows: Sequence[Row], tasks: Sequence[str], whole: Row | None, paper: PaperModel | None) -> str:
    """A line per budget, and under it the paper's of as many tokens, with how far ours is above it in brackets."""
    lines = [["", "tokens", *tasks, "average %"]]
    for row in rows:
        cells = [score_text(row.scores.get(task)) + "*" * (task in row.partial) for task in tasks]
        shared = row.shared_with(whole)
        average = average_text(row.relative_to(whole), len(shared), len(whole.scores) if whole else 0)
        lines.append([row.budget, f"{row.tokens:.0f}", *cells, average])
        lines += [paper_line(paper, line, row, tasks, shared) for line in paper_rows(paper, row)]
    text = to_table(lines)
    if any(FEWER.search(line[-1]) for line in lines):
        text += "\n\n(1 of 2) the average is over 1 of the 2 benchmarks of the row that it is compared with"
    if any(row.partial for row in rows):
        text += "\n\n\\* some questions were left out"
    if paper and not paper.rows[0].scores:
        text += f"\n\n{ALL_ITS_OWN.strip()} over all benchmarks of the paper"
    return text if whole else f"{text}\n\nNo averages: there is no run with all tokens (--budgets full)."


def paper_line(paper: PaperModel, line: PaperRow, row: Row, tasks: Sequence[str], averaged: Sequence[str]) -> list[str]:
    """The cells of one of the paper's rows, under `row`, whose own average is over the tasks `averaged`."""
    cells = []
    for task in tasks:
        value, own = line.scores.get(task), row.scores.get(task)
        cells.append("" if value is None else score_text(value) + (f" ({own - value:+.1f})" if own is not None else ""))
    compared = averaged or [task for task in tasks if task in row.scores]
    known = [task for task in compared if task in line.scores]
    average = average_text(paper_average(paper, line, compared), len(known) if line.scores else 0, len(compared))
    name = f"the paper, {paper.name}{', tuned ‡' * line.is_tuned}"
    return [name, str(line.tokens), *cells, average + ALL_ITS_OWN * (not line.scores)]


def paper_average(paper: PaperModel, line: PaperRow, tasks: Sequence[str]) -> float | None:
    """Over `tasks` where the paper's scores are known, else the one that it gives, over all its benchmarks."""
    if not line.scores:
        return line.average
    shared = [task for task in tasks if task in line.scores]
    return 100 * fmean(line.scores[task] / paper.rows[0].scores[task] for task in shared) if shared else None


def average_text(average: float | None, over: int, of: int) -> str:
    """An average over so many benchmarks, and if the row it is compared with has more, how many these are."""
    return score_text(average) + (f" ({over} of {of})" if 0 < over < of else "")


def score_text(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def to_csv(tables: dict[str, list[Row]], tasks: Sequence[str], wholes: dict[str, Row | None]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *tasks, "average", "benchmarks"])
    for name, rows in tables.items():
        for row in rows:
            values = [*(row.scores.get(task) for task in tasks), row.relative_to(wholes[name])]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            writer.writerow([name, row.budget, f"{row.tokens:.1f}", *cells, len(row.shared_with(wholes[name]))])
    return text.getvalue()


def draw(
    tables: dict[str, list[Row]], wholes: dict[str, Row | None], papers: dict[str, PaperModel | None], path: Path
) -> bool:
    """Average relative score against tokens. Returns False if there is nothing to draw, or no matplotlib."""
    curves = {}
    for name, rows in tables.items():
        averages = [(row.tokens, row.relative_to(wholes[name])) for row in rows]
        curves[name] = sorted((tokens, average) for tokens, average in averages if average is not None)
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    plt = pyplot()
    if plt is None or not curves:
        return False
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    for paper in PAPER:
        of = [row for name in curves if papers[name] is paper for row in tables[name]]
        tasks = [task for task in TASKS if any(task in row.scores for row in of)]
        for is_tuned, label in ((False, f"the paper, {paper.name}"), (True, f"the paper, {paper.name}, tuned ‡")):
            lines = [line for line in paper.rows if line.is_tuned == is_tuned]
            points = [(line.tokens, paper_average(paper, line, tasks)) for line in lines]
            if of and points:
                axis.plot(*zip(*points, strict=True), marker="s", linestyle="--", label=label)
    ticks = sorted({round(tokens) for points in curves.values() for tokens, _ in points})
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
        prog=program("llava.eval.report"),
        description="Put all results of a folder into one table, with the paper's where as many tokens were used.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="searched with all below (default: playground/results)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where report.md, report.csv and report.png go (default: the same)"
    )
    parser.add_argument(
        "--relative-to",
        metavar="NAME",
        help="the checkpoint, as the report calls it, whose run with all tokens is 100 %% (default: each its own)",
    )
    add_verbose(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
