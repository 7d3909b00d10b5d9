"""One table of all results, the paper's figures under those of as many tokens."""

import csv
import json

import pytest

from llava.eval import report
from llava.eval.paper import COLUMNS, PAPER


def save(folder, task, budget, tokens, scores, *, answered=10, checkpoint="a/llava"):
    path = folder / task / checkpoint / f"{budget}.jsonl.result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"budget": budget, "scores": scores, "questions": 10, "answered": answered}
    settings = {"task": task, "checkpoint": checkpoint}
    path.write_text(json.dumps({**result, "tokens_per_image": {"mean": tokens}, "settings": settings}))


def cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.fixture
def results(tmp_path):
    save(tmp_path, "pope", "full", 576, {"F1": 80.0, "accuracy": 1.0})
    save(tmp_path, "gqa", "full", 576, {"accuracy": 50.0})
    save(tmp_path, "pope", "54+10", 64, {"F1": 60.0, "accuracy": 1.0})
    save(tmp_path, "gqa", "54+10", 64, {"accuracy": 25.0}, answered=9)
    save(tmp_path, "pope", "9+1", 10, {"F1": 40.0, "accuracy": 1.0})
    return tmp_path


def test_ours_and_the_papers(results, capsys):
    assert report.main([str(results)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "full") == ["full", "576", "80.0", "50.0", "100.0"]
    assert cells(text, "54+10") == ["54+10", "64", "60.0", "25.0*", "62.5"]  # 75 % and 50 %
    assert cells(text, "9+1") == ["9+1", "10", "40.0", "", "50.0"]
    papers = [line for line in text.splitlines() if line.startswith("| the paper")]
    assert len(papers) == 3  # one of all tokens; at 64 tokens, as it is and tuned
    assert "77.0 (-17.0)" in papers[1]
    assert "55.1 (-30.1)" in papers[1]
    assert "80.9 (-20.9)" in papers[2]
    assert f"{100 * (77.0 / 85.9 + 55.1 / 61.9) / 2:.1f}" in papers[1]
    assert "some questions were left out" in text
    assert "POPE: F1" in text
    assert (results / "report.md").read_text() == text
    rows = list(csv.DictReader((results / "report.csv").open()))
    assert [row["average"] for row in rows] == ["100.000", "62.500", "50.000"]
    assert (results / "report.png").stat().st_size > 5000


def test_other_models_are_not_compared_with_the_paper(tmp_path, capsys):
    save(tmp_path, "pope", "full", 64, {"F1": 80.0})
    save(tmp_path, "pope", "6+1", 7, {"F1": 60.0}, checkpoint="b/other")
    assert report.main([str(tmp_path), "--out", str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    assert "the paper" not in text
    assert "## llava\n" in text
    assert "## other\n" in text
    assert "there is no run with all tokens (--budgets full)" in text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.csv", "report.md"]  # nothing to draw


def test_of_several_results_the_fullest_counts(tmp_path, capsys):
    save(tmp_path, "pope", "full", 64, {"F1": 80.0})
    save(tmp_path / "first", "pope", "full", 64, {"F1": 10.0}, answered=2)
    save(tmp_path, "gqa", "full", 64, None)
    assert report.main([str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out, "full")[2:4] == ["80.0", "100.0"]


def test_an_empty_folder_says_how_to_fill_it(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "scripts/eval/all.sh" in capsys.readouterr().err


def test_the_papers_table_gives_its_averages():
    """As it prints them; those of 64 tokens to half a point."""
    expected = {(192, False): 98.5, (192, True): 99.1, (128, False): 97.6, (128, True): 98.4, (64, True): 95.2}
    for row in PAPER[1:]:
        relative = [100 * row.scores[name] / PAPER[0].scores[name] for name in COLUMNS]
        if (row.tokens, row.is_tuned) in expected:
            assert sum(relative) / len(relative) == pytest.approx(expected[row.tokens, row.is_tuned], abs=0.5)
