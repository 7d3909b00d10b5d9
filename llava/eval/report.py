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
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from llava.eval.paper import PAPER, PaperModel, PaperRow
from llava.eval.rows import WHOLE, Row, Table, read_results, to_tables
from llava.eval.tasks import TASKS
from llava.inference.embedded import playground
from llava.utils.cli import add_verbose, print_once, program, run_command
from llava.utils.files import make_folder, require_own, write_text
from llava.utils.plots import pyplot
from llava.utils.tables import to_table

ALL_ITS_OWN = " †"
FEWER = re.compile(r" \(\d+ of \d+\)$")
COLUMNS = ("checkpoint", "budget", "tokens")  # that report.csv begins with


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(report, parse_arguments(argv))


def report(args: argparse.Namespace) -> int:
    """Print the tables of a folder's results and write them as files; returns the exit status."""
    folder = Path(args.folder or playground() / "results")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder to search with all below, such as {folder.parent}.")
    found = read_results(folder)
    tables = to_tables(found, args.relative_to)
    tasks = tasks_of(tables)
    sections = [f"## {table.name}\n\n{to_markdown(table, tasks)}" for table in tables]
    sections += notes_for(tables, tasks, args.relative_to)
    sections += judge_notes([result for results in found.values() for result in results])
    text = "\n\n".join(sections)
    print(text)
    write_files(make_folder(args.out or folder), text, tables)
    return 0


def tasks_of(tables: Sequence[Table]) -> list[str]:
    """List the tasks that any of the tables has a score of, in the order of all tasks."""
    scored = {task for table in tables for row in table.rows for task in row.scores}
    return [task for task in TASKS if task in scored]


def notes_for(tables: Sequence[Table], tasks: Sequence[str], relative_to: str | None) -> list[str]:
    """List what has to be known to compare these tables with each other and with the paper."""
    papers = [table.paper for table in tables if table.paper]
    notes = [f"Averages are relative to {relative_to} with all tokens."] if relative_to else []
    if papers:
        notes.append("\n".join(TASKS[task].note for task in tasks if TASKS[task].note))
    return notes + list(dict.fromkeys(paper.note for paper in papers if paper.note))


def write_files(out: Path, text: str, tables: Sequence[Table]) -> None:
    """Write report.md, report.csv and, where something can be drawn, report.png; prints which were written.

    Raises:
        ValueError: one of them is there, and this command has not written it.
    """
    require_own([out / f"report.{kind}" for kind in ("md", "csv", "png")], ",".join(COLUMNS))
    write_text(out / "report.md", f"{text}\n")
    write_text(out / "report.csv", to_csv(tables, tasks_of(tables)))
    written = ["report.md", "report.csv"]
    if draw(tables, out / "report.png"):
        written.append("report.png")
    elif pyplot() is None:
        print_once("No plot: it needs matplotlib.")
    print_once(f"\nWritten: {', '.join(str(out / name) for name in written)}")


def judge_notes(results: Sequence[dict]) -> list[str]:
    """Name the language models that have graded each benchmark, and say where not all grades could be read."""
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


def paper_rows(paper: PaperModel, row: Row) -> list[PaperRow]:
    """Find the paper's rows of as many tokens."""
    tokens = paper.visual_tokens if row.budget == WHOLE else row.most_tokens
    return [line for line in paper.rows if line.tokens == tokens]


def to_markdown(table: Table, tasks: Sequence[str]) -> str:
    """Write a line per budget, and under it the paper's of as many tokens, in brackets how far ours is above it."""
    _, rows, whole, paper = table
    lines = [["", "tokens", *tasks, "average %"]]
    for row in rows:
        cells = [score_text(row.scores.get(task)) + "*" * (task in row.partial) for task in tasks]
        shared = row.shared_with(whole)
        average = average_text(row.relative_to(whole), len(shared), len(whole.scores) if whole else 0)
        lines.append([row.budget, f"{row.tokens:.0f}", *cells, average])
        if paper:
            lines += [paper_line(paper, line, row, tasks, shared) for line in paper_rows(paper, row)]
    notes = []
    if any(FEWER.search(line[-1]) for line in lines):
        notes.append("(1 of 2) the average is over 1 of the 2 benchmarks of the row that it is compared with")
    if any(row.partial for row in rows):
        notes.append("\\* some questions were left out")
    if paper and not paper.rows[0].scores:
        notes.append(f"{ALL_ITS_OWN.strip()} over all benchmarks of the paper")
    if not whole:
        notes.append("No averages: there is no run with all tokens (--budgets full).")
    return "\n\n".join([to_table(lines), *notes])


def paper_line(paper: PaperModel, line: PaperRow, row: Row, tasks: Sequence[str], averaged: Sequence[str]) -> list[str]:
    """Write the cells of one of the paper's rows, to stand under `row`.

    Args:
        paper: the model of the paper.
        line: its row.
        row: ours of as many tokens.
        tasks: the columns of the table.
        averaged: the tasks that our row's average is over.
    """
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
    """Average a row of the paper relative to all tokens, in percent.

    It is over `tasks` where the paper's scores are known here, else the average that the paper gives, over all its
    benchmarks; None if the paper has none of the tasks.
    """
    if not line.scores:
        return line.average
    shared = [task for task in tasks if task in line.scores]
    return 100 * fmean(line.scores[task] / paper.rows[0].scores[task] for task in shared) if shared else None


def average_text(average: float | None, over: int, of: int) -> str:
    """Write an average over `over` benchmarks, and of how many if the row that it is compared with has more."""
    return score_text(average) + (f" ({over} of {of})" if 0 < over < of else "")


def score_text(value: float | None) -> str:
    """Write a score to one digit; nothing where there is none."""
    return "" if value is None else f"{value:.1f}"


def to_csv(tables: Sequence[Table], tasks: Sequence[str]) -> str:
    """Write all rows of all tables as CSV, a column for each task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *tasks, "average", "benchmarks"])
    for table in tables:
        for row in table.rows:
            values = [*(row.scores.get(task) for task in tasks), row.relative_to(table.whole)]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            writer.writerow([table.name, row.budget, f"{row.tokens:.1f}", *cells, len(row.shared_with(table.whole))])
    return text.getvalue()


def draw(tables: Sequence[Table], path: Path) -> bool:
    """Plot average relative scores against tokens per image; returns whether there was something to draw it with.

    False: no table has two averages, or there is no matplotlib.
    """
    drawn = [table for table in tables if len(table.curve) > 1]
    plt = pyplot()
    if plt is None or not drawn:
        return False
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for table in drawn:
        axis.plot(*zip(*table.curve, strict=True), marker="o", label=table.name)
    for label, points in paper_curves(drawn).items():
        axis.plot(*zip(*points, strict=True), marker="s", linestyle="--", label=label)
    ticks = sorted({round(tokens) for table in drawn for tokens, _ in table.curve})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="tokens per image", ylabel="average of scores relative to all tokens (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def paper_curves(tables: Sequence[Table]) -> dict[str, list[tuple[int, float | None]]]:
    """Find tokens and averages of the paper's models that tables are of, as it is and tuned, by the curve's name."""
    curves = {}
    for paper in PAPER:
        of = [table for table in tables if table.paper is paper]
        for line in paper.rows if of else ():
            label = f"the paper, {paper.name}{', tuned ‡' * line.is_tuned}"
            curves.setdefault(label, []).append((line.tokens, paper_average(paper, line, tasks_of(of))))
    return curves


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command line."""
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
