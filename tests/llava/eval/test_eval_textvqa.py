import json
import logging
import re
from pathlib import Path

import pytest

from llava.eval import eval_textvqa

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/json/textvqa_eval_single.json").read_text())


@pytest.fixture
def annotation(tmp_path):
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps(GOLDEN["annotations"]))
    return path


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers" / "r.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in GOLDEN["results"]))
    return path


def run(annotation, **flags):
    flags = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return eval_textvqa.main(["--annotation-file", str(annotation), *flags])


@pytest.fixture
def refused(capsys):
    """Runs what must be refused, and returns what is said."""

    def check(annotation, **flags) -> str:
        assert run(annotation, **flags) == 2
        return capsys.readouterr().err

    return check


def test_prints_the_golden_output(annotation, answers, capsys):
    assert run(annotation, result_file=answers) == 0
    assert capsys.readouterr().out == GOLDEN["stdout"]


def test_scores_every_file_of_a_folder(annotation, answers, capsys):
    (answers.parent / "a.jsonl").write_bytes(answers.read_bytes())
    (answers.parent / "notes.txt").write_text("not an answer file")
    run(annotation, result_dir=answers.parent)
    assert capsys.readouterr().out == GOLDEN["stdout"].replace("r\n", "a\n", 1) + GOLDEN["stdout"]


def test_left_out_and_repeated_questions_are_told(annotation, caplog):
    rows = GOLDEN["results"]
    wrong = {**rows[1], "text": "something else"}
    with caplog.at_level(logging.WARNING):
        result = eval_textvqa.evaluate(annotation, [rows[0], wrong, wrong])
    assert result.samples == 3
    assert result.unanswered == 5
    assert result.accuracy == pytest.approx(1 / 3)
    assert "1 answers repeat" in caplog.text
    assert "5 of 7 questions are not answered" in caplog.text


def test_unknown_pairs_are_told(annotation):
    row = GOLDEN["results"][0]
    other_image, other_question = {**row, "question_id": "nope"}, {**row, "prompt": "Why?\nshort"}
    with pytest.raises(ValueError, match=r"lacks 2 of the 3 .*'nope'.*no such image"):
        eval_textvqa.evaluate(annotation, [row, other_image, other_question])
    with pytest.raises(ValueError, match=r"lacks 1 of the 1 .*'why\?'.*other questions about this image"):
        eval_textvqa.evaluate(annotation, [other_question])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": "img0"\n', "line 1"),
        ("", "no answers"),
        (
            '\n{"question_id": "img0", "text": "x"}\n',
            "line 2: no 'prompt'; an answer needs question_id, prompt and text",
        ),
        ('{"prompt": "a", "text": "x"}\n', "line 1: no 'question_id'"),
        ('{"question_id": ["img0"], "prompt": "a", "text": "x"}\n', r"line 1: question_id is \['img0'\]"),
        ('{"question_id": "img0", "prompt": "odd", "text": "x"}\n', "No question found"),
    ],
)
def test_a_broken_answer_file_is_named(annotation, tmp_path, refused, content, message):
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    assert re.search(rf"broken.jsonl.*{message}", refused(annotation, result_file=path))


def test_missing_files_are_named(annotation, answers, tmp_path, refused):
    assert f"{tmp_path}/nowhere.jsonl: cannot be read" in refused(annotation, result_file=tmp_path / "nowhere.jsonl")
    assert f"{tmp_path}/nowhere.json: cannot be read" in refused(tmp_path / "nowhere.json", result_file=answers)
    assert "no *.jsonl file" in refused(annotation, result_dir=tmp_path)
    with pytest.raises(SystemExit) as refusal:
        run(annotation)
    assert refusal.value.code == 2


ENTRY = {"image_id": 1, "question": "q", "answers": ["a"] * 10}


@pytest.mark.parametrize(
    "content",
    [[], *({"data": [entry]} for entry in (
        {"question": "q"}, {"image_id": 1, "question": "q"}, {**ENTRY, "image_id": [1]}, {**ENTRY, "question": None},
        {**ENTRY, "answers": None}, {**ENTRY, "answers": 10}, {**ENTRY, "answers": [1] * 10}))],
)  # fmt: skip
def test_a_file_that_is_no_annotation_is_named(answers, tmp_path, refused, content):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    assert "other.json is no TextVQA annotation" in refused(path, result_file=answers)
