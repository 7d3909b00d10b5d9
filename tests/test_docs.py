"""Figures in the README and docs/PERFORMANCE.md are those that commands wrote, and those that the calculator prints."""

import re
from pathlib import Path

import pytest

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
