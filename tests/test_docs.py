"""Figures in the README and docs/PERFORMANCE.md are those that commands wrote, and those that the calculator prints."""

import re
from pathlib import Path

import pytest

from llava.eval.paper import PAPER
from llava.eval.tasks import TASKS
from llava.perf import cost

ROOT = Path(__file__).parent.parent
TEXT = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/PERFORMANCE.md"))
MEASURED = re.findall(r"<!-- (docs/\S+\.md):([^\n]*) -->\n(.*?)\n?<!-- / -->", TEXT, re.DOTALL)
CALCULATED = re.findall(r"<!-- python -m llava\.perf\.cost ([^\n]*) -->\n(.*?)\n?<!-- / -->", TEXT, re.DOTALL)


def section(path: Path, title: str) -> str:
    """What stands under a heading; without a title, what stands above the first."""
    parts = re.split(r"^## (.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))[title].strip()


def test_something_is_compared():
    assert len(MEASURED) > 5
    assert len(CALCULATED) == 2
    assert len(MEASURED) + len(CALCULATED) == TEXT.count("<!-- / -->")


@pytest.mark.parametrize(("name", "title", "shown"), MEASURED, ids=[f"{name} {title}" for name, title, _ in MEASURED])
def test_measured_figures(name, title, shown):
    assert shown.strip() == section(ROOT / name, title.strip())


@pytest.mark.parametrize(("arguments", "shown"), CALCULATED, ids=[arguments for arguments, _ in CALCULATED])
def test_calculated_figures(arguments, shown, capsys):
    assert cost.main(arguments.split()) == 0
    assert shown.strip() == capsys.readouterr().out.strip()


def test_every_benchmark_is_in_the_docs():
    text = (ROOT / "docs/EVALUATION.md").read_text(encoding="utf-8")
    assert [name for name in TASKS if f"`{name}.sh`" not in text] == []
    readme = section(ROOT / "README.md", "Real checkpoints and data")
    (listed,) = re.findall(r"\n\n([^.]*) each have a\s+script", readme)
    assert {*re.split(r",?\s+and\s+|,\s+", listed)} == {task.title for task in TASKS.values()}


def test_the_papers_scores_in_the_readme():
    """Each line of its table is in `llava.eval.paper`, the columns under the names that the benchmarks have there."""
    table = section(ROOT / "README.md", "What the paper reports").split("\n\n")[1]
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    tasks = {task.paper: name for name, task in TASKS.items() if task.paper}
    assert sorted(head[1:-1]) == sorted(tasks)
    assert len(lines) > 3
    known = {(row.tokens, row.is_tuned): row for row in PAPER[0].rows}
    for first, *scores, average in lines:
        row = known[int(first.removesuffix(" ‡")), first.endswith("‡")]
        assert dict(zip([tasks[column] for column in head[1:-1]], map(float, scores), strict=True)) == row.scores
        assert float(average.removesuffix(" %")) == row.average


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "playground/README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
