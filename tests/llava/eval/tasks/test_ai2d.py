"""AI2D from its file and from the hub to scores."""

import pytest
from benchmark_files import picture, stored_picture, write, write_data_set

from llava.eval.hub.fetch import fetch
from llava.eval.tasks import TASKS

TASK = TASKS["ai2d"]
OPTIONS = ["root", "stem", "leaf", "seed"]


def answers(questions, texts) -> list[dict]:
    return [{"question_id": q.question_id, "prompt": q.text, "text": t} for q, t in zip(questions, texts, strict=True)]


def test_from_its_file(tmp_path):
    data = TASK.data.below(tmp_path)
    rows = []
    for number, right in enumerate((2, 0)):
        picture(data.image_folder / f"{number}.png", number)
        row = {"id": number, "image": f"{number}.png", "question": "What is T?", "options": OPTIONS, "answer": right}
        rows.append(row)
    write(data.question_file, rows)
    questions = TASK.read(data.question_file, None)
    asked = "What is T?\nA. root\nB. stem\nC. leaf\nD. seed"
    assert [question.text for question in questions] == [asked, asked]
    assert TASK.prompt_suffix == "\nAnswer with the option's letter from the given choices directly."
    assert not data.missing()
    assert TASK.metric(data, answers(questions, ["C", "a."])) == {"accuracy": 100}
    assert TASK.metric(data, answers(questions, ["C. leaf", " (A)"])) == {"accuracy": 100}
    assert TASK.metric(data, answers(questions, ["c. leaf", "The answer is A."])) == {"accuracy": 0}  # so lmms-eval
    assert TASK.metric(data, answers(questions[:1], ["leaf"])) == {"accuracy": 0}
    with pytest.raises(ValueError, match=r"1 of 1 questions are none of the 2 in test.jsonl"):
        TASK.metric(data, [{"question_id": 7, "prompt": "?", "text": "A"}])


def test_a_row_of_something_else_is_named(tmp_path):
    data = TASK.data.below(tmp_path)
    write(data.question_file, [{"id": 0, "question": "What?", "answer": 1, "image": "0.png"}])
    with pytest.raises(ValueError, match=r"entry 1 is not as in the benchmark's own file: KeyError.'options'."):
        TASK.read(data.question_file, None)


def test_from_the_hub(tmp_path):
    pytest.importorskip("datasets")
    rows = [
        {"question": f"What is {n}?", "options": OPTIONS, "answer": str(n), "image": stored_picture(n // 2, "PNG")}
        for n in range(3)
    ]
    data = TASK.data.below(tmp_path)
    assert len(fetch(TASK, data, str(write_data_set(TASK.source, [rows], tmp_path / "set")))) == 1
    questions = TASK.read(data.question_file, None)
    assert questions[0].images == questions[1].images != questions[2].images  # one diagram is one file
    assert TASK.metric(data, answers(questions, ["A", "b", "C."])) == {"accuracy": 100}
    assert fetch(TASK, data, "not/looked-at") == []
