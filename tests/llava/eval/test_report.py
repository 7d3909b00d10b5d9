"""One table of all results, the paper's figures under those of as many tokens."""

import csv
import json

import pytest

from llava.eval import report
from llava.eval.paper import PAPER

COLUMNS_OF_A_RESULT = ("budget", "scores", "questions", "answered", "tokens_per_image", "settings")
MODEL = {"model_type": "llava", "hidden_size": 4096, "visual_tokens": 576}


def save(folder, task, budget, tokens, scores, *, answered=10, checkpoint="a/llava", model=None, limit=None, **more):
    path = folder / task / checkpoint / f"{budget}.jsonl.result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"budget": budget, "scores": scores, "questions": 10, "answered": answered, "limit": limit}
    settings = {"task": task, "checkpoint": checkpoint, "questions": f"10 of {task}", **more}
    spread = {"mean": tokens - 0.5, "max": tokens}
    path.write_text(json.dumps({**result, "tokens_per_image": spread, "settings": settings, "model": model}))


def cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.fixture
def results(tmp_path):
    save(tmp_path, "pope", "full", 576, {"F1": 80.0, "accuracy": 1.0}, model=MODEL)
    save(tmp_path, "gqa", "full", 576, {"accuracy": 50.0}, model=MODEL)
    save(tmp_path, "pope", "54+10", 64, {"F1": 60.0, "accuracy": 1.0}, model=MODEL)
    save(tmp_path, "gqa", "54+10", 64, {"accuracy": 25.0}, answered=9, model=MODEL)
    save(tmp_path, "pope", "9+1", 10, {"F1": 40.0, "accuracy": 1.0}, model=MODEL)
    return tmp_path


def test_ours_and_the_papers(results, capsys):
    assert report.main([str(results)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "full") == ["full", "576", "80.0", "50.0", "100.0"]
    assert cells(text, "54+10") == ["54+10", "64", "60.0", "25.0*", "62.5"]  # 75 % and 50 %
    assert cells(text, "9+1") == ["9+1", "10", "40.0", "", "50.0 (1 of 2)"]
    assert "(1 of 2) the average is over 1 of the 2 benchmarks of the row" in text
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
    assert [row["benchmarks"] for row in rows] == ["2", "2", "1"]
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


def test_runs_on_other_questions_are_marked_and_not_averaged(tmp_path, capsys):
    save(tmp_path, "pope", "full", 64, {"F1": 80.0})
    save(tmp_path, "gqa", "full", 64, {"accuracy": 50.0})
    save(tmp_path, "pope", "6+1", 7, {"F1": 60.0})
    save(tmp_path, "gqa", "6+1", 7, {"accuracy": 50.0}, limit=5, questions="5 of gqa")
    assert report.main([str(tmp_path)]) == 0
    assert cells(capsys.readouterr().out, "6+1") == ["6+1", "6", "60.0", "50.0*", "75.0 (1 of 2)"]


def test_the_papers_averages_are_over_the_benchmarks_of_ours_and_say_where_they_are_over_fewer(tmp_path, capsys):
    for task in ("pope", "gqa", "vizwiz"):  # the paper has no VizWiz
        score = {report.TASKS[task].headline: 50.0}
        save(tmp_path, task, "full", 576, score, model=MODEL)
        if task != "gqa":
            save(tmp_path, task, "54+10", 64, score, model=MODEL)
    assert report.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "54+10")[-1] == "100.0 (2 of 3)"
    papers = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| the paper")]
    assert papers == ["100.0 (2 of 3)", f"{100 * 77.0 / 85.9:.1f} (1 of 2)", f"{100 * 80.9 / 85.9:.1f} (1 of 2)"]


def test_full_averages_are_not_marked(tmp_path, capsys):
    for budget in ("full", "6+1"):
        save(tmp_path, "pope", budget, 64, {"F1": 80.0})
    assert report.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "6+1")[-1] == "100.0"
    assert "(1 of 2)" not in text


def test_a_report_of_others_is_not_replaced(results, capsys):
    (results / "report.md").write_text("mine")
    assert report.main([str(results)]) == 2
    assert "report.md: already there, and not what this command has written" in capsys.readouterr().err
    assert (results / "report.md").read_text() == "mine"
    assert report.main([str(results), "--out", str(results / "new")]) == 0
    assert report.main([str(results), "--out", str(results / "new")]) == 0


def test_a_tuned_checkpoint_relative_to_the_untuned_one(tmp_path, capsys):
    save(tmp_path, "pope", "full", 64, {"F1": 80.0})
    save(tmp_path, "pope", "6+1", 7, {"F1": 70.0}, checkpoint="b/tuned")
    assert report.main([str(tmp_path), "--relative-to", "llava"]) == 0
    text = capsys.readouterr().out
    assert cells(text, "6+1")[-1] == "87.5"
    assert "relative to llava with all tokens" in text
    assert report.main([str(tmp_path), "--relative-to", "tuned"]) == 2
    assert "There are those of: llava." in capsys.readouterr().err


def test_checkpoints_of_one_name_and_precisions_are_told_apart(tmp_path, capsys):
    for checkpoint in ("a/llava", "b/llava", "c/other"):
        save(tmp_path, "pope", "full", 64, {"F1": 80.0}, checkpoint=checkpoint, dtype="float16")
    save(tmp_path / "4", "pope", "full", 64, {"F1": 70.0}, checkpoint="c/other", dtype="float16", quantization="4bit")
    assert report.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    headings = {line for line in text.splitlines() if line.startswith("## ")}
    assert headings == {"## a/llava", "## b/llava", "## other, float16", "## other, 4bit"}


@pytest.mark.parametrize("content", ["{}", "[]", "3", "{", *COLUMNS_OF_A_RESULT])
def test_what_is_no_result_is_named(tmp_path, content, capsys):
    if content in COLUMNS_OF_A_RESULT:
        save(tmp_path, "pope", "full", 576, {"F1": 80.0})
        (path,) = tmp_path.rglob("*.result.json")
        content = json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != content})
    (tmp_path / "x.result.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    assert "x.result.json is no result of llava.eval.run. Move it away, or run that" in capsys.readouterr().err


def test_a_file_is_no_folder(results, capsys):
    (path, *_) = results.rglob("*.result.json")
    assert report.main([str(path)]) == 2
    assert f"{path} is a file: name a folder" in capsys.readouterr().err


def test_an_empty_folder_says_how_to_fill_it(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "scripts/eval/all.sh" in capsys.readouterr().err


def test_averages_where_only_these_are_known(tmp_path, capsys):
    """LLaVA-NeXT by what its budget can come to; images of narrow shapes have fewer tokens."""
    next_7b = {**MODEL, "visual_tokens": 2880}
    save(tmp_path, "pope", "full", 2200, {"F1": 80.0}, model=next_7b)
    save(tmp_path, "pope", "27+5", 160, {"F1": 72.0}, model=next_7b)
    assert report.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    papers = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| the paper")]
    name = "the paper, LLaVA-NeXT-7B"
    assert [[cell.strip() for cell in line] for line in papers] == [
        [name, "2880", "", "100.0 †"],
        [name, "160", "", "92.0 †"],
        [f"{name}, tuned ‡", "160", "", "95.5 †"],
    ]
    assert "† over all benchmarks of the paper" in text


@pytest.mark.parametrize("change", [{"model_type": "llava_mistral"}, {"hidden_size": 3072}, {"visual_tokens": 729}])
def test_models_that_the_paper_has_not_are_not_compared(tmp_path, capsys, change):
    save(tmp_path, "pope", "full", 576, {"F1": 80.0}, model={**MODEL, **change})
    assert report.main([str(tmp_path)]) == 0
    assert "the paper" not in capsys.readouterr().out


def test_the_papers_scores_give_its_averages():
    """As it prints them, to half a point."""
    rows = PAPER[0].rows
    assert len(rows) == 7
    for row in rows:
        relative = [100 * row.scores[name] / rows[0].scores[name] for name in row.scores]
        assert sum(relative) / len(relative) == pytest.approx(row.average, abs=0.5)
