"""Upstream's evaluation commands, as its scripts and its README call them, on the embedded model."""

import base64
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from llava.eval import (
    eval_pope,
    eval_science_qa,
    eval_textvqa,
    m4c_evaluator,
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    run_llava,
)
from llava.inference.decoding import Decoding
from llava.inference.embedded import SOURCE_ROOT
from llava.mm_utils import get_model_name_from_path
from llava.utils.files import write_jsonl

SIGNS = SOURCE_ROOT / "playground/data/eval/signs"
IMAGES = SIGNS / "train_images"
MODEL = str(SOURCE_ROOT / "playground/checkpoints/llava-signs")
WORD = "what word is on the green sign?\nAnswer the question using a single word or phrase."
FIELDS = {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
GREEDY = ["--model-path", MODEL, "--image-folder", str(IMAGES), "--temperature", "0", "--conv-mode", "vicuna_v1"]


@pytest.fixture
def golden_json(golden):
    return lambda name: json.loads((golden / "json" / f"{name}.json").read_text())


def quick_start(**changes):
    """The object of the quick start in LLaVA's README."""
    fields = {
        "model_path": MODEL,
        "model_base": None,
        "model_name": get_model_name_from_path(MODEL),
        "query": WORD,
        "conv_mode": None,
        "image_file": str(IMAGES / "sign000000000.png"),
        "sep": ",",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 512,
    }
    return type("Args", (), {**fields, **changes})()


def test_the_quick_start_prints_the_answer(capsys):
    assert run_llava.eval_model(quick_start()) == "sale"
    assert capsys.readouterr().out == "sale\n"


def test_images_stand_where_the_query_says(monkeypatch):
    seen = []

    def generate_batch(model, tokenizer, questions, pictures, decoding):
        prompt = decoding.settled(model.config, tokenizer).prompt(questions[0], images=len(pictures[0]))
        seen.append((prompt, len(pictures[0])))
        return SimpleNamespace(texts=["an answer"])

    monkeypatch.setattr("llava.inference.batch.generate_batch", generate_batch)
    two = ",".join(str(IMAGES / f"sign00000000{i}.png") for i in range(2))
    run_llava.eval_model(quick_start(query="is <image-placeholder> as <image-placeholder>?", image_file=two))
    run_llava.eval_model(quick_start(query="are they alike?", image_file=two))
    assert [prompt.partition("USER: ")[2] for prompt, _ in seen] == [
        "is <image> as <image>? ASSISTANT:",
        "<image> <image>\nare they alike? ASSISTANT:",
    ]
    with pytest.raises(ValueError, match="places for 1 images, but 2 were given"):
        run_llava.eval_model(quick_start(query="<image-placeholder>", image_file=two))


def test_run_llava_from_a_command_line(capsys):
    flags = ["--model-path", MODEL, "--image-file", str(IMAGES / "sign000000000.png"), "--query", WORD]
    assert run_llava.main([*flags, "--temperature", "0", "--dominant", "6", "--contextual", "1"]) == 0
    assert capsys.readouterr().out == "sale\n"
    assert run_llava.main([*flags[:2], "--image-file", "none.png", "--query", WORD]) == 2
    assert "none.png" in capsys.readouterr().err


def test_images_of_run_llava():
    names = run_llava.image_parser(
        SimpleNamespace(image_file=f"{IMAGES}/sign000000000.png;{IMAGES}/sign000000001.png", sep=";")
    )
    assert [image.mode for image in run_llava.load_images(names)] == ["RGB", "RGB"]


@pytest.fixture
def signs(tmp_path):
    """The first questions of an embedded set in files of their own: `signs("llava_pope_test.jsonl", 3)` -> path."""

    def make(name: str, count: int):
        path = tmp_path / name
        if path.suffix == ".jsonl":
            lines = (SIGNS / name).read_text().splitlines(keepends=True)
            path.write_text("".join(lines[:count]))
        else:
            path.write_text(json.dumps(json.loads((SIGNS / name).read_text())[:count]))
        return path

    return make


def test_model_vqa_answers_as_the_loader_does(signs, tmp_path, read_rows):
    questions = signs("llava_textvqa_val_v051_ocr.jsonl", 4)
    rows = []
    for command in (model_vqa, model_vqa_loader):
        answers = tmp_path / f"{command.__name__}.jsonl"
        assert command.main([*GREEDY, "--question-file", str(questions), "--answers-file", str(answers)]) == 0
        rows.append(read_rows(answers))
    assert all(row.keys() == FIELDS for row in rows[0])
    assert [row["text"] for row in rows[0]] == [row["text"] for row in rows[1]]
    assert model_vqa.parse_arguments([]).max_new_tokens == 1024  # as upstream


def test_eval_model_takes_upstreams_fields_alone(signs, tmp_path, read_rows):
    fields = {"model_path": MODEL, "model_base": None, "image_folder": str(IMAGES), "conv_mode": "vicuna_v1"}
    fields |= {"temperature": 0, "top_p": None, "num_beams": 1, "num_chunks": 2, "chunk_idx": 1}
    fields |= {"question_file": str(signs("llava_pope_test.jsonl", 4)), "answers_file": str(tmp_path / "a.jsonl")}
    assert model_vqa.eval_model(SimpleNamespace(**fields)) == 0
    assert len(read_rows(tmp_path / "a.jsonl")) == 2


def test_scienceqa_is_answered_and_scored(signs, tmp_path, read_rows, capsys):
    questions = signs("llava_test_CQM-A.json", 4)
    entries = json.loads(questions.read_text())
    del entries[3]["image"]  # a question of text alone
    questions.write_text(json.dumps(entries))
    answers, base = tmp_path / "answers.jsonl", tmp_path / "base"
    flags = ["--question-file", str(questions), "--answers-file", str(answers), "--single-pred-prompt"]
    assert model_vqa_science.main([*GREEDY, *flags]) == 0
    rows = read_rows(answers)
    assert [row["prompt"].startswith("<image>\n") for row in rows] == [True, True, True, False]
    assert all(
        row["prompt"].endswith("\nAnswer with the option's letter from the given choices directly.") for row in rows
    )
    assert all(row.keys() == FIELDS for row in rows)

    base.mkdir()
    problems = json.loads((SIGNS / "problems.json").read_text())
    (base / "problems.json").write_text(json.dumps(problems))
    (base / "pid_splits.json").write_text(json.dumps({"test": [row["question_id"] for row in rows]}))
    files = ["--output-file", str(tmp_path / "out/o.json"), "--output-result", str(tmp_path / "out/r.json")]
    capsys.readouterr()
    assert eval_science_qa.main(["--base-dir", str(base), "--result-file", str(answers), *files]) == 0
    right = [problems[row["question_id"]]["answer"] == "ABCDE".find(row["text"]) for row in rows]
    share = 100 * sum(right) / 4
    assert f"Total: 4, Correct: {sum(right)}, Accuracy: {share:.2f}%" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/r.json").read_text())["acc"] == share
    assert len(json.loads((tmp_path / "out/o.json").read_text())["correct"]) == sum(right)
    assert eval_science_qa.main(["--base-dir", str(base), "--result-file", str(answers), "--split", "val"]) == 2
    assert "has test" in capsys.readouterr().err


@pytest.fixture
def mmbench(tmp_path):
    """One of MMBench's TSV files: two questions about one picture, the first of three options, the second of two."""
    content = base64.b64encode((IMAGES / "sign000000000.png").read_bytes()).decode()
    header = ["index", "question", "hint", "A", "B", "C", "D", "image", "answer"]
    rows = [
        ["7", "what word is on the green sign?", "Look at it.", "bank", "sale", "fire", "nan", content, "B"],
        ["8", "is there a green sign?", "nan", "yes", "no", "", "", "7", "A"],
    ]
    path = tmp_path / "bench.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    return path


def test_all_rounds_of_mmbench(mmbench, tmp_path, read_rows):
    answers = tmp_path / "answers.jsonl"
    flags = ["--question-file", str(mmbench), "--answers-file", str(answers), "--all-rounds", "--single-pred-prompt"]
    flags += ["--model-path", MODEL, "--temperature", "0", "--conv-mode", "vicuna_v1"]
    assert model_vqa_mmbench.main(flags) == 0
    rows = read_rows(answers)
    assert all(row.keys() == FIELDS | {"round_id", "options", "option_char"} for row in rows)
    assert [(row["question_id"], row["round_id"]) for row in rows] == [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1)]
    assert [row["options"] for row in rows[:3]] == [
        ["bank", "sale", "fire"],
        ["sale", "fire", "bank"],
        ["fire", "bank", "sale"],
    ]
    assert [row["option_char"] for row in rows[3:]] == [["A", "B"], ["B", "A"]]
    assert rows[1]["prompt"] == "Look at it.\nwhat word is on the green sign?\nA. sale\nB. fire\nC. bank"
    assert (tmp_path / "bench-images/7.jpg").read_bytes() == (IMAGES / "sign000000000.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], ""),
        (["--single-pred-prompt"], "\nAnswer with the option's letter from the given choices directly."),
        (["--single-pred-prompt", "--lang", "cn"], "\n请直接回答选项字母。"),
    ],
)
def test_what_mmbench_asks_for(mmbench, tmp_path, monkeypatch, flags, asked):
    given = {}
    monkeypatch.setattr(model_vqa_mmbench, "answer", lambda args, questions, **options: given.update(options) or 0)
    assert model_vqa_mmbench.main(["--question-file", str(mmbench), *flags]) == 0
    assert given["prompt_suffix"] == asked
    assert [row["round_id"] for row in given["fields"].values()] == [0, 0]


def test_mmbench_asks_in_the_languages_that_it_knows(capsys):
    with pytest.raises(SystemExit):
        model_vqa_mmbench.parse_arguments(["--lang", "fr"])
    assert "invalid choice: 'fr'" in capsys.readouterr().err


def pope_rows(count: int) -> list[dict]:
    lines = (SIGNS / "llava_pope_test.jsonl").read_text().splitlines()
    return [{"question_id": json.loads(line)["question_id"], "text": "yes"} for line in lines[:count]]


def test_pope_is_scored_list_by_list(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", pope_rows(600)[::-1])  # known by id, in any order
    flags = ["--annotation-dir", str(SIGNS / "coco"), "--question-file", str(SIGNS / "llava_pope_test.jsonl")]
    assert eval_pope.main([*flags, "--result-file", str(tmp_path / "a.jsonl")]) == 0
    out = capsys.readouterr().out
    assert out.count("Category: ") == out.count("F1 score: ") == 3
    assert "# samples: 256\nTP\tFP\tTN\tFN\t\n128\t128\t0\t0\nAccuracy: 0.5\n" in out
    assert eval_pope.main([*flags, "--result-file", str(SIGNS / "llava_pope_test.jsonl")]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "line 2: no 'question_id'; an answer needs question_id"),
        ({"question_id": 1, "prompt": "a"}, "line 2: no 'text'"),
        ({"question_id": 1, "prompt": "a", "text": 5}, "line 2: text is 5; expected text"),
        ({"question_id": 1, "prompt": "a", "text": None}, "line 2: text is None; expected text"),
        ({"question_id": [1], "prompt": "a", "text": "b"}, "line 2: question_id is [1]; expected text or a whole"),
        ({"question_id": True, "prompt": "a", "text": "b"}, "line 2: question_id is True"),
        (None, "no answers in it"),
    ],
)
@pytest.mark.parametrize("scorer", [eval_pope, eval_science_qa, eval_textvqa])
def test_answers_that_cannot_be_scored_are_named_by_every_scorer(tmp_path, capsys, scorer, line, message):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n" if line is None else "\n" + json.dumps(line))
    for name, content in (("problems.json", "{}"), ("pid_splits.json", '{"test": []}')):
        (tmp_path / name).write_text(content)
    flags = {
        eval_pope: ["--annotation-dir", SIGNS / "coco", "--question-file", SIGNS / "llava_pope_test.jsonl"],
        eval_science_qa: ["--base-dir", tmp_path],
        eval_textvqa: ["--annotation-file", SIGNS / "TextVQA_0.5.1_val.json"],
    }[scorer]
    assert scorer.main([*map(str, flags), "--result-file", str(answers)]) == 2
    assert f"{answers}{':' if line is None else ','} {message}" in capsys.readouterr().err


@pytest.fixture
def science(tmp_path):
    """Runs the scorer of ScienceQA on one answer, with these flags: (status, files by their names)."""
    files = {
        "problems.json": {"1": {"choices": ["a", "b"], "answer": 0}},
        "pid_splits.json": {"test": ["1"]},
        "answers.jsonl": {"question_id": "1", "prompt": "a?", "text": "A"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    def run(**flags):
        given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        base = ["--base-dir", str(tmp_path), "--result-file", str(tmp_path / "answers.jsonl")]
        return eval_science_qa.main([*base, *given])

    return run


@pytest.mark.parametrize("option", ["output_file", "output_result"])
def test_scores_are_written_over_nothing_that_is_read(science, tmp_path, capsys, option):
    for name in ("answers.jsonl", "problems.json", "pid_splits.json"):
        before = (tmp_path / name).read_bytes()
        assert science(**{option: tmp_path / name}) == 2
        assert f"{tmp_path / name} would be written over" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
    both = dict.fromkeys(("output_file", "output_result"), tmp_path / "o.json")
    assert science(**both) == 2
    assert f"--output-file and --output-result both name {tmp_path}/o.json" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
    assert science(output_file=tmp_path / "o.json", output_result=tmp_path / "r.json") == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pid_splits.json", ["test"], "pid_splits.json: expected an object of lists of ids"),
        ("pid_splits.json", {"test": "1"}, "pid_splits.json: expected an object of lists of ids"),
        ("pid_splits.json", {"test": [["1"]]}, "pid_splits.json is not ScienceQA's annotation file: TypeError"),
        ("problems.json", [], "1 of the split's 1 questions are not in problems.json"),
        ("problems.json", {"1": {"choices": ["a"]}}, "is not ScienceQA's annotation file: KeyError('answer')"),
        ("problems.json", {"1": {"choices": 2, "answer": "A"}}, "is not ScienceQA's annotation file: TypeError"),
    ],
)
def test_files_that_are_not_scienceqas_are_named(science, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(json.dumps(content))
    assert science() == 2
    assert message in capsys.readouterr().err


def test_files_that_are_not_popes_are_named(tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text('{"category": "random"}\n')
    write_jsonl(tmp_path / "a.jsonl", [{"question_id": 1, "text": "yes"}])
    flags = ["--annotation-dir", str(tmp_path), "--question-file", str(tmp_path / "q.jsonl")]
    assert eval_pope.main([*flags, "--result-file", str(tmp_path / "a.jsonl")]) == 2
    assert "is not POPE's annotation file: KeyError('question_id')" in capsys.readouterr().err


def test_pope_of_one_list_is_the_golden_one(golden_json, tmp_path, capsys):
    for case in golden_json("pope")["cases"]:
        write_jsonl(tmp_path / "labels.json", [{"label": label} for label in case["labels"]])
        eval_pope.eval_pope([{"text": text} for text in case["answers"]], tmp_path / "labels.json")
        assert capsys.readouterr().out.strip() == case["stdout"].strip()
    with pytest.raises(ValueError, match="0 answers and"):
        eval_pope.eval_pope([], tmp_path / "labels.json")


def test_m4c_evaluators_give_the_golden_scores(golden_json):
    processor = m4c_evaluator.EvalAIAnswerProcessor()
    assert all(processor(case["input"]) == case["output"] for case in golden_json("evalai_answer_processor"))
    table = golden_json("textvqa_accuracy")
    assert m4c_evaluator.TextVQAAccuracyEvaluator().eval_pred_list(table["pairs"]) == pytest.approx(table["overall"])
    assert m4c_evaluator.STVQAAccuracyEvaluator().eval_pred_list(table["pairs"]) == table["stvqa_overall"]


def test_textvqa_of_one_file_is_printed(golden_json, tmp_path, capsys):
    assert eval_textvqa.prompt_processor(WORD) == "what word is on the green sign?"
    table = golden_json("textvqa_eval_single")
    annotation, answers = tmp_path / "annotation.json", tmp_path / "r.jsonl"
    annotation.write_text(json.dumps(table["annotations"]))
    write_jsonl(answers, table["results"])
    eval_textvqa.eval_single(annotation, answers)
    assert capsys.readouterr().out == table["stdout"]


def test_the_loader_of_upstream(loaded, golden):
    tokenizer, model, processor = loaded
    questions = [{"image": name, "text": "what is it?"} for name in ("street_640x480.png", "square_336x336.png")]
    parts = (questions, golden / "images", tokenizer, processor, model.config)
    items = list(model_vqa_loader.create_data_loader(*parts, num_workers=0))
    assert [sizes for _, _, sizes in items] == [((640, 480),), ((336, 336),)]
    ids, pixels, _ = items[0]
    assert pixels.shape == (1, 3, 336, 336)
    assert (ids == -200).sum() == 1
    dataset = model_vqa_loader.CustomDataset(*parts)
    assert len(dataset) == 2
    batched, _, sizes = model_vqa_loader.collate_fn([dataset[0], dataset[1]])
    assert torch.equal(batched[0], ids[0])
    assert sizes == ((640, 480), (336, 336))
    with pytest.raises(ValueError, match="1 alone"):
        model_vqa_loader.create_data_loader(*parts, batch_size=2)
    assert model_vqa_loader.split_list([1, 2, 3], 2) == [[1, 2], [3]]


def test_the_loader_of_upstream_asks_in_the_checkpoints_template(tiny_llava, llama_3):
    model = tiny_llava()
    processor = model.get_vision_tower().image_processor
    question = {"image": str(IMAGES / "sign000000000.png"), "text": "Why?"}
    for changes, name in (({}, "llava_llama_3"), ({"conv_mode": "v0"}, "v0")):
        dataset = model_vqa_loader.CustomDataset([question], "", llama_3, processor, model.config, **changes)
        assert dataset[0][0].tolist() == Decoding(name).ids("Why?", llama_3, model.config)


def test_a_home_folder_is_found_by_every_command_of_upstream(signs, tmp_path, monkeypatch, read_rows, mmbench):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(MODEL)
    (tmp_path / "images").symlink_to(IMAGES)
    assert run_llava.eval_model(quick_start(model_path="~/model")) == "sale"
    fields = {"model_path": "~/model", "model_base": None, "temperature": 0, "answers_file": "~/a.jsonl"}
    pope, science = signs("llava_pope_test.jsonl", 1), signs("llava_test_CQM-A.json", 1)
    files = {model_vqa: pope, model_vqa_loader: pope, model_vqa_science: science, model_vqa_mmbench: mmbench}
    for command, file in files.items():
        asked = SimpleNamespace(**fields, question_file=f"~/{file.name}", image_folder="~/images")
        if command is model_vqa_mmbench:
            asked.image_folder = "~/unpacked"
        assert command.eval_model(asked) == 0
        assert read_rows(tmp_path / "a.jsonl")
        for path in tmp_path.glob("a.jsonl*"):
            path.unlink()


def test_commands_of_upstream_draw_answers_by_the_same_flags():
    flags = ["--conv-mode", "v0", "--temperature", "0.5", "--top_p", "0.9", "--num_beams", "2", "--max_new_tokens", "7"]
    one = run_llava.parse_arguments(["--model-path", "m", "--image-file", "i", "--query", "q", *flags])
    for command in (model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science):
        other = command.parse_arguments(flags)
        names = ("conv_mode", "temperature", "top_p", "num_beams", "max_new_tokens")
        assert [getattr(other, name) for name in names] == [getattr(one, name) for name in names]


def test_an_unknown_template_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("llava.inference.loading.load", lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(ValueError, match="conv_mode='vicuna' is unknown"):
        run_llava.eval_model(quick_start(conv_mode="vicuna"))


def test_pictures_are_rgb(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "grey.png")
    assert run_llava.load_image(str(tmp_path / "grey.png")).mode == "RGB"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["eval/eval_pope.py", "eval/model_vqa_mmbench.py", "train/train_mem.py"])
def test_files_run_as_scripts(script, tmp_path):
    """As upstream's shell scripts start them; the folder of a script is then the first place of imports."""
    command = [sys.executable, str(SOURCE_ROOT / "llava" / script), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m llava." in done.stdout
