"""Benchmarks that others score: what is handed to them, and what a run says."""

import io
import json
import sys
from pathlib import Path

import benchmark_files
import pytest

from llava.eval import run
from llava.eval.tasks import TASKS
from llava.eval.tasks.base import Data
from llava.eval.tasks.mmbench import to_xlsx
from llava.inference.embedded import playground

OPTIONS = ["--max-new-tokens", "3", "--device", "cpu", "--num-workers", "0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    for make in (*benchmark_files.UNSCORED.values(), benchmark_files.make_mmbench, benchmark_files.make_mmbench_cn):
        make(tmp_path / "playground/data/eval")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(name: str) -> Data:
    return TASKS[name].data.below(playground())


def made(name: str, rows: list[dict]):
    return json.loads(TASKS[name].submission.make(files_of(name), rows))


def sheet(content: bytes) -> list[tuple]:
    from openpyxl import load_workbook

    return list(load_workbook(io.BytesIO(content)).active.values)


def test_vqav2_has_an_entry_for_each_question_of_the_whole_test_set(here):
    rows = [{"question_id": 2001, "text": "A red cat."}, {"question_id": 2003, "text": "Two"}]
    answers = ("", "red cat", "", "2")
    assert made("vqav2_test", rows) == [{"question_id": 2000 + n, "answer": text} for n, text in enumerate(answers)]
    with pytest.raises(ValueError, match="none of the 4 questions"):
        made("vqav2_test", [{"question_id": 7, "text": "no"}])


def test_vizwiz_has_whole_sets_only(here):
    names = [f"VizWiz_test_{number:08d}.jpg" for number in range(3)]
    rows = [{"question_id": name, "text": f"The {number}."} for number, name in enumerate(names)]
    assert made("vizwiz_test", rows) == [{"image": name, "answer": str(n)} for n, name in enumerate(names)]
    with pytest.raises(ValueError, match="1 of VizWiz's 3 questions have no prediction"):
        made("vizwiz_test", rows[1:])


def test_mmvet_is_a_text_by_question(here):
    rows = [{"question_id": 1, "text": "Ein “Hügel”."}, {"question_id": 0, "text": "x"}]
    assert made("mmvet", rows) == {"v1_1": "Ein “Hügel”.", "v1_0": "x"}


def test_mmbench_is_a_table(here):
    rows = [{"question_id": "0", "text": "A"}, {"question_id": "1000001", "text": "=1+1\x07"}]
    head, *lines = sheet(TASKS["mmbench"].submission.make(files_of("mmbench"), rows))
    assert head == ("index", "question", "A", "B", "C", "D", "prediction", "answer")
    assert lines[0] == (0, "What is 0?", "red", "blue", None, None, "A", "A")
    assert lines[1][:1] + lines[1][6:] == (1_000_000, None, "B")
    assert lines[3] == (1_000_001, "What is 1?", "down", "up", None, None, "=1+1", "A")


def test_texts_of_a_table_stay_texts():
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(to_xlsx([{"a": "=1", "b": "#N/A", "c": 3, "d": ""}])))
    assert [cell.data_type for cell in book.active[2]] == ["s", "s", "n", "n"]
    assert [cell.value for cell in book.active[2]] == ["=1", "#N/A", 3, None]


@pytest.mark.parametrize("name", benchmark_files.UNSCORED)
def test_a_run_without_scores(here, checkpoint, name, capsys):
    command = [name, checkpoint, "--budgets", "full,20", *OPTIONS]
    assert run.main(command) == 0
    out, err = capsys.readouterr()
    assert TASKS[name].elsewhere in err
    for path in sorted((Path("playground/results") / name).glob("*/*.jsonl")):
        result = json.loads(path.with_name(f"{path.name}.result.json").read_text())
        assert result["scores"] is None
        assert result["answered"] == result["questions"] == 3
        assert result["tokens_per_image"]["mean"] in (20, 576)
        assert result["timing"]["seconds"] > 0
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if name == "llava_bench":  # its judge takes the answers as they are
            assert result["submission"] is None
        else:
            assert Path(result["submission"]).name == f"{path.name}.submission.json"
            assert result["submission"] in out
            assert json.loads(Path(result["submission"]).read_text()) == made(name, rows)
    assert len(rows) == 3


def test_free_answers_may_be_long():
    assert {TASKS[name].max_new_tokens for name in ("mmvet", "llava_bench")} == {1024}


def test_only_a_whole_run_has_a_submission(here, checkpoint, monkeypatch, capsys):
    command = ["mmbench", checkpoint, *OPTIONS]
    (path,) = (here / "playground/results/mmbench" / Path(checkpoint).name / "full.jsonl.submission.xlsx",)
    assert run.main([*command, "--limit", "4"]) == 0
    assert not list(path.parent.glob("*submission*"))

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openpyxl", None)
        assert run.main(command) == 0
    assert "pip install openpyxl" in capsys.readouterr().err
    assert not path.exists()
    assert run.main(command) == 0  # nothing is asked again
    out, err = capsys.readouterr()
    assert f"full: submission in {path.relative_to(here)}" in out
    assert "4 of 4 questions are answered already" in err
    rows = [json.loads(line) for line in path.with_name("full.jsonl").read_text().splitlines()]
    assert [line[6] for line in sheet(path.read_bytes())[1:]] == [row["text"] or None for row in rows]

    from llava.eval import benchmark

    def refuse(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "answer_and_merge", refuse)
    assert run.main([*command, "--overwrite"]) == 130
    assert not path.exists()  # it went with the answers that it was made of


def test_a_run_whose_submission_cannot_be_made_has_failed(here, checkpoint, monkeypatch, capsys):
    """For VQAv2's test set there is nothing else to be had; MMBench has scores too."""
    (picture,) = (here / "playground/data/eval/vizwiz/test").glob("*2.jpg")
    picture.write_text("not an image")
    assert run.main(["vizwiz_test", checkpoint, "--skip-bad", *OPTIONS]) == 1
    said = capsys.readouterr().err
    assert "no submission, which needs the answers to all questions" in said
    assert "server" not in said
    assert run.main(["vizwiz_test", checkpoint, "--limit", "2", *OPTIONS]) == 0  # a trial
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert run.main(["mmbench", checkpoint, *OPTIONS]) == 0
    assert TASKS["mmbench"].elsewhere not in capsys.readouterr().err


def test_the_whole_test_set_of_vqav2_is_asked_for(here, checkpoint, capsys):
    (here / "playground/data/eval/vqav2/llava_vqav2_mscoco_test2015.jsonl").unlink()
    assert run.main(["vqav2_test", checkpoint, *OPTIONS]) == 2
    assert (
        "vqav2_test needs files that are not there: playground/data/eval/vqav2/llava_vqav2_mscoco_test2015.jsonl. F"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("name", "moves", "folders"),
    [
        ("mmvet", [], ["mm-vet"] * 3),
        ("mmvet", [("mm-vet", "mmvet")], ["mmvet"] * 3),
        ("mmvet", [("mm-vet/images", "mmvet/mm-vet/images")], ["mm-vet", "mmvet/mm-vet", "mm-vet"]),
        ("mmvet", [("mm-vet", "elsewhere")], ["mm-vet"] * 3),
        ("mmbench_cn", [("mmbench", "mmbench_cn")], ["mmbench_cn"] * 3),  # images too, which are not there yet
        ("gqa", [("gqa/data", "gqa-data"), ("gqa-data/images", "gqa/images")], ["gqa", "gqa", "gqa/data"]),
    ],
)
def test_both_spellings_of_a_folder(here, name, moves, folders):
    root = Path("playground/data/eval")
    benchmark_files.make_gqa(root)
    for source, target in moves:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)
    assert [path.parent for _, path in files_of(name).parts()] == [root / folder for folder in folders]
