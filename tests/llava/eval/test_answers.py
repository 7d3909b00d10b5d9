import json
import logging
import threading

import pytest

from llava.eval import answers as module
from llava.eval.answers import AnswerFile, Question, Shard, current_shard, read_questions

QUESTIONS = [Question(row, f"image{row // 3}", f"{row // 3}.jpg", f"question {row}", row + 1) for row in range(10)]
SETTINGS = {"checkpoint": "a", "budget": 64}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.jsonl"


def fill(answers, rows=None, text="yes"):
    chosen = [question for question in answers.todo if rows is None or question.row in rows]
    answers.append(chosen, [f"{text} {question.row}" for question in chosen], [7] * len(chosen))


def rows_in(path):
    return [json.loads(line)["metadata"]["row"] for line in path.read_text().splitlines()]


def test_finished_file_is_in_the_order_of_the_questions(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    for row in (5, 2, 9, 0, 1, 3, 4, 8, 7, 6):
        fill(answers, [row])
    assert rows_in(path) == [5, 2, 9, 0, 1, 3, 4, 8, 7, 6]
    assert answers.finish()
    assert answers.complete
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


def test_resumes_after_a_kill_in_the_middle_of_a_line(path, caplog):
    fill(AnswerFile(path, QUESTIONS, SETTINGS), [0, 1, 2, 5])
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, len(last) // 2, len(last) - 1):  # the last loses only its line break
        path.write_bytes(whole[:-cut])
        with caplog.at_level(logging.WARNING):
            answers = AnswerFile(path, QUESTIONS, SETTINGS)
        assert "unfinished last line" in caplog.text
        assert (answers.resumed, [question.row for question in answers.todo]) == (3, [3, 4, 5, 6, 7, 8, 9])
        assert path.read_bytes() == whole[: -len(last)]
        answers.close()
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers)
    answers.finish()
    assert rows_in(path) == list(range(10))


def test_a_doubled_row_counts_once_and_the_first_stays(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, text="first")
    answers.append(QUESTIONS[:1], ["second"], [7])
    answers.close()
    again = AnswerFile(path, QUESTIONS, SETTINGS)
    assert again.complete
    assert again.todo == []
    again.finish()
    assert rows_in(path) == list(range(10))
    assert json.loads(path.read_text().splitlines()[0])["text"] == "first 0"


def test_other_settings_are_refused_by_name(path):
    fill(AnswerFile(path, QUESTIONS, SETTINGS), [0])
    with pytest.raises(ValueError, match=r"budget: 64 then, 128 now.*--overwrite"):
        AnswerFile(path, QUESTIONS, {**SETTINGS, "budget": 128})
    answers = AnswerFile(path, QUESTIONS, {**SETTINGS, "budget": 128}, overwrite=True)
    assert len(answers.todo) == 10
    assert json.loads(answers.meta.read_text())["budget"] == 128


def test_settings_may_change_while_nothing_is_answered(path):
    AnswerFile(path, QUESTIONS, SETTINGS)
    answers = AnswerFile(path, QUESTIONS, {**SETTINGS, "budget": 128})
    assert json.loads(answers.meta.read_text())["budget"] == 128


def test_answers_of_unknown_origin_are_refused(path):
    path.parent.mkdir()
    path.write_text('{"question_id": "image0", "prompt": "question 0", "text": "yes"}\n')
    with pytest.raises(ValueError, match=r"exists without answers\.jsonl\.meta\.json"):
        AnswerFile(path, QUESTIONS, SETTINGS)
    assert path.exists()


def test_answers_to_other_questions_are_refused(path):
    fill(AnswerFile(path, QUESTIONS, SETTINGS), [0, 1])
    swapped = [QUESTIONS[0], QUESTIONS[1]._replace(text="another"), *QUESTIONS[2:]]
    with pytest.raises(ValueError, match=r"line 2: answers a question that is not row 1"):
        AnswerFile(path, swapped, SETTINGS)


def test_a_broken_line_inside_is_named(path):
    fill(AnswerFile(path, QUESTIONS, SETTINGS))
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"answers.jsonl, line 4: not JSON"):
        AnswerFile(path, QUESTIONS, SETTINGS)


def test_two_writers_are_refused(path):
    first = AnswerFile(path, QUESTIONS, SETTINGS)
    with pytest.raises(ValueError, match="Another process is writing"):
        AnswerFile(path, QUESTIONS, SETTINGS)
    first.finish()


def test_shards_cover_all_questions_and_the_first_merges(path):
    shards = [AnswerFile(path, QUESTIONS, SETTINGS, shard=Shard(index, 3)) for index in range(3)]
    assert [[question.row for question in shard.todo] for shard in shards] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    for shard in shards:
        fill(shard)
    shards[1].refuse(QUESTIONS[3], "not used: it has an answer")
    assert [shards[2].finish(), shards[1].finish()] == [False, False]
    assert not path.exists()
    assert shards[0].finish()
    assert shards[0].complete
    assert shards[0].refused == []
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


def test_the_first_shard_waits_for_the_others(path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    first, second = (AnswerFile(path, QUESTIONS, SETTINGS, shard=Shard(index, 2)) for index in range(2))
    fill(first)
    fill(second, [5, 6])

    def later():
        fill(second, [7, 8])
        second.refuse(QUESTIONS[9], "broken image")
        second.finish()

    timer = threading.Timer(0.2, later)
    timer.start()
    assert first.finish(timeout=20)
    timer.join()
    assert not first.complete
    assert [(refusal.question.row, refusal.reason) for refusal in first.refused] == [(9, "broken image")]
    assert rows_in(path) == list(range(9))


def test_a_shard_that_never_ends_is_named(path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    first = AnswerFile(path, QUESTIONS, SETTINGS, shard=Shard(0, 2))
    fill(first)
    with pytest.raises(ValueError, match="Process 1 of 2 has not finished"):
        first.finish(timeout=0.05)
    assert rows_in(first.own) == [0, 1, 2, 3, 4]


def test_resumes_with_another_number_of_processes(path):
    for index in range(2):
        fill(AnswerFile(path, QUESTIONS, SETTINGS, shard=Shard(index, 2)), [0, 1, 7])
    three = [AnswerFile(path, QUESTIONS, SETTINGS, shard=Shard(index, 3)) for index in range(3)]
    assert [[question.row for question in shard.todo] for shard in three] == [[2], [3, 4, 5], [6, 8, 9]]
    fill(three[1], [4])
    alone = AnswerFile(path, QUESTIONS, SETTINGS)
    assert [question.row for question in alone.todo] == [2, 3, 5, 6, 8, 9]
    fill(alone)
    assert alone.finish()
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


def test_a_refused_question_is_asked_again(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, range(9))
    answers.refuse(QUESTIONS[9], "broken image")
    assert answers.finish()
    assert [question.row for question in AnswerFile(path, QUESTIONS, SETTINGS).todo] == [9]


def test_overwrite_starts_again(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers)
    answers.finish()
    answers.result.write_text("{}")
    again = AnswerFile(path, QUESTIONS, SETTINGS, overwrite=True)
    assert len(again.todo) == 10
    assert not again.result.exists()


def test_current_shard_follows_the_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current_shard() == Shard(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert current_shard() == Shard(2, 4)


def test_questions_keep_their_place(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"question_id": 1, "image": "a", "text": "b\u2028c"}\n\n{"question_id": "x", "image": "a", "text": "d"}'
    )
    assert read_questions(file) == [Question(0, 1, "a", "b\u2028c", 1), Question(1, "x", "a", "d", 3)]
    assert len(read_questions(file, limit=1)) == 1
