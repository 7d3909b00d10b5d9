import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava.eval import run


@pytest.fixture
def command(checkpoint, benchmark, tmp_path):
    return ["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(tmp_path / "a.jsonl")]


@pytest.fixture
def before_loading(monkeypatch, capsys):
    """Runs a command that must fail, without loading a model, and returns what it says."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    def check(command):
        monkeypatch.setattr("llava.inference.loading.load_pretrained_model", refuse)
        assert run.main(command) == 2
        return capsys.readouterr().err

    return check


def with_flag(command, flag, value):
    place = command.index(flag) + 1
    return [*command[:place], str(value), *command[place + 1 :]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": "image0", "image": ', "not JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"question_id": "image0", "image": "image0.jpg"}', "no 'text'"),
        (
            '{"question_id": 1.5, "image": "image0.jpg", "text": "a"}',
            "question_id is 1.5; expected text or a whole number",
        ),
        ('{"question_id": 1, "image": 7, "text": "a"}', "image is 7; expected text"),
        ('{"question_id": 1, "image": "image0.jpg", "text": "see <image>"}', "the text holds '<image>'"),
        (
            '{"question_id": 1, "video": "a.mp4", "text": "a"}',
            "the question brings video: \"video\": 'a.mp4'; only images",
        ),
        ('{"question_id": 1, "image": "image0.jpg", "audio": "a.wav", "text": "a"}', "the question brings audio: "),
        ('{"question_id": 1, "images": ["image0.jpg"], "text": "a"}', "the question brings images elsewhere: "),
        ('{"question_id": 1, "image": "image0.jpg", "text": "<video>\\na"}', "the question brings video: <video> in a"),
    ],
)
def test_broken_question_lines_are_named(command, benchmark, before_loading, line, message):
    lines = benchmark.question_file.read_text().splitlines()
    benchmark.question_file.write_text("\n".join([*lines[:4], line, *lines[4:]]))
    said = before_loading(command)
    assert f"{benchmark.question_file}, line 5: {message}" in said


def test_bytes_that_are_no_text(command, benchmark, before_loading):
    benchmark.question_file.write_bytes(benchmark.question_file.read_bytes() + b"\xff\xfe\n")
    assert f"{benchmark.question_file}, line 13: not JSON" in before_loading(command)


def test_no_questions(command, benchmark, before_loading):
    benchmark.question_file.write_text("\n")
    assert "no questions" in before_loading(command)


@pytest.mark.parametrize("flag", ["--question-file", "--image-folder", "--annotation-file"])
def test_missing_data_says_what_to_fetch(command, before_loading, flag):
    said = before_loading(with_flag(command, flag, "nowhere/at-all"))
    assert "needs files that are not there: nowhere/at-all" in said
    assert "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip" in said


def test_missing_images_say_what_to_fetch(command, benchmark, before_loading):
    for name in ("image1.jpg", "image3.jpg"):
        (benchmark.images / name).unlink()
    said = before_loading(command)
    assert f"in {benchmark.images}: 2 missing, the first of them image1.jpg ({benchmark.question_file}, line 4)" in said
    assert "--skip-bad" in said


def test_annotation_of_other_questions(command, benchmark, before_loading):
    annotation = json.loads(benchmark.annotation_file.read_text())
    annotation["data"] = annotation["data"][:-1]
    benchmark.annotation_file.write_text(json.dumps(annotation))
    assert "image3" in before_loading(command)


def test_annotation_cut_off(command, benchmark, before_loading):
    benchmark.annotation_file.write_text(benchmark.annotation_file.read_text()[:100])
    assert str(benchmark.annotation_file) in before_loading(command)


def test_output_that_cannot_be_written(command, tmp_path, before_loading):
    (tmp_path / "file").write_text("")
    assert "cannot write here" in before_loading(with_flag(command, "--answers-file", tmp_path / "file/a.jsonl"))


@pytest.mark.parametrize("name", ["question_file", "annotation_file"])
def test_answers_do_not_replace_what_they_are_made_from(command, benchmark, before_loading, name):
    path = getattr(benchmark, name)
    content = path.read_bytes()
    assert "not even --overwrite touches it" in before_loading(
        [*with_flag(command, "--answers-file", path), "--overwrite"]
    )
    same = path.rename(benchmark.folder / "full.jsonl")
    flag = f"--{name.replace('_', '-')}"
    command = with_flag(command[: command.index("--answers-file")], flag, same)
    assert "not even --overwrite" in before_loading([*command, "--out", str(benchmark.folder), "--overwrite"])
    assert same.read_bytes() == content


def test_no_such_checkpoint(command, before_loading):
    assert "No checkpoint at './nowhere'" in before_loading([command[0], "./nowhere", *command[2:]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dominant", "54"], "go together"),
        (["--tokens-per-image", "64", "--contextual", "1"], "one or the other"),
        (["--merge", "mean"], "--merge needs a budget"),
        (["--compare-full"], "needs a budget"),
        (["--conv-mode", "vicuna"], "choose one of"),
        (["--tokens-per-image", "576"], "no image has more than 576 tokens without VisionZip"),
        (["--out", "folder"], "--answers-file and --out both say"),
        (["--image-folder", "", "--model-base", ""], "Empty: model-base, image-folder. Is a shell variable not set?"),
    ],
)
def test_requests_that_make_no_sense(command, before_loading, flags, message):
    assert message in before_loading([*command, *flags])


def test_a_budget_beyond_the_tower_stops_before_the_first_answer(command, tmp_path, capsys):
    assert run.main([*command, "--dominant", "570", "--contextual", "10", "--compare-full"]) == 2
    assert "580 tokens" in capsys.readouterr().err
    assert list(tmp_path.glob("a.*")) == []  # nothing was touched


def damage(images: Path):
    """Two images that are there but cannot be used; six of twelve questions are about them."""
    (images / "image1.jpg").write_text("not an image")
    whole = (images / "image2.jpg").read_bytes()
    (images / "image2.jpg").write_bytes(whole[: len(whole) // 2])


def test_damaged_images_leave_the_other_answers(command, benchmark, tmp_path, read_rows, capsys):
    damage(benchmark.images)
    assert run.main(command) == 1
    said, ways_out = capsys.readouterr()
    assert "or add --skip-bad to accept this" in ways_out
    assert "6 of 12 questions skipped, not scored" in said
    assert f"line 4 of {benchmark.question_file}: " in said
    assert "image1.jpg" in said
    assert "image2.jpg" in said
    assert "| 6 of 12 " in said
    assert [row["metadata"]["row"] for row in read_rows(tmp_path / "a.jsonl")] == [0, 1, 2, 9, 10, 11]


def test_skip_bad_counts_and_succeeds(command, benchmark, tmp_path, read_rows, capsys):
    damage(benchmark.images)
    (benchmark.images / "image3.jpg").unlink()
    assert run.main([*command, "--skip-bad"]) == 0
    said, ways_out = capsys.readouterr()
    assert "9 of 12 questions skipped, not scored" in said
    assert "--skip-bad" not in ways_out
    result = json.loads((tmp_path / "a.jsonl.result.json").read_text())
    assert (result["answered"], len(result["skipped"])) == (3, 9)
    assert [skip["line"] for skip in result["skipped"]] == [4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_mended_images_are_asked_about_again(command, benchmark, tmp_path, read_rows):
    whole = {path: path.read_bytes() for path in benchmark.images.iterdir()}
    damage(benchmark.images)
    assert run.main(command) == 1
    kept = {row["answer_id"] for row in read_rows(tmp_path / "a.jsonl")}
    for path, content in whole.items():
        path.write_bytes(content)
    assert run.main(command) == 0
    rows = read_rows(tmp_path / "a.jsonl")
    assert [row["metadata"]["row"] for row in rows] == list(range(12))
    assert kept < {row["answer_id"] for row in rows}


@pytest.mark.filterwarnings("ignore:Image size")
def test_huge_images_are_not_decoded(command, monkeypatch, capsys):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 160 * 120 - 1)
    assert run.main(command) == 1
    said = capsys.readouterr().out
    assert "12 of 12 questions skipped" in said
    assert "160x120 pixels" in said


def test_no_usable_image_at_all(command, benchmark, tmp_path, capsys):
    for path in benchmark.images.iterdir():
        path.write_text("not an image")
    assert run.main(command) == run.main([*command, "--skip-bad"]) == 1
    assert "12 of 12 questions skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.jsonl.result.json").read_text())["scores"] is None


def test_a_wrong_flag_is_told_without_torch():
    script = (
        "import sys\n"
        "from importlib import import_module\n"
        "try: import_module('{name}').main(['textvqa', '--nonsense'])\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    for name in ("llava.eval.run", "llava.analysis.sweep", "llava.eval.model_vqa_loader"):
        done = subprocess.run([sys.executable, "-c", script.format(name=name)], capture_output=True, text=True)
        assert (done.stdout.split(), "nonsense" in done.stderr) == (["2", "False", "False"], True), done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad number"), "bad number\n"),
        (torch.OutOfMemoryError(), "Out of memory. Run again with half the batch size.\n"),
        (KeyboardInterrupt(), "Stopped.\n"),
    ],
)
def test_errors_are_told_without_a_trace(command, monkeypatch, capsys, error, said):
    def fail(*args):
        raise error

    monkeypatch.setattr("llava.eval.benchmark.prepare", fail)
    assert run.main(command) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert capsys.readouterr().err == said


def test_verbose_shows_where_an_error_comes_from(command, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("llava"), "level", logging.NOTSET)  # put back afterwards
    monkeypatch.setattr(logging.getLogger("visionzip_patch"), "level", logging.NOTSET)
    command = [command[0], "./nowhere", *command[2:]]
    assert run.main(command) == 2
    assert "Traceback" not in caplog.text
    assert run.main([*command, "--verbose"]) == 2
    assert "Traceback" in caplog.text


def test_other_errors_keep_their_trace(command, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("llava.eval.benchmark.prepare", fail)
    assert run.main(command) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "RuntimeError: a bug" in said


def test_processes_without_a_launcher(command, before_loading, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert "WORLD_SIZE=2 is set without MASTER_ADDR and MASTER_PORT" in before_loading(command)


def test_a_budget_too_small_for_the_largest_grid(golden, benchmark, before_loading):
    """An image of 2x2 tiles has five crops: known before the first answer, not at the first such image."""
    command = ["textvqa", str(golden / "models/llava-v1.6-tiny"), *benchmark.flags, "--tokens-per-image", "4"]
    assert "tokens_per_image=4 cannot be split over 5 crops" in before_loading(command)


@pytest.fixture
def own_checkpoint(golden, tmp_path):
    """A copy of a checkpoint that a test may break; the tower stays where it is."""
    folder = tmp_path / "own"
    shutil.copytree(golden / "models/llava-v1.5-tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = str(golden / "models/clip-tiny-336")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "[" * 100_000, "config.json: not JSON"),
        ("config.json", '{"model_type": "llama", "hidden_size": 0}', "hidden_size is 0; expected a whole number"),
        ("generation_config.json", '{"max_length": "long"}', "max_length is 'long'; expected a whole number"),
        ("tokenizer_config.json", '{"legacy": "yes"}', "legacy is 'yes'; expected true or false"),
        ("tokenizer.model", "version https://git-lfs.github.com/spec/v1", "A small file may be a Git LFS pointer"),
    ],
)
def test_a_broken_checkpoint_is_a_bad_request(command, own_checkpoint, capsys, file, content, said):
    (own_checkpoint / file).write_text(content)
    assert run.main([command[0], str(own_checkpoint), *command[2:]]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "mistake of the program" not in err


def test_broken_questions_of_other_kinds(command, benchmark, before_loading):
    question, *others = benchmark.questions
    for broken, said in (
        ("[" * 100_000, "line 1: not JSON"),
        (json.dumps(question | {"text": "\ud83d"}), "line 1: '\\ud83d' holds half of a surrogate pair"),
        (json.dumps(question | {"image": "a\0b"}), "1 missing, the first of them a"),
        (json.dumps(question | {"image": "y" * 5000}), "1 missing, the first of them y"),
    ):
        benchmark.question_file.write_text("\n".join([broken, *map(json.dumps, others)]))
        assert said in before_loading(command)


def test_annotations_nested_without_end(command, benchmark, before_loading):
    benchmark.annotation_file.write_text('{"data": ' * 100_000)
    assert f"{benchmark.annotation_file}: not JSON" in before_loading(command)


@pytest.mark.parametrize("fast", ["static", "off"])
def test_numbers_that_are_not_finite_stop_an_evaluation(command, own_checkpoint, tmp_path, capsys, fast):
    """Every weight is finite, but what comes of them is not; no answer is put down."""
    from safetensors.torch import load_file, save_file

    weights = load_file(own_checkpoint / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"] *= 1e30
    save_file(weights, own_checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert run.main([command[0], str(own_checkpoint), *command[2:], "--fast", fast, "--batch-size", "1"]) == 2
    said = capsys.readouterr().err
    assert "The model's numbers are NaN or infinite from the language model on (model.layers.0.mlp" in said
    assert not [path for path in tmp_path.glob("a.jsonl*") if path.suffix == ".jsonl" and path.read_text()]
