"""ChartQA from its native files and from the hub to scores."""

from pathlib import Path

import pytest
from benchmark_files import picture, stored_picture, write, write_data_set

from llava.eval.hub.fetch import fetch
from llava.eval.tasks import TASKS
from llava.eval.tasks.chartqa import matches

TASK = TASKS["chartqa"]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("14", "14", True),
        ("105", "100", True),
        ("106", "100", False),
        ("-95", "-100", True),
        ("50%", "0.5", True),
        ("50%", "50", False),
        ("0", "0", True),
        ("0.0", "0", False),  # no share of nothing: texts are compared
        ("Yes ", "yes", True),
        ("Yes.", "yes", False),
        ("1,000", "1000", False),
    ],
)
def test_numbers_may_be_off_by_a_twentieth(answer, reference, right):
    assert matches(answer, reference) == right


@pytest.fixture
def native(tmp_path):
    """Two questions by people about one chart, one by a machine about another."""
    root = tmp_path / "data/eval/chartqa/test"
    for number, name in enumerate(("a.png", "b.png")):
        picture(root / "png" / name, number)
    asked = [("a.png", "How many?", "14"), ("a.png", "Which is larger?", "Red")]
    write(root / "test_human.json", [dict(zip(("imgname", "query", "label"), one, strict=True)) for one in asked])
    write(root / "test_augmented.json", [{"imgname": "b.png", "query": "What is 2010?", "label": 33.5}])
    return TASK.data.below(tmp_path)


def answers(questions, texts) -> list[dict]:
    return [{"question_id": q.question_id, "prompt": q.text, "text": t} for q, t in zip(questions, texts, strict=True)]


def test_native_files(native):
    questions = TASK.read(native.question_file, None)
    assert [q.images for q in questions] == [("a.png",), ("a.png",), ("b.png",)]
    assert TASK.prompt_suffix == "\nAnswer the question with a single word."
    assert not native.missing()
    right = answers(questions, ["14.5", "red", "33"])
    assert TASK.metric(native, right) == {"accuracy": 100, "human": 100, "augmented": 100}
    half = answers(questions, ["20", "red", "33"])
    assert TASK.metric(native, half) == {"accuracy": pytest.approx(200 / 3), "human": 50, "augmented": 100}
    assert TASK.metric(native, right[2:]) == {"accuracy": 100, "augmented": 100}
    with pytest.raises(ValueError, match=r"1 of 1 questions are none of the 3 in test_human.json"):
        TASK.metric(native, [{"question_id": "human-9", "prompt": "?", "text": ""}])


def test_other_files_are_named(native):
    write(native.answers, {"questions": []})
    with pytest.raises(ValueError, match=r"test_augmented.json: no list of questions, as ChartQA's files are"):
        TASK.read(native.question_file, None)


def test_from_the_hub(tmp_path):
    pytest.importorskip("datasets")
    kinds = (("human_test", "How many?", "3"), ("human_test", "Which?", "red"), ("augmented_test", "What?", "12"))
    rows = [
        {"type": kind, "question": question, "answer": answer, "image": stored_picture(number // 2, "PNG")}
        for number, (kind, question, answer) in enumerate(kinds)
    ]
    data = TASK.data.below(tmp_path)
    written = fetch(TASK, data, str(write_data_set(TASK.source, [rows], Path(tmp_path, "set"))))
    assert {path.name for path in written} == {"test_human.json", "test_augmented.json"}
    questions = TASK.read(data.question_file, None)
    assert [q.text for q in questions] == ["How many?", "Which?", "What?"]
    assert questions[0].images == questions[1].images != questions[2].images  # one chart is one file
    assert not data.missing()
    assert TASK.metric(data, answers(questions, ["3", "Red", "12"]))["accuracy"] == 100
    assert fetch(TASK, data, "not/looked-at") == []
