"""Every benchmark, from its native files to its score."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from native import MAKERS

from llava.eval import data, run
from llava.eval.data import Data
from llava.eval.mmbench_file import read_mmbench
from llava.eval.questions import read_scienceqa
from llava.eval.tasks import TASKS, playground

TRUE = {  # what a model would say that is always right
    "pope": {"dog": "Yes.", "cat": "No, there is none", "car": "Yes", "bus": "no"},
    "gqa": {"0?": "Yes.", "1?": "table", "2?": "Left", "3?": "dog"},
    "scienceqa": {"is 0": "B", "is 1": "The answer is A.", "is 2": "B. down"},
    "vqav2": {"0?": "yes", "1?": "2", "2?": "red", "3?": "blue"},
    "vizwiz": {"0?": "can", "1?": "Unanswerable", "2?": "soup"},
    "seed": {"is 0": "A", "is 1": "B", "is 2": "C"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with every benchmark in LLaVA's layout below it."""
    for make in MAKERS.values():
        make(tmp_path / "playground/data/eval")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def right_answers(name: str, questions) -> list[dict]:
    rows = []
    for number, question in enumerate(questions):
        if name == "mme":
            text = ("Yes", "No")[number % 2]
        elif name.startswith("mmbench"):
            text = re.search("([AB]). (red|down)", question.text)[1]
        else:
            (text,) = (said for part, said in TRUE[name].items() if part in question.text)
        rows.append({"question_id": question.question_id, "prompt": question.text, "text": text})
    return rows


@pytest.mark.parametrize("name", MAKERS)
def test_right_answers_have_the_full_score(here, name):
    task = TASKS[name]
    files = task.data.below(playground())
    questions = task.read(files.question_file, None)
    rows = right_answers(name, questions)
    best = 2800 if name == "mme" else 100
    assert task.metric(files, rows)[task.headline] == best
    wrong = [{**row, "text": "neither"} for row in rows]
    assert task.metric(files, wrong)[task.headline] < best
    if name != "mme":  # whose score is defined on all questions
        assert task.metric(files, rows[:1])[task.headline] == 100
    with pytest.raises(ValueError, match=r"none of|No answer|not in|unknown|no question"):
        task.metric(files, [{"question_id": "a/b" if name == "mme" else "77", "prompt": "What?", "text": "yes"}])


def test_half_right(here):
    scores = {}
    for name in MAKERS:
        task = TASKS[name]
        files = task.data.below(playground())
        rows = right_answers(name, task.read(files.question_file, None))
        rows[::2] = [{**row, "text": "No" if name == "mme" else "wrong"} for row in rows[::2]]
        scores[name] = task.metric(files, rows)
    # POPE: every "yes" question is answered with "wrong", which counts as yes; so nothing is lost
    assert scores["pope"]["F1"] == 100
    assert scores["gqa"] == {"accuracy": 50, "binary": 0, "open": 100}
    assert scores["mme"] == {"total": 700, "perception": 500, "cognition": 200}  # half of accuracy, none of accuracy+
    assert scores["scienceqa"]["accuracy with image"] == 0
    assert scores["scienceqa"]["accuracy"] == pytest.approx(100 / 3)
    assert scores["vqav2"] == {"accuracy": 50, "yes/no": 0, "number": 100, "other": 50}
    assert scores["vizwiz"]["accuracy"] == pytest.approx(100 / 3)
    assert scores["mmbench"] == scores["mmbench_cn"] == {"accuracy": 0, "single": 0}  # of each, the first is wrong
    assert scores["seed"] == {"accuracy": pytest.approx(100 / 3), "image": 50, "video": 0}


@pytest.mark.parametrize("name", MAKERS)
def test_from_files_to_a_result(here, checkpoint, name, capsys):
    options = ["--max-new-tokens", "3", "--device", "cpu", "--num-workers", "0"]
    assert run.main([name, checkpoint, "--budgets", "full,20,12+4", "--batch-size", "3", *options]) == 0
    folder = Path("playground/results") / name / Path(checkpoint).name
    results = {path.name: json.loads(path.read_text()) for path in folder.glob("*.result.json")}
    assert sorted(results) == ["12+4.jsonl.result.json", "20-per-image.jsonl.result.json", "full.jsonl.result.json"]
    for result in results.values():
        assert result["answered"] == result["questions"] > 2
        assert math.isfinite(result["scores"][TASKS[name].headline])
        assert result["unit"] == TASKS[name].unit
    printed = capsys.readouterr().out
    assert f"{TASKS[name].headline} {TASKS[name].unit}" in printed
    before = (folder / "full.jsonl").read_text()
    again = run.main([name, checkpoint, "--budgets", "full", "--batch-size", "1", "--overwrite", *options])
    assert again == 0
    texts = [[json.loads(line)["text"] for line in content.splitlines()] for content in (before, read(folder))]
    assert texts[0] == texts[1]


def read(folder: Path) -> str:
    return (folder / "full.jsonl").read_text()


def test_questions_without_an_image_are_asked_without(here, checkpoint):
    questions = read_scienceqa("playground/data/eval/scienceqa/llava_test_CQM-A.json")
    assert [question.image for question in questions] == ["10/image.png", None, "12/image.png"]
    assert not any("<image>" in question.text for question in questions)
    options = ["--max-new-tokens", "3", "--device", "cpu", "--num-workers", "0"]
    assert run.main(["scienceqa", checkpoint, *options]) == 0
    (path,) = Path("playground/results/scienceqa").glob("*/full.jsonl")
    tokens = [json.loads(line)["metadata"]["image_tokens"] for line in path.read_text().splitlines()]
    assert tokens == [576, 0, 576]
    result = json.loads(path.with_name("full.jsonl.result.json").read_text())
    assert result["tokens_per_image"] == {"mean": 576, "min": 576, "max": 576}


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("full,half", "'half' is no budget. Write full, a number"),
        ("54+10+3", "is no budget"),
        ("full,full", "names a budget twice"),
        ("1000+1000", "asks for 2000 tokens"),
        ("", "'' is no budget"),
    ],
)
def test_bad_lists_of_budgets(here, checkpoint, capsys, budgets, message):
    assert run.main(["pope", checkpoint, "--budgets", budgets, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_budgets_and_a_budget_are_not_mixed(here, checkpoint, capsys):
    assert run.main(["pope", checkpoint, "--budgets", "full", "--dominant", "5", "--device", "cpu"]) == 2
    assert "leave --dominant out" in capsys.readouterr().err


def test_what_is_there_and_what_is_missing(here, capsys):
    (here / "playground/data/eval/gqa/data/testdev_balanced_questions.json").unlink()
    assert data.main(["--ready"]) == 0
    ready = ["pope", "mme", "scienceqa", "vqav2", "vizwiz", "mmbench", "mmbench_cn", "seed"]
    assert capsys.readouterr().out.split() == ready
    assert data.main(["--task", "pope", "seed"]) == 0
    assert "Fetch" not in capsys.readouterr().out
    assert data.main([]) == 1
    out = capsys.readouterr().out
    assert out.count(" no ") == 4  # all of textvqa, and one of gqa
    assert "gqa: Fetch" in out
    assert "textvqa: Fetch" in out


def test_images_of_mmbench_are_unpacked_once(here, checkpoint, capsys):
    options = ["--max-new-tokens", "2", "--device", "cpu", "--num-workers", "0", "--limit", "2"]
    assert run.main(["mmbench", checkpoint, *options]) == 0
    folder = Path("playground/data/eval/mmbench/mmbench_dev_20230712-images")
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg"]
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert run.main(["mmbench", checkpoint, *options]) == 0
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before
    questions = read_mmbench(Path("playground/data/eval/mmbench/mmbench_dev_20230712.tsv"))
    assert [question.image for question in questions] == ["0.jpg", "0.jpg", "1.jpg", "1.jpg"]
    assert questions[2].text == "Look up.\nWhat is 1?\nA. up\nB. down"
    table = Path("playground/data/eval/mmbench/mmbench_dev_20230712.tsv")
    table.write_text(table.read_text().replace("\t/9j/", "\t*9j/"))
    (folder / "0.jpg").unlink()
    assert run.main(["mmbench", checkpoint, *options]) == 2
    assert "index 0: image is not base64" in capsys.readouterr().err


def test_tasks_without_embedded_data_ask_for_a_checkpoint(capsys):
    assert run.main(["gqa"]) == 2
    assert "gqa has no embedded data: name a CHECKPOINT, or try one of textvqa, pope." in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_the_table_is_whole(name):
    task = TASKS[name]
    assert isinstance(task.data, Data)
    assert task.data.fetch
    script = Path(__file__).parents[3] / "scripts/eval" / f"{name}.sh"
    assert f"run_benchmark {name} " in script.read_text()


@pytest.mark.slow
def test_processes_and_batches_change_no_score(tmp_path):
    """The embedded yes/no questions: one, two and three processes; and one that is killed on the way and goes on."""
    root = Path(__file__).parents[3]

    def start(out: Path, processes: int, batch: int, *more: str) -> subprocess.Popen:
        launch = ["-m", "llava.launch", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
        checkpoint, data = root / "playground/checkpoints/llava-signs", root / "playground/data/eval/signs"
        places = ["--question-file", data / "llava_pope_test.jsonl", "--image-folder", data / "train_images"]
        options = [*places, "--annotation-file", data / "coco", "--out", out, "--batch-size", batch, *more]
        command = [*launch, "-m", "llava.eval.run", "pope", checkpoint, "--device", "cpu", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        own = {"cwd": tmp_path, "env": environment, "start_new_session": True}
        return subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.DEVNULL, **own)

    texts = {}
    for processes, batch in ((1, 7), (2, 32), (3, 1)):
        out = tmp_path / f"{processes}"
        assert start(out, processes, batch, "--dominant", "6", "--contextual", "1").wait(timeout=200) == 0
        rows = (out / "6+1.jsonl").read_text().splitlines()
        texts[processes] = [json.loads(row)["text"] for row in rows]
        assert len(rows) == 768
    assert texts[1] == texts[2] == texts[3]

    out = tmp_path / "killed"
    running = start(out, 2, 1, "--dominant", "6", "--contextual", "1")
    while sum(len(path.read_bytes().splitlines()) for path in out.glob("6+1.jsonl*part*")) < 20:
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert start(out, 1, 32, "--dominant", "6", "--contextual", "1").wait(timeout=200) == 0
    assert [json.loads(row)["text"] for row in (out / "6+1.jsonl").read_text().splitlines()] == texts[1]
