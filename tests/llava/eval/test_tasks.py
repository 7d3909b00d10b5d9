"""Every benchmark, from its native files to its score."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_files import MAKERS, UNSCORED, make_mmbench, make_mmmu

from llava.eval import data, run
from llava.eval.data_options import choose_data
from llava.eval.tasks import TASKS, mmbench
from llava.eval.tasks.base import Data
from llava.eval.tasks.mmbench import read_mmbench
from llava.eval.tasks.mmmu import read_mmmu
from llava.eval.tasks.scienceqa import read_scienceqa
from llava.inference.decoding import Decoding
from llava.inference.embedded import playground

TRUE = {  # what a model would say that is always right
    "pope": {"dog": "Yes.", "cat": "No, there is none", "car": "Yes", "bus": "no"},
    "gqa": {"0?": "Yes.", "1?": "table", "2?": "Left", "3?": "dog"},
    "scienceqa": {"is 0": "B", "is 1": "The answer is A.", "is 2": "B. down"},
    "vqav2": {"0?": "yes", "1?": "2", "2?": "red", "3?": "blue"},
    "vizwiz": {"0?": "can", "1?": "Unanswerable", "2?": "soup"},
    "seed": {"is 0": "A", "is 1": "B", "is 2": "C"},
    "mmmu": {"is 0": "(A) red", "Is 1": "A.", "is 2": "The answer is 12.0", "is 3": "B"},
}
OPTIONS = ["--device", "cpu", "--num-workers", "0", "--max-new-tokens"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with every benchmark in LLaVA's layout below it."""
    for make in (*MAKERS.values(), *UNSCORED.values()):
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
    few = task.metric(files, rows[:2])
    assert few[task.headline] == (200 if name == "mme" else 100)
    assert few.get("possible") == (200 if name == "mme" else None)
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
    parts = {"accuracy": 50, "Art and Design": 0, "Science": 50, "Humanities and Social Science": 100}
    assert scores["mmmu"] == parts
    assert scores["seed"] == {"accuracy": pytest.approx(100 / 3), "image": 50, "video": 0}


@pytest.mark.parametrize(
    ("name", "first", "parts"),
    [
        ("pope", 0, {"F1", "F1 random", "accuracy", "yes"}),
        ("gqa", 0, {"accuracy", "binary"}),
        ("gqa", 1, {"accuracy", "open"}),
        ("scienceqa", 1, {"accuracy"}),  # which has no image: the headline is left out
        ("vqav2", 1, {"accuracy", "number"}),
        ("seed", 0, {"accuracy", "image"}),
        ("seed", 2, {"accuracy", "video"}),
        ("mmmu", 0, {"accuracy", "Art and Design"}),
    ],
)
def test_parts_without_an_answered_question_have_no_score(here, name, first, parts):
    files = TASKS[name].data.below(playground())
    questions = TASKS[name].read(files.question_file, None)
    scores = TASKS[name].metric(files, right_answers(name, questions[first : first + 1]))
    assert scores.keys() == parts
    assert all(map(math.isfinite, scores.values()))


def results_of(name: str) -> dict[str, dict]:
    """By budget, each of which must be plain JSON."""

    def refuse(constant: str):
        raise ValueError(constant)

    paths = Path("playground/results", name).glob("*/*.result.json")
    results = [json.loads(path.read_text(), parse_constant=refuse) for path in paths]
    return {result["budget"]: result for result in results}


@pytest.mark.parametrize("name", MAKERS)
def test_from_files_to_a_result(here, checkpoint, name, capsys):
    budget = ["--dominant", "12", "--contextual", "4"]
    assert run.main([name, checkpoint, *budget, "--limit", "2", *OPTIONS, "1"]) == 0
    (result,) = results_of(name).values()
    assert result["answered"] == result["questions"] == 2
    assert math.isfinite(result["scores"][TASKS[name].headline])
    assert result["unit"] == TASKS[name].unit
    assert f"{TASKS[name].headline} {TASKS[name].unit}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scienceqa", "mmmu"])  # one question without an image; several images to a question
def test_budgets_one_after_the_other_and_batches(here, checkpoint, name):
    def texts() -> list[str]:
        (path,) = Path("playground/results", name).glob("*/full.jsonl")
        return [json.loads(line)["text"] for line in path.read_text().splitlines()]

    assert run.main([name, checkpoint, "--budgets", "full,20,12+4", "--batch-size", "3", *OPTIONS, "3"]) == 0
    assert results_of(name).keys() == {"full", "20-per-image", "12+4"}
    assert all(result["answered"] == result["questions"] > 2 for result in results_of(name).values())
    before = texts()
    again = [name, checkpoint, "--budgets", "full", "--batch-size", "1", "--overwrite"]
    assert run.main([*again, *OPTIONS, "3"]) == 0
    assert texts() == before


def test_a_run_without_its_headline(here, checkpoint, capsys):
    path = Path("playground/data/eval/scienceqa/llava_test_CQM-A.json")
    path.write_text(json.dumps(json.loads(path.read_text())[1:2]))
    assert run.main(["scienceqa", checkpoint, *OPTIONS, "1"]) == 0
    assert results_of("scienceqa")["full"]["scores"].keys() == {"accuracy"}
    assert "accuracy %" in capsys.readouterr().out


def chosen(name: str, *flags) -> Data:
    return choose_data(run.parse_arguments([name, "checkpoint", *map(str, flags)]), TASKS[name])


@pytest.mark.parametrize("name", ["mmbench", "vizwiz", "mmmu"])
@pytest.mark.parametrize("flag", ["--question-file", "--annotation-file"])
def test_one_file_of_questions_and_answers_stays_one(here, name, flag):
    usual = chosen(name)
    path = usual.question_file.rename(here / "new.file")
    moved = chosen(name, flag, path)
    assert moved.question_file == moved.annotation_file == path
    rows = [{"question_id": q.question_id, "text": "A"} for q in TASKS[name].read(path, 1)]
    assert TASKS[name].metric(replace(moved, question_file=here / "elsewhere"), rows)
    usual.question_file.write_text("of an older release")
    both = chosen(name, "--annotation-file", usual.question_file, "--question-file", path)
    assert (both.question_file, both.annotation_file) == (path, usual.question_file)


def test_other_files_are_moved_one_by_one(here):
    usual = chosen("pope")
    path = usual.question_file.rename(here / "new.jsonl")
    assert chosen("pope", "--question-file", path) == replace(usual, question_file=path)


def test_images_of_another_release_of_mmbench_are_not_shown(here, monkeypatch):
    """They have the same names."""
    old = chosen("mmbench")
    before = (old.image_folder / "0.jpg").read_bytes()
    make_mmbench(here, "new", seed=7)
    new = chosen("mmbench", "--question-file", here / "mmbench/new.tsv")
    assert new.image_folder == here / "mmbench/new-images"
    assert (old.image_folder / "0.jpg").read_bytes() == before != (new.image_folder / "0.jpg").read_bytes()

    chosen("mmbench", "--question-file", new.question_file, "--image-folder", old.image_folder)
    assert (old.image_folder / "0.jpg").read_bytes() == (new.image_folder / "0.jpg").read_bytes()
    monkeypatch.setattr(mmbench, "make_folder", None)  # the folder may be read-only: nothing is to be written
    assert chosen("mmbench", "--question-file", new.question_file) == new


def test_questions_without_an_image_are_asked_without(here, checkpoint):
    questions = read_scienceqa("playground/data/eval/scienceqa/llava_test_CQM-A.json")
    assert [question.images for question in questions] == [("10/image.png",), (), ("12/image.png",)]
    assert not any("<image>" in question.text for question in questions)
    assert run.main(["scienceqa", checkpoint, *OPTIONS, "3"]) == 0
    (path,) = Path("playground/results/scienceqa").glob("*/full.jsonl")
    tokens = [json.loads(line)["metadata"]["image_tokens"] for line in path.read_text().splitlines()]
    assert tokens == [576, 0, 576]
    result = json.loads(path.with_name("full.jsonl.result.json").read_text())
    assert result["tokens_per_image"] == {"mean": 576, "min": 576, "max": 576}


def test_questions_about_another_medium_are_not_asked_without(here, checkpoint, capsys):
    path = Path("playground/data/eval/scienceqa/llava_test_CQM-A.json")
    entries = json.loads(path.read_text())
    entries[1]["video"] = "a.mp4"
    path.write_text(json.dumps(entries))
    assert run.main(["scienceqa", checkpoint, *OPTIONS, "3"]) == 2
    assert f"{path}, entry 2 brings video: \"video\": 'a.mp4'; only images are seen" in capsys.readouterr().err


def test_mmmu_is_asked_as_lmms_eval_asks_llava(here, checkpoint):
    questions = read_mmmu("playground/data/eval/mmmu/validation.jsonl")
    names = [tuple(name.removeprefix(f"{q.question_id}_") for name in q.images) for q in questions]
    assert names == [("1.png",), ("1.png", "2.png"), ("1.png",), ("1.png", "2.png")]
    assert (
        Decoding("vicuna_v1")
        .prompt(questions[1].text, images=2)
        .endswith(
            " USER: <image> <image>\nIs 1 in <image 2> or in <image 1>?\nA. yes\nB. no\nC. neither\n\n"
            "Answer with the option's letter from the given choices directly. ASSISTANT:"
        )
    )
    assert questions[2].text == ("What is 2 plus <image 1>?\n\nAnswer the question using a single word or phrase.")
    assert run.main(["mmmu", checkpoint, "--dominant", "20", "--contextual", "3", *OPTIONS, "3"]) == 0
    (path,) = Path("playground/results/mmmu").glob("*/20+3.jsonl")
    tokens = [json.loads(line)["metadata"]["image_tokens"] for line in path.read_text().splitlines()]
    assert tokens == [23, 46, 23, 46]
    result = json.loads(path.with_name("20+3.jsonl.result.json").read_text())
    assert result["tokens_per_image"] == {"mean": 23, "min": 23, "max": 23}


def test_mmmu_needs_the_images_that_it_names(here, checkpoint, capsys):
    path = Path("playground/data/eval/mmmu/validation.jsonl")
    path.write_text(path.read_text().replace('"image_2": "validation_Math_2_2.png", ', ""))
    assert run.main(["mmmu", checkpoint, "--device", "cpu"]) == 2
    assert "entry 2 is not as in the benchmark's own file: KeyError('image_2')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("full,half", "'half' is no budget. Write full, a number"),
        ("54+10+3", "is no budget"),
        ("full,full", "names a budget twice"),
        ("1000+1000", "asks for 2000 tokens"),
        (",", "'' is no budget"),
        ("", "Empty: budgets"),
        ("full,576", "no image has more than 576 tokens"),
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
    ready = ({*MAKERS} | {*UNSCORED}) - {"gqa"}
    assert capsys.readouterr().out.split() == [name for name in TASKS if name in ready]
    assert data.main(["--task", "pope", "seed"]) == 0
    assert "Fetch" not in capsys.readouterr().out
    assert data.main([]) == 1
    out = capsys.readouterr().out
    lacking = [line.split("|")[1].strip() for line in out.splitlines() if line.endswith(" no    |")]
    lacking = [name for name in lacking if name in ("textvqa", *MAKERS, *UNSCORED)]
    assert lacking == ["textvqa"] * 3 + ["gqa", "mmvet", "llava_bench"]  # of the last two, the rules of their judges
    assert "gqa: Fetch" in out
    assert "textvqa: Fetch" in out
    assert "\n  or from Hugging Face: python -m llava.eval.data --task gqa --fetch\n" in out


@pytest.mark.parametrize(
    ("name", "lacking"), [("pope", "pope/coco/coco_pope_random.json"), ("scienceqa", "scienceqa/pid_splits.json")]
)
def test_all_files_of_answers_must_be_there(here, checkpoint, name, lacking, capsys):
    path = Path("playground/data/eval", lacking)
    path.unlink()
    assert data.main(["--task", name]) == 1
    said = capsys.readouterr().out
    assert any(str(path) in line and line.endswith("| no    |") for line in said.splitlines())
    assert run.main([name, checkpoint, *OPTIONS, "1"]) == 2
    assert f"{name} needs files that are not there: {path}. Fetch\n" in capsys.readouterr().err


def test_an_empty_folder_is_not_there(here, checkpoint, capsys):
    folder = Path("playground/data/eval/vizwiz/val")
    for path in folder.iterdir():
        path.unlink()
    assert data.main(["--task", "vizwiz"]) == 1
    assert re.search(r"vizwiz/val +\| empty", capsys.readouterr().out)
    assert run.main(["vizwiz", checkpoint, *OPTIONS, "1"]) == 2
    assert f"not there: {folder} (an empty folder). Fetch" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "3", '{"a": 1}', '[{"a": 1}]', "[3]", '["a"]', '"a"', "{", ""])
@pytest.mark.parametrize("flag", ["--question-file", "--annotation-file"])
def test_files_of_something_else(here, checkpoint, flag, content, monkeypatch, capsys):
    """Of whatever kind: they are refused by name before the model is loaded."""
    monkeypatch.setattr("llava.inference.loading.load_pretrained_model", None)
    for name in [*MAKERS, "vqav2_test"]:
        usual, other = TASKS[name].data.below(playground()), here / "other"
        other.write_text(content)
        if name == "mme" and flag == "--annotation-file":
            continue  # a folder
        if name == "scienceqa" and flag == "--annotation-file":
            (here / "pid_splits.json").write_text('{"test": ["10", "11", "12"]}')
        command = [name, checkpoint, "--question-file", str(usual.question_file), flag, str(other), *OPTIONS, "1"]
        if usual.annotation_file and flag == "--question-file":
            command += ["--annotation-file", str(usual.annotation_file)]
        assert run.main(command) == 2, name
        assert "other" in capsys.readouterr().err, name


def test_the_annotation_of_another_benchmark(here, checkpoint, capsys):
    root = Path("playground/data/eval")
    command = ["gqa", checkpoint, *OPTIONS, "1"]
    assert run.main([*command, "--annotation-file", str(root / "vizwiz/val.json")]) == 2
    said = capsys.readouterr().err
    assert f"{root}/vizwiz/val.json is not gqa's annotation file: " in said
    questions = root / "seed_bench/llava-seed-bench.jsonl"
    assert run.main([*command, "--question-file", str(questions), "--image-folder", str(root / "seed_bench")]) == 2
    annotation = root / "gqa/data/testdev_balanced_questions.json"
    said = capsys.readouterr().err
    assert f"The questions of {questions} do not go with {annotation}: 3 of 3 questions are none of the 5 in" in said


@pytest.mark.parametrize("content", ["index\tquestion\n0\tWhat?\n", "index\tquestion\timage\n0\tWhat?\n"])
def test_a_table_of_mmbench_without_images(here, checkpoint, content, capsys):
    path = here / "m3.tsv"
    path.write_text(content)
    assert run.main(["mmbench", checkpoint, "--question-file", str(path), *OPTIONS, "1"]) == 2
    assert "m3.tsv: 1 of 1 rows have nothing in a column image, first index 0" in capsys.readouterr().err


def test_images_of_mmbench_are_unpacked_once(here, checkpoint, capsys):
    options = ["--limit", "2", *OPTIONS, "2"]
    assert run.main(["mmbench", checkpoint, *options]) == 0
    folder = Path("playground/data/eval/mmbench/mmbench_dev_20230712-images")
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg"]
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert run.main(["mmbench", checkpoint, *options]) == 0
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before
    questions = read_mmbench(Path("playground/data/eval/mmbench/mmbench_dev_20230712.tsv"))
    assert [question.images for question in questions] == [("0.jpg",), ("0.jpg",), ("1.jpg",), ("1.jpg",)]
    assert questions[2].text == "Look up.\nWhat is 1?\nA. up\nB. down"
    table = Path("playground/data/eval/mmbench/mmbench_dev_20230712.tsv")
    table.write_text(table.read_text().replace("\t/9j/", "\t*9j/"))
    (folder / "0.jpg").unlink()
    assert run.main(["mmbench", checkpoint, *options]) == 2
    assert "index 0: image is not base64" in capsys.readouterr().err


def test_tasks_without_embedded_data_ask_for_a_checkpoint(capsys):
    assert run.main(["gqa"]) == 2
    said = capsys.readouterr().err
    assert "gqa has no embedded data: name a CHECKPOINT, or try one of textvqa, pope, scienceqa." in said


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_the_table_is_whole(name):
    task = TASKS[name]
    assert isinstance(task.data, Data)
    assert task.data.fetch
    scripts = Path(__file__).parents[3] / "scripts/eval"
    assert (scripts / f"{name}.sh").resolve() == (scripts / "benchmark.sh").resolve()
    assert ("--fetch" in task.how_to_fetch()) == (task.source is not None)
    assert task.about


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pope", "mmmu"])
def test_processes_and_batches_change_no_score(tmp_path, name):
    """One, two and three processes; and one that is killed on the way and goes on.

    The embedded yes/no questions, and questions about one image or two.
    """
    root = Path(__file__).parents[3]
    signs = root / "playground/data/eval/signs"
    places = ["--question-file", signs / "llava_pope_test.jsonl", "--image-folder", signs / "train_images"]
    places += ["--annotation-file", signs / "coco"]
    if name == "mmmu":
        make_mmmu(tmp_path / "playground/data/eval", copies=64)
        places = []

    def start(out: Path, processes: int, batch: int) -> subprocess.Popen:
        torchrun = ["-m", "llava.utils.launch", "--standalone", "--nproc_per_node", str(processes)]
        launch = torchrun if processes > 1 else []
        checkpoint = root / "playground/checkpoints/llava-signs"
        options = [*places, "--out", out, "--batch-size", batch, "--dominant", "6", "--contextual", "1"]
        command = [*launch, "-m", "llava.eval.run", name, checkpoint, "--device", "cpu", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        own = {"cwd": tmp_path, "env": environment, "start_new_session": True}
        return subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.DEVNULL, **own)

    texts = {}
    for processes, batch in ((1, 7), (2, 32), (3, 1)):
        out = tmp_path / f"{processes}"
        assert start(out, processes, batch).wait(timeout=200) == 0
        rows = (out / "6+1.jsonl").read_text().splitlines()
        texts[processes] = [json.loads(row)["text"] for row in rows]
        assert len(rows) == {"pope": 768, "mmmu": 256}[name]
    assert texts[1] == texts[2] == texts[3]
    assert len(set(texts[1])) > 1

    out = tmp_path / "killed"
    running = start(out, 2, 1)
    while sum(len(path.read_bytes().splitlines()) for path in out.glob("6+1.jsonl*part*")) < 20:
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert start(out, 1, 32).wait(timeout=200) == 0
    assert [json.loads(row)["text"] for row in (out / "6+1.jsonl").read_text().splitlines()] == texts[1]
