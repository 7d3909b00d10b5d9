"""Grading free answers, with an endpoint on this machine."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import benchmark_files
import pytest

from llava.eval import data, judge, report, run
from llava.eval.judging import endpoint, grade
from llava.eval.metrics import judged
from llava.eval.rows import read_results
from llava.eval.tasks import mmvet

ROOT = Path(__file__).parents[3]
TABLE = "Grade it.\n\nQuestion | Truth\n--- | ---\n"
RULES = {
    f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"Rate {kind}."} for kind in ("conv", "detail", "complex")
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Both benchmarks with what their judges are asked, and answers to them with a result, as a run leaves them."""
    monkeypatch.setattr(judge, "Judge", partial(endpoint.Judge, wait=0.001))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "playground/data/eval"
    benchmark_files.make_mmvet(root)
    benchmark_files.make_llava_bench(root)
    (root / "mm-vet/mm-vet_evaluator.py").write_text(f"import openai\nprompt = {TABLE!r}\nprint(prompt)\n")
    (root / "llava-bench-in-the-wild/rule.json").write_text(json.dumps(RULES))
    for task in judge.JUDGED:
        rows = [{"question_id": number, "prompt": "", "text": f"answer {number}"} for number in range(3)]
        benchmark_files.write(tmp_path / task / "full.jsonl", rows)
        result = {
            "budget": "full",
            "scores": None,
            "questions": 3,
            "answered": 3,
            "tokens_per_image": {"mean": 576, "max": 576},
        }
        settings = {"task": task, "checkpoint": "a/llava"}
        benchmark_files.write(tmp_path / task / "full.jsonl.result.json", {**result, "settings": settings})
    return tmp_path


def command(task: str, server, *more: str, model: str = "gpt-4") -> list[str]:
    return [task, f"{task}/full.jsonl", "--base-url", server.url, "--model", model, *more]


def result_of(task: str) -> dict:
    return json.loads(Path(f"{task}/full.jsonl.result.json").read_text())


def kept(task: str, model: str = "gpt-4") -> list[dict]:
    return [json.loads(line) for line in Path(f"{task}/full.jsonl.graded-by-{model}.jsonl").read_text().splitlines()]


def by_answer(grades: dict[int, str]):
    """Replies by the number of the answer that a prompt is about."""
    return lambda prompt: next(reply for number, reply in grades.items() if f"answer {number}" in prompt)


def test_mmvet_by_hand(here, serve, capsys):
    server = serve(by_answer({0: "1.0", 1: "0.5", 2: "0.0"}))
    assert judge.main(command("mmvet", server)) == 0
    assert f"{TABLE}\nWhat about 1? | 1 <AND> 2 | answer 1 | " in server.prompts
    assert len(server.prompts) == 3
    scores = {"total": 50, "rec": 50, "ocr": 100, "gen": 0, "math": 50}
    assert result_of("mmvet")["scores"] == scores
    record = {"asked": "gpt-4", "answered": ["gpt-4-0613"], "runs": 1, "std": 0, "grades": 3, "unreadable": 0}
    assert result_of("mmvet")["judge"] == record
    assert result_of("mmvet")["budget"] == "full"
    assert "| mmvet/full.jsonl | gpt-4-0613 |  50.0 |" in capsys.readouterr().out


def test_several_runs_and_replies_without_a_grade(here, serve, capsys):
    """The first answer is called half right and right, the second right, and no grade of the third can be read."""
    halves = iter(["0.5", "1.0"])
    replies = {0: lambda: next(halves), 1: lambda: "1.0", 2: lambda: "It is"}
    server = serve(lambda prompt: by_answer(replies)(prompt)())
    assert judge.main(command("mmvet", server, "--runs", "2")) == 1
    again = [prompt for prompt in server.prompts if "answer 2" in prompt]
    assert len(again) == 10
    assert sum(prompt.endswith(judged.INSIST) for prompt in again) == 8
    assert result_of("mmvet")["scores"]["total"] == pytest.approx(58.3)  # (50 + 66.7) / 2
    record = result_of("mmvet")["judge"]
    assert (record["runs"], record["std"], record["unreadable"]) == (2, 8.3, 2)
    out, err = capsys.readouterr()
    assert " 3 of 3 |     2 of 6 |" in out
    assert "2 of 6 grades cannot be read and count as 0, as in" in err
    assert "The judge said, for instance, 'It is'." in err


@pytest.mark.parametrize("task", judge.JUDGED)
@pytest.mark.parametrize(
    "reply", ["I'm sorry.", "nan", "-1", "9.5", (200, '{"choices": [{"message": {"content": null}}]}')]
)
def test_a_judge_that_cannot_be_read_gives_no_score(here, serve, task, reply, capsys):
    before = result_of(task)
    server = serve(lambda _: reply)
    assert judge.main(command(task, server)) == 1
    out, err = capsys.readouterr()
    assert "| answers " in out
    assert "3 of 3 |" in out.splitlines()[-1]
    assert f"{task}/full.jsonl: none of the 3 grades can be read, so there is no score" in err
    assert f"for instance, {(reply if isinstance(reply, str) else '')!r}." in err
    assert result_of(task) == before


@pytest.mark.parametrize(("task", "readable"), [("mmvet", "1.0"), ("llava_bench", "8 8")])
def test_what_could_not_be_read_is_asked_again(here, serve, task, readable):
    server = serve(by_answer({0: readable, 1: "Well,", 2: readable}))
    assert judge.main(command(task, server)) == 1
    asked, server.reply = len(server.prompts), lambda _: readable
    assert judge.main(command(task, server)) == 0
    assert len(server.prompts) == asked + 1
    assert result_of(task)["judge"]["unreadable"] == 0
    assert set(result_of(task)["scores"].values()) == {100}
    assert judge.main(command(task, server)) == 0
    assert len(server.prompts) == asked + 1


def test_llava_bench_by_hand(here, serve):
    server = serve(by_answer({0: "8 6\nFine.", 1: "10,5", 2: "I cannot say."}))
    assert judge.main(command("llava_bench", server, model="org/judge")) == 1
    (asked,) = (prompt for prompt in server.prompts if "answer 0" in prompt)
    assert asked.startswith("[Context]\nPicture 001.\nTwo lines.\n\n[Question]\nWhat about 0?\n")
    assert asked.endswith("[System]\nRate conv.\n\n")
    assert result_of("llava_bench")["scores"] == {"all": 58.8, "complex": 100, "conv": 75, "detail": 50}
    assert result_of("llava_bench")["judge"]["unreadable"] == 1  # -1 and -1 in the means, as published
    assert result_of("llava_bench")["judge"]["answered"] == ["org/judge-0613"]
    rows = kept("llava_bench", "org-judge")
    assert {(row["question_id"], row["answer1_id"], *row["tuple"]) for row in rows} >= {
        (0, "r0", 8, 6),
        (1, "r1", 10, 5),
    }


def test_a_busy_endpoint_is_asked_again(here, serve):
    troubles = iter([(429, "slow down"), (500, "oops")])
    server = serve(lambda _: next(troubles, "1.0"))
    assert judge.main(command("mmvet", server, "--parallel", "1")) == 0
    assert len(server.prompts) == 5
    assert result_of("mmvet")["scores"]["total"] == 100


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, "<html>"), "answered no chat completion but '<html>'"),
        ((401, "no key"), "wants a key, and none was sent: HTTP 401: 'no key'"),
    ],
)
def test_what_was_graded_before_a_failure_is_not_asked_again(here, serve, reply, message, capsys, caplog):
    replies = iter(["1.0", "0.5", reply])
    server = serve(lambda _: next(replies, "0.0"))
    assert judge.main(command("mmvet", server, "--parallel", "1")) == 2
    assert message in capsys.readouterr().err
    assert f"2 of 3 grades are kept in {Path('mmvet/full.jsonl.graded-by-gpt-4.jsonl')}." in caplog.text
    assert result_of("mmvet")["scores"] is None
    with Path("mmvet/full.jsonl.graded-by-gpt-4.jsonl").open("a") as file:
        file.write('{"question_id": "v1_2", "sco')  # a kill in the middle of a line
    assert judge.main(command("mmvet", server)) == 0
    assert len(server.prompts) == 4
    assert judge.main(command("mmvet", server)) == 0
    assert len(server.prompts) == 4
    assert result_of("mmvet")["scores"]["total"] == 50
    assert len(kept("mmvet")) == 3


def test_ctrl_c_keeps_what_is_on_its_way(here, serve, monkeypatch, capsys):
    class Interrupted(grade.tqdm):
        def update(self, *_):
            raise KeyboardInterrupt

    server = serve(by_answer({0: "1.0", 1: "1.0", 2: "1.0"}))
    with monkeypatch.context() as patch:
        patch.setattr(grade, "tqdm", Interrupted)
        assert judge.main(command("mmvet", server, "--parallel", "1")) == 130
    assert capsys.readouterr().err.endswith("Stopped.\n")
    asked = len(server.prompts)
    assert 1 <= len(kept("mmvet")) == asked
    assert judge.main(command("mmvet", server)) == 0
    assert len(server.prompts) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_twice_leaves_a_server_that_hangs(here, serve):
    """The first answer is graded, to the others the server says nothing."""
    asked, over = threading.Semaphore(0), threading.Event()

    def reply(prompt):
        if "answer 0" not in prompt:
            asked.release()
            over.wait()
        return "1.0"

    server = serve(reply)
    arguments = [sys.executable, "-m", "llava.eval.judge", *command("mmvet", server)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(2):
            while not asked.acquire(timeout=1):
                assert process.poll() is None, process.stderr.read()
        while not Path("mmvet/full.jsonl.graded-by-gpt-4.jsonl").read_bytes():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = ""
        while "Ctrl-C stops at once." not in said:
            said = process.stderr.readline()
            assert said, process.wait()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    finally:
        process.kill()
        over.set()
    assert "1 of 3 grades are kept" in process.stderr.read()
    process.stderr.close()
    assert len(kept("mmvet")) == 1


def test_where_nobody_listens(here, capsys, caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        assert judge.main(["mmvet", "mmvet/full.jsonl", "--base-url", url, "--model", "x"]) == 2
    assert f"{url}/chat/completions: nobody is there" in capsys.readouterr().err
    assert not caplog.records


@pytest.mark.slow
def test_a_killed_run_goes_on(here, serve):
    replies = iter(["1.0"] * 3)
    server = serve(lambda _: next(replies, None))  # then it is silent
    arguments = [
        sys.executable,
        "-m",
        "llava.eval.judge",
        *command("mmvet", server, "--parallel", "1", "--runs", "9"),
    ]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    path = Path("mmvet/full.jsonl.graded-by-gpt-4.jsonl")
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(server.prompts)
    assert before < 27
    server.reply = lambda _: "1.0"
    assert judge.main(command("mmvet", server, "--runs", "9")) == 0
    assert len(server.prompts) <= 27 + 1  # one may have been on its way when the run was killed
    assert len(kept("mmvet")) == 27


def test_grades_of_other_judges_and_of_other_answers_are_not_mixed(here, serve, capsys):
    server = serve(lambda _: "1.0")
    for _ in range(2):
        assert judge.main(command("mmvet", server)) == 0
    assert "replaces" not in capsys.readouterr().err
    assert judge.main(command("mmvet", server, model="gpt-5")) == 0
    assert "full.jsonl.result.json: replaces total 100.0, rec 100.0, ocr" in (err := capsys.readouterr().err)
    assert "by gpt-4-0613." in err
    assert len(server.prompts) == 6
    assert result_of("mmvet")["judge"]["answered"] == ["gpt-5-0613"]
    answers = Path("mmvet/full.jsonl")
    answers.write_text(answers.read_text().replace("answer 1", "answer 7"))
    assert judge.main(command("mmvet", server)) == 0
    assert len(server.prompts) == 7
    assert "answer 7" in server.prompts[-1]
    assert judge.main(command("mmvet", server, "--runs", "2")) == 0
    assert len(server.prompts) == 10


@pytest.fixture
def verbose():
    """What --verbose has changed is put back."""
    yield "--verbose"
    for package in ("llava", "visionzip_patch"):
        logging.getLogger(package).setLevel(logging.NOTSET)


def test_the_key_is_in_the_header_and_nowhere_else(here, serve, verbose, monkeypatch, capsys, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    replies = iter([(503, "down")])
    server = serve(lambda _: next(replies, "1.0"))
    assert judge.main(command("mmvet", server, "--key-env", "OPENAI_API_KEY", verbose)) == 0
    assert server.keys == ["Bearer sk-secret"] * 4
    server.reply = lambda _: "8 6"
    assert judge.main(command("llava_bench", server)) == 0  # not named, not sent
    assert server.keys[4:] == [None] * 3
    out, err = capsys.readouterr()
    assert "secret" not in out + err + caplog.text
    assert "503" in caplog.text
    files = [path.read_text() for path in here.glob("*/full*")]
    assert len(files) == 6
    assert not any("secret" in text for text in files)


@pytest.mark.parametrize(("task", "reply"), [("mmvet", "0.5"), ("llava_bench", "8 4")])
def test_part_of_the_questions(here, serve, task, reply, capsys):
    """Only what is answered counts, as in every other benchmark here."""
    path = Path(task) / "full.jsonl"
    path.write_text(path.read_text().splitlines()[1] + "\n")
    server = serve(lambda _: reply)
    assert judge.main(command(task, server)) == 0
    assert " 1 of 3 |     0 of 1 |" in capsys.readouterr().out
    assert set(result_of(task)["scores"].values()) == {50}
    assert len(server.prompts) == 1


def test_scores_show_in_the_report_and_outlive_a_second_run(here, serve, checkpoint, capsys):
    options = ["--device", "cpu", "--num-workers", "0", "--max-new-tokens", "2"]
    assert run.main(["mmvet", checkpoint, *options]) == 0
    (answers,) = Path("playground/results/mmvet").glob("*/full.jsonl")
    with pytest.raises(ValueError, match="no results in it"):
        read_results(Path("playground/results"))
    server = serve(lambda _: "0.5")
    asked = ["--base-url", server.url, "--model", "gpt-4"]
    assert judge.main(["mmvet", str(answers), *asked]) == 0
    capsys.readouterr()
    assert run.main(["mmvet", checkpoint, *options]) == 0
    assert "| 50.00 " in capsys.readouterr().out
    assert report.main([]) == 0
    text = capsys.readouterr().out
    assert "|  50.0 |" in text
    assert "mmvet: graded by gpt-4-0613;" in text


def test_answers_without_a_result(here, serve, capsys):
    Path("mmvet/full.jsonl.result.json").unlink()
    server = serve(lambda _: "1.0")
    assert judge.main(command("mmvet", server)) == 0
    out, err = capsys.readouterr()
    assert "100.0" in out
    assert "has no result file" in err
    assert not Path("mmvet/full.jsonl.result.json").exists()


@pytest.mark.parametrize(
    ("task", "change", "more", "message"),
    [
        ("mmvet", "mm-vet/mm-vet_evaluator.py", [], "is not there. Fetch it from https://raw.github"),
        (
            "llava_bench",
            "llava-bench-in-the-wild/rule.json",
            [],
            "rule.json, with which the judge is asked, is not there",
        ),
        ("mmvet", None, ["--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY, which --key-env names, is empty or not set"),
        ("llava_bench", None, ["--runs", "5"], "--runs is for mmvet"),
        ("mmvet", None, ["--base-url", "localhost:80"], "must begin with http"),
        ("mmvet", None, ["--data", "elsewhere"], "elsewhere/mm-vet_evaluator.py, with which"),
        ("mmvet", None, ["--rules", "page.py"], "page.py: no Python that sets `prompt` to a text"),
        ("mmvet", None, ["--rules", "number.py"], "number.py: no few-shot table in it"),
        ("mmvet", None, ["--rules", "empty.txt"], "empty.txt: no few-shot table in it"),
        ("mmvet", None, ["--rules", "rules.json"], "rules.json: no few-shot table in it"),
        ("mmvet", None, ["--rules", "latin.txt"], "latin.txt: no text"),
        ("llava_bench", None, ["--rules", "list.json"], "list.json: must hold an object with a role and a prompt"),
        ("llava_bench", None, ["--rules", "three.json"], "three.json: must hold an object with a role and a prompt"),
        ("llava_bench", None, ["--rules", "page.py"], "page.py: not JSON"),
    ],
)
def test_what_is_told_before_anything_is_asked(here, serve, task, change, more, message, capsys):
    rules = {
        "page.py": b"<!DOCTYPE html>\n",
        "number.py": b"prompt = 3\n",
        "empty.txt": b"",
        "rules.json": json.dumps({"llava_bench_conv": {"role": "", "prompt": TABLE}}).encode(),
        "latin.txt": b"\xe9",
        "list.json": b"[]",
        "three.json": b'{"llava_bench_conv": 3}',
    }
    for name, content in rules.items():
        Path(name).write_bytes(content)
    if change:
        (Path("playground/data/eval") / change).unlink()
    server = serve(lambda _: "1.0")
    assert judge.main(command(task, server, *more)) == 2
    assert message in capsys.readouterr().err
    assert not server.prompts


def test_files_of_different_parts_are_in_one_table(here, serve, capsys):
    """A category of which nothing is answered, and one whose reference has 0, have no score."""
    lines = Path("llava_bench/full.jsonl").read_text().splitlines(keepends=True)
    names = ["llava_bench/first.jsonl", "llava_bench/second.jsonl"]
    for name, part in zip(names, (lines[:2], lines[1:]), strict=True):
        Path(name).write_text("".join(part))
    server = serve(by_answer({0: "8 6", 1: "10 5", 2: "0 5"}))
    assert judge.main(["llava_bench", *names, "--base-url", server.url, "--model", "x"]) == 0
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert head == ["answers", "judge", "all", "conv", "detail", "questions", "unreadable"]
    counts = ["2 of 3", "0 of 2"]
    assert [row[2:] for row in rows] == [["61.1", "75.0", "50.0", *counts], ["100.0", "-", "50.0", *counts]]


def test_answers_to_another_benchmark(here, serve, capsys):
    server = serve(lambda _: "1.0")
    arguments = ["mmvet", "mmvet/full.jsonl", "llava_bench/full.jsonl", "--base-url", server.url, "--model", "x"]
    assert judge.main(arguments) == 2
    assert "llava_bench/full.jsonl holds answers to llava_bench, not to mmvet" in capsys.readouterr().err
    Path("mmvet/full.jsonl").write_text('{"question_id": 9, "text": "?"}\n')
    assert judge.main(command("mmvet", server)) == 2
    assert "1 of 1 answers are to none of the 3 questions" in capsys.readouterr().err
    assert not server.prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no answers in it"),
        ('{"question_id": 0}', "line 1: no answer, which has a question_id and a text"),
        ('{"question_id": 0, "image": "0.png", "text": "What?"}', "line 1: a question, not an answer"),
    ],
)
@pytest.mark.parametrize("task", judge.JUDGED)
def test_files_that_hold_no_answers(here, serve, task, content, message, capsys):
    path = Path(task) / "full.jsonl"
    path.write_text(content)
    server = serve(lambda _: "1.0")
    assert judge.main(command(task, server)) == 2
    assert f"{path}" in (err := capsys.readouterr().err)
    assert message in err
    assert not server.prompts
    assert len(list(path.parent.iterdir())) == 2


def test_the_rules_are_among_the_data(here, capsys):
    """Answers can be made without them, so they do not count."""
    (here / "playground/data/eval/mm-vet/mm-vet_evaluator.py").unlink()
    assert data.main(["--task", "mmvet", "llava_bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (there,) = (line for line in lines if "rule.json" in line)
    assert [cell.strip() for cell in there.split("|")[1:-1]][::3] == ["llava_bench", "yes"]
    (missing, note) = (line for line in lines if "mm-vet_evaluator.py" in line)
    assert missing.rstrip(" |").endswith("no")
    assert note.startswith("mmvet: for the judge, mm-vet_evaluator.py to ")
    assert note.endswith(judge.JUDGED["mmvet"].SOURCE)


def test_unreadable_grades_show_in_the_report(here, serve, capsys):
    server = serve(by_answer({0: "1.0", 1: "1.0", 2: "?"}))
    assert judge.main(command("mmvet", server)) == 1
    assert report.main([str(here)]) == 0
    assert "do not compare. llava, full: 1 of 3 grades unreadable.\n" in capsys.readouterr().out


def test_the_table_may_be_a_text(here):
    Path("table.txt").write_text(TABLE)
    assert mmvet.read_table(Path("table.txt")) == mmvet.read_table(
        Path("playground/data/eval/mm-vet/mm-vet_evaluator.py")
    )
