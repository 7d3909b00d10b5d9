import hashlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest

from llava.eval.answers import AnswerFile, describe_settings
from llava.eval.questions import Question, read_questions
from llava.utils.distributed import process_group
from llava.utils.processes import Shard, current_shard

QUESTIONS = [Question(row, f"image{row // 3}", (f"{row // 3}.jpg",), f"question {row}", row + 1) for row in range(10)]
SETTINGS = {"checkpoint": "a", "budget": 64}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.jsonl"


def fill(answers, rows=None, text="yes"):
    chosen = [question for question in answers.todo if rows is None or question.row in rows]
    answers.append(chosen, [f"{text} {question.row}" for question in chosen], [7] * len(chosen))


def in_processes(count, work):
    """`work(shard)` in processes that can talk, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(shard):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": shard.index, "WORLD_SIZE": shard.count}
        os.environ.update({name: str(value) for name, value in where.items()})
        with process_group(shard):
            work(shard)

    context = multiprocessing.get_context("fork")  # torch is imported already
    members = [context.Process(target=member, args=(Shard(index, count),)) for index in range(count)]
    for process in members:
        process.start()
    return members


def exit_codes(members):
    for process in members:
        process.join()
    codes = [process.exitcode for process in members]
    for process in members:
        process.kill()
    return codes


def rows_in(path):
    return [json.loads(line)["metadata"]["row"] for line in path.read_text().splitlines()]


def test_finished_file_is_in_the_order_of_the_questions(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    for row in (5, 2, 9, 0, 1, 3, 4, 8, 7, 6):
        fill(answers, [row])
    assert rows_in(path) == [5, 2, 9, 0, 1, 3, 4, 8, 7, 6]
    assert answers.finish()
    assert len(answers.rows) == len(QUESTIONS)
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the clock of answers shows: `clock[0] += 5`."""
    now = [100.0]
    monkeypatch.setattr("llava.eval.answers.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_seconds_add_up_over_all_starts(path, clock):
    for rows, seconds in (([0, 1], 5), ([2], 3), (None, 2)):
        answers = AnswerFile(path, QUESTIONS, SETTINGS)
        clock[0] += 50  # loading the model takes no time of answers
        answers.begin()
        clock[0] += seconds
        fill(answers, rows)
        clock[0] += 0 if rows is None else 7  # what is not on disk when the run is killed is lost
        answers.close()
    assert answers.spent() == (10, 0)
    answers.finish()
    assert not answers.time.exists()


def test_seconds_of_a_finished_run_are_in_its_result(path, clock):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, [0, 1, 2])
    answers.finish()  # others could not be answered
    answers.result.write_text(json.dumps({"timing": {"seconds": 4.5, "questions": 10}}))
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    answers.begin()
    clock[0] += 2
    assert answers.spent() == (6.5, 0)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"timing": null}', '{"timing": {"seconds": 1}}'])
def test_answers_of_unknown_seconds_are_not_counted(path, clock, content):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, [0, 1, 2])
    answers.finish()
    if content:
        answers.result.write_text(content)
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    answers.begin()
    clock[0] += 2
    fill(answers, [3])
    answers.close()
    assert AnswerFile(path, QUESTIONS, SETTINGS).spent() == (2, 3)


def test_seconds_go_with_the_answers(path, clock):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    answers.begin()
    clock[0] += 9
    fill(answers, [0])
    answers.close()
    assert AnswerFile(path, QUESTIONS, SETTINGS, overwrite=True).spent() == (0, 0)


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


def test_a_full_disk_keeps_what_is_written(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, rows=range(4))
    disk = answers.file
    with open("/dev/full", "ab", buffering=0) as answers.file, pytest.raises(ValueError, match=r"No space left.*kept"):
        fill(answers, rows=range(4, 8))
    answers.file = disk
    answers.close()
    assert AnswerFile(path, QUESTIONS, SETTINGS).resumed == 4


def test_a_doubled_row_counts_once_and_the_first_stays(path):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers, text="first")
    answers.append(QUESTIONS[:1], ["second"], [7])
    answers.close()
    again = AnswerFile(path, QUESTIONS, SETTINGS)
    assert len(again.rows) == len(QUESTIONS)
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


def test_a_refused_run_changes_nothing(path):
    """Neither the settings nor the answers of the run that is still going on, not even with overwrite."""
    running = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(running, rows=range(3))
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="Another process is writing"):
            AnswerFile(path, QUESTIONS, {**SETTINGS, "budget": 7}, overwrite=overwrite)
        with pytest.raises(ValueError, match="Another process is writing"):
            AnswerFile(path, QUESTIONS, SETTINGS, overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    running.close()
    assert AnswerFile(path, QUESTIONS, SETTINGS).resumed == 3


def test_what_is_no_regular_file_is_refused_and_a_link_stays_one(tmp_path):
    with pytest.raises(ValueError, match="/dev/null is no regular file"):
        AnswerFile("/dev/null", QUESTIONS, SETTINGS)
    link, target = tmp_path / "link.jsonl", tmp_path / "elsewhere" / "answers.jsonl"
    target.parent.mkdir()
    target.touch()
    link.symlink_to(target)
    answers = AnswerFile(link, QUESTIONS, SETTINGS)
    fill(answers)
    assert answers.finish()
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 10


def test_two_writers_are_refused(path):
    first = AnswerFile(path, QUESTIONS, SETTINGS)
    with pytest.raises(ValueError, match="Another process is writing"):
        AnswerFile(path, QUESTIONS, SETTINGS)
    first.finish()


def test_processes_share_the_questions_and_the_first_merges(path):
    parts = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]

    def work(shard):
        answers = AnswerFile(path, QUESTIONS, SETTINGS, shard=shard)
        assert [question.row for question in answers.todo] == parts[shard.index]
        fill(answers)
        assert not path.exists()
        assert answers.finish() == (shard.index == 0)
        assert len(answers.rows) == len(QUESTIONS) or shard.index > 0

    assert exit_codes(in_processes(3, work)) == [0, 0, 0]
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


def test_the_first_process_waits_for_the_others_and_hears_of_failures(path):
    def work(shard):
        answers = AnswerFile(path, QUESTIONS, SETTINGS, shard=shard)
        if shard.index == 0:
            fill(answers, [0, 1, 2, 3, 5])
            answers.refuse(QUESTIONS[4], "no image")
            assert answers.finish()
            refused = [(refusal.question.row, refusal.reason) for refusal in answers.refused]
            assert refused == [(4, "no image"), (9, "broken image")]
        else:
            time.sleep(0.3)
            answers.refuse(QUESTIONS[9], "broken image")
            fill(answers, [6, 7, 8])
            assert not answers.finish()

    assert exit_codes(in_processes(2, work)) == [0, 0]
    assert rows_in(path) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_process_that_ends_early_is_noticed(path):
    def work(shard):
        answers = AnswerFile(path, QUESTIONS, SETTINGS, shard=shard)
        fill(answers)
        if shard.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(ValueError, match="Another process of this run has ended"):
            answers.finish()

    assert exit_codes(in_processes(2, work)) == [0, -signal.SIGKILL]
    alone = AnswerFile(path, QUESTIONS, SETTINGS)
    assert len(alone.rows) == len(alone.questions)
    assert alone.finish()
    assert rows_in(path) == list(range(10))


def test_other_settings_are_refused_in_every_process(path):
    alone, changed = AnswerFile(path, QUESTIONS, SETTINGS), {**SETTINGS, "budget": 128}
    fill(alone, [0])
    alone.close()

    def refused(shard):
        with pytest.raises(ValueError, match="made with other settings"):
            AnswerFile(path, QUESTIONS, changed, shard=shard)

    def overwriting(shard):
        assert AnswerFile(path, QUESTIONS, changed, shard=shard, overwrite=True).finish() == (shard.index == 0)

    assert exit_codes(in_processes(2, refused)) == [0, 0]
    assert rows_in(path) == [0]
    assert exit_codes(in_processes(2, overwriting)) == [0, 0]
    assert rows_in(path) == []


def test_no_process_of_a_refused_run_touches_anything(path):
    running = AnswerFile(path, QUESTIONS, SETTINGS)  # has no answer yet: only the lock tells that it is there
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def refused(shard):
        for settings in (SETTINGS, {**SETTINGS, "budget": 128}):
            with pytest.raises(ValueError, match="Another process is writing"):
                AnswerFile(path, QUESTIONS, settings, shard=shard, overwrite=True)

    assert exit_codes(in_processes(2, refused)) == [0, 0]
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    running.close()


def test_resumes_with_another_number_of_processes(path):
    def two(shard):
        fill(AnswerFile(path, QUESTIONS, SETTINGS, shard=shard), [0, 1, 7])

    def three(shard):
        answers = AnswerFile(path, QUESTIONS, SETTINGS, shard=shard)
        assert [question.row for question in answers.todo] == [[2], [3, 4, 5], [6, 8, 9]][shard.index]  # whole images
        fill(answers, [4])

    assert exit_codes(in_processes(2, two)) == [0, 0]
    assert exit_codes(in_processes(3, three)) == [0, 0, 0]
    alone = AnswerFile(path, QUESTIONS, SETTINGS)
    assert [question.row for question in alone.todo] == [2, 3, 5, 6, 8, 9]
    fill(alone)
    assert alone.finish()
    assert rows_in(path) == list(range(10))
    assert sorted(file.name for file in path.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.meta.json"]


def test_killed_at_any_moment_nothing_is_lost_or_doubled(path):
    """Runs of two or three processes, all killed after an answer or a few; every one that was on disk then stays."""

    def work(shard):
        answers = AnswerFile(path, QUESTIONS, SETTINGS, shard=shard)
        for question in answers.todo:
            time.sleep(0.02)  # so that the kill comes in between
            fill(answers, [question.row], text=f"process {shard.index} of {shard.count}")
        answers.finish()

    def answered() -> int:
        return sum(file.read_bytes().count(b"\n") for file in path.parent.glob("*.jsonl*part*"))

    seen = {}
    for count, more in ((3, 2), (2, 0), (3, 1), (2, 3)):
        members, before = in_processes(count, work), answered()
        while answered() < before + more and any(process.is_alive() for process in members):
            time.sleep(0.001)
        for process in members:
            process.kill()
        exit_codes(members)
        if path.exists() or answered():
            on_disk = AnswerFile(path, QUESTIONS, SETTINGS)
            on_disk.close()
            assert seen.items() <= {row: answer["answer_id"] for row, answer in on_disk.rows.items()}.items()
            seen = {row: answer["answer_id"] for row, answer in on_disk.rows.items()}
    assert seen
    assert exit_codes(in_processes(3, work)) == [0, 0, 0]
    assert rows_in(path) == list(range(10))
    final = {json.loads(line)["answer_id"] for line in path.read_text().splitlines()}
    assert set(seen.values()) <= final


def test_processes_that_cannot_talk_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(ValueError, match=r"WORLD_SIZE=2 is set without MASTER_ADDR: .* torchrun"),
        process_group(Shard(0, 2)),
    ):
        pass


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
    assert read_questions(file) == [Question(0, 1, ("a",), "b\u2028c", 1), Question(1, "x", ("a",), "d", 3)]
    assert len(read_questions(file, limit=1)) == 1


def test_answers_belong_to_the_images_that_were_shown(tmp_path):
    def asked(*images):
        return describe_settings("a", None, "b", [Question(0, 7, images, "why?", 1)], tmp_path)["questions"]

    for images, written in (((), '[[7, null, "why?"]]'), (("x.jpg",), '[[7, "x.jpg", "why?"]]')):
        assert asked(*images) == f"1, sha256 {hashlib.sha256(written.encode()).hexdigest()[:16]}"
    assert len({asked(), asked("x"), asked("y"), asked("x", "y"), asked("y", "x")}) == 5


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_overwrite_spares_what_no_run_has_written(path, link):
    """A question file, say, under whatever name."""
    path.parent.mkdir()
    precious = path.with_name("questions.jsonl") if link else path
    precious.write_text("{}\n")
    if link:
        getattr(path, link)(precious)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="it may be anything: not even --overwrite"):
            AnswerFile(path, QUESTIONS, SETTINGS, overwrite=overwrite)
    assert precious.read_text() == "{}\n"


@pytest.mark.parametrize("content", ["", "[1]", "3", '{"checkp'])
def test_damaged_settings_say_what_to_do(path, content):
    answers = AnswerFile(path, QUESTIONS, SETTINGS)
    fill(answers)
    answers.finish()
    answers.meta.write_text(content)
    with pytest.raises(ValueError, match=r"meta.json, which says how .* is damaged. Choose .*, or --overwrite"):
        AnswerFile(path, QUESTIONS, SETTINGS)
    assert len(AnswerFile(path, QUESTIONS, SETTINGS, overwrite=True).todo) == 10
