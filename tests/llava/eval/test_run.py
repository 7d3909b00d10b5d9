import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from llava.eval import run
from llava.eval.options import EvalOptions
from llava.inference.budget import budget_name
from llava.inference.embedded import playground
from visionzip_patch import VisionZipConfig, visionzip


@pytest.fixture
def no_model(monkeypatch):
    """From here on, loading a model is a failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    def forbid():
        monkeypatch.setattr("llava.inference.loading.load_pretrained_model", refuse)

    return forbid


def test_every_option_of_the_command_is_read():
    asked = set(vars(run.parse_arguments(["textvqa"]))) - {"verbose"}  # which `run_command` reads
    assert asked == {field.name for field in fields(EvalOptions)}


def result_of(path):
    return json.loads(Path(f"{path}.result.json").read_text())


def test_a_checkpoint_is_asked_in_its_own_template(tiny_llava, ascii_tokenizer, llama_3, benchmark, tmp_path, caplog):
    qwen = ascii_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>")
    unmarked = ascii_tokenizer()
    cases = [("llama", llama_3, "<|begin_of_text|>"), ("qwen", qwen, "<|im_start|>system\nYou are a helpful")]
    for name, (family, tokenizer, begin) in enumerate([*cases, ("mistral", unmarked, "[INST] <image>")]):
        folder, out = tmp_path / str(name), tmp_path / f"out-{name}"
        tiny_llava(family).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert not caplog.records
        assert run.main(["textvqa", str(folder), *benchmark.flags, "--limit", "3", "--out", str(out)]) == 0
        assert result_of(out / "full-first-3.jsonl")["settings"]["prompt"].startswith(begin)
    assert "mistral_instruct is assumed" in caplog.text
    assert "--conv-mode" in caplog.text
    command = ["textvqa", str(tmp_path / "0"), *benchmark.flags, "--limit", "3", "--conv-mode", "qwen_2"]
    assert run.main([*command, "--out", str(tmp_path / "asked")]) == 0
    prompt = result_of(tmp_path / "asked/full-first-3.jsonl")["settings"]["prompt"]
    assert prompt.startswith("<|im_start|>system\nYou are a helpful")


def test_full_and_zipped_side_by_side(checkpoint, benchmark, tmp_path, read_rows, capsys):
    out = tmp_path / "out"
    budget = ["--dominant", "54", "--contextual", "10", "--compare-full"]
    assert run.main(["textvqa", checkpoint, *benchmark.flags, *budget, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    for name, tokens in (("full", 576), ("54+10", 64)):
        file = out / f"{name}.jsonl"
        rows, result = read_rows(file), result_of(file)
        assert [row["metadata"] for row in rows] == [{"row": i, "image_tokens": tokens} for i in range(12)]
        assert result["tokens_per_image"] == {"mean": tokens, "min": tokens, "max": tokens}
        assert (result["questions"], result["answered"], result["skipped"]) == (12, 12, [])
        assert result["timing"]["questions"] == 12
        assert result["timing"]["seconds"] > 0
        assert any(line.split()[1:4:2] == [name, str(tokens)] and str(file) in line for line in table.splitlines())
    assert result["settings"]["visionzip"]["dominant"] == 54
    assert result["settings"]["dtype"] == "float32"


def test_the_score_is_that_of_the_metric(checkpoint, benchmark, tmp_path, read_rows):
    file = tmp_path / "a.jsonl"
    command = ["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(file)]
    assert run.main(command) == 0
    annotation = json.loads(benchmark.annotation_file.read_text())
    for entry, row in zip(annotation["data"][:3], read_rows(file), strict=False):
        assert row["text"]
        entry["answers"] = [row["text"]] * 10  # right by definition: 3 of 12
    benchmark.annotation_file.write_text(json.dumps(annotation))
    assert run.main(command) == 0
    assert result_of(file)["scores"] == {"accuracy": pytest.approx(25.0)}


def test_a_finished_run_is_scored_without_a_model(checkpoint, benchmark, tmp_path, no_model, capsys):
    command = ["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(tmp_path / "a.jsonl")]
    assert run.main(command) == 0
    before, result = (tmp_path / "a.jsonl").read_bytes(), result_of(tmp_path / "a.jsonl")
    assert result["timing"]["questions"] == 12
    no_model()
    assert run.main(command) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert result_of(tmp_path / "a.jsonl") == result  # how long it took and on what is not forgotten
    assert "12 of 12 questions are answered already" in capsys.readouterr().err
    assert run.main([*command, "--overwrite"]) == 70
    assert "a model was loaded" in capsys.readouterr().err


def test_ctrl_c_and_going_on_give_the_same_answers(
    checkpoint, benchmark, tmp_path, monkeypatch, read_rows, capsys, caplog
):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    command = ["textvqa", checkpoint, *benchmark.flags, "--batch-size", "5", "--answers-file"]
    assert run.main([*command, str(whole)]) == 0

    from llava.eval import generate

    ask, asked = generate.generate_batches, []

    def interrupted(model, tokenizer, questions, *args):
        asked.extend(questions)
        yield next(ask(model, tokenizer, questions, *args))
        raise KeyboardInterrupt

    def counted(model, tokenizer, questions, *args):
        asked.extend(questions)
        yield from ask(model, tokenizer, questions, *args)

    monkeypatch.setattr(generate, "generate_batches", interrupted)
    assert run.main([*command, str(stopped)]) == 130
    assert capsys.readouterr().err.endswith("Stopped.\n")
    assert f"4 of 12 answers are kept in {stopped}." in caplog.text
    assert not Path(f"{stopped}.result.json").exists()
    kept = read_rows(stopped)
    assert len(kept) == 4

    asked.clear()
    monkeypatch.setattr(generate, "generate_batches", counted)
    assert run.main([*command, str(stopped)]) == 0
    first, second = read_rows(whole), read_rows(stopped)
    assert [(row["text"], row["metadata"]) for row in first] == [(row["text"], row["metadata"]) for row in second]
    assert sorted([*asked, *(row["prompt"] for row in kept)]) == sorted(row["prompt"] for row in first)  # none twice
    assert {row["answer_id"] for row in kept} <= {row["answer_id"] for row in second}
    assert result_of(stopped)["timing"]["questions"] == 12  # what was answered before took its time, too
    assert not Path(f"{stopped}.time.json").exists()


def test_another_budget_does_not_mix(checkpoint, benchmark, tmp_path, no_model, capsys):
    command = ["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(tmp_path / "a.jsonl")]
    assert run.main(command) == 0
    no_model()
    assert run.main([*command, "--dominant", "20", "--contextual", "3"]) == 2
    assert "made with other settings" in capsys.readouterr().err


def test_a_budget_in_the_checkpoint_is_used_and_said(loaded, benchmark, tmp_path, capsys):
    from copy import deepcopy

    tokenizer, model, _ = loaded
    carrier = visionzip(deepcopy(model), dominant=9, contextual=2)
    carrier.save_pretrained(tmp_path / "zipped")
    tokenizer.save_pretrained(tmp_path / "zipped")
    command = ["textvqa", str(tmp_path / "zipped"), *benchmark.flags, "--limit", "2", "--out", str(tmp_path / "out")]
    assert run.main(command) == 0
    assert "carries one, which is used: 9+2 tokens per crop" in capsys.readouterr().err
    assert result_of(tmp_path / "out/9+2-first-2.jsonl")["tokens_per_image"]["max"] == 11


def test_tokens_per_image_of_an_anyres_model(golden, benchmark, tmp_path):
    """image0 is shown as base crop and tiles; the budget is shared out over them, and the real count is reported."""
    command = ["textvqa", str(golden / "models/llava-v1.6-tiny"), *benchmark.flags, "--limit", "2", "--compare-full"]
    assert run.main([*command, "--tokens-per-image", "160", "--out", str(tmp_path)]) == 0
    full, zipped = (
        result_of(tmp_path / f"{name}-first-2.jsonl")["tokens_per_image"]["mean"] for name in ("full", "160-per-image")
    )
    assert full > 1000
    assert 150 < zipped <= 160


def test_embedded_model_needs_no_arguments(tmp_path, capsys):
    assert run.main(["textvqa", "--limit", "8", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert result_of(tmp_path / "full-first-8.jsonl")["tokens_per_image"]["mean"] == 64
    assert result_of(tmp_path / "6+1-first-8.jsonl")["tokens_per_image"]["mean"] == 7
    assert "| full " in table
    assert "| 6+1 " in table


def test_embedded_model_starts_again(tmp_path):
    command = ["textvqa", "--limit", "4", "--out", str(tmp_path)]
    for _ in range(2):
        assert run.main(command) == 0
        assert result_of(tmp_path / "full-first-4.jsonl")["timing"]["questions"] == 4


def test_embedded_model_replaces_only_answers_of_the_same_settings(benchmark, tmp_path, no_model, capsys):
    """Those of the user's own questions are nothing to be thrown away."""
    command = ["textvqa", "--limit", "4", "--out", str(tmp_path / "out")]
    signs = str(playground() / "checkpoints/llava-signs")
    budgets = ["--dominant", "6", "--contextual", "1", "--compare-full"]
    assert run.main(["textvqa", signs, *command[1:], *benchmark.flags, *budgets]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    no_model()
    assert run.main(command) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_damaged_result_is_written_anew(checkpoint, benchmark, tmp_path, capsys):
    command = ["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(tmp_path / "a.jsonl")]
    assert run.main(command) == 0
    for content in ("{", "[1]"):
        (tmp_path / "a.jsonl.result.json").write_text(content)
        assert run.main(command) == 0
        assert "a.jsonl.result.json was damaged, and is written anew" in capsys.readouterr().err
        assert result_of(tmp_path / "a.jsonl")["answered"] == 12


def test_playground_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (playground() / "data/eval/signs").is_dir()
    (tmp_path / "playground").mkdir()
    assert playground() == Path("playground")


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (None, "full"),
        (VisionZipConfig(54, 10), "54+10"),
        (VisionZipConfig(54, 10, merge="mean"), "54+10-mean"),
        (VisionZipConfig(tokens_per_image=160), "160-per-image"),
        (VisionZipConfig(54, 10, selector="random"), "54+10-random"),
        (VisionZipConfig(54, 10, merge="mean", selector="random", seed=3), "54+10-mean-random-seed3"),
    ],
)
def test_budgets_have_different_names(budget, name):
    assert budget_name(budget) == name


def start(arguments, **environment):
    command = [sys.executable, "-m", "llava.eval.run", "textvqa", *arguments]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_resumes_after_kill_9(checkpoint, benchmark, tmp_path, read_rows):
    file = tmp_path / "a.jsonl"
    arguments = [checkpoint, *benchmark.flags, "--batch-size", "1", "--answers-file", str(file)]
    process = start(arguments)
    while not (file.exists() and file.read_bytes().count(b"\n") >= 3):
        assert process.poll() in (None, 0), process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1].splitlines()
    assert 3 <= len(kept) <= 12  # all, if it was faster than the kill
    with file.open("ab") as torn:
        torn.write(b'{"question_id": "ima')

    assert run.main(["textvqa", *arguments]) == 0
    rows = read_rows(file)
    assert [row["metadata"]["row"] for row in rows] == list(range(12))
    ids = {row["answer_id"] for row in rows}
    assert {json.loads(line)["answer_id"] for line in kept} <= ids


@pytest.mark.slow
def test_torchrun_shares_a_run(checkpoint, benchmark, tmp_path, read_rows):
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    assert run.main(["textvqa", checkpoint, *benchmark.flags, "--answers-file", str(alone)]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        *launcher,
        "-m",
        "llava.eval.run",
        "textvqa",
        checkpoint,
        *benchmark.flags,
        "--answers-file",
        str(shared),
    ]
    for extra in ([], ["--overwrite"]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| full") == 1
        assert [row["text"] for row in read_rows(shared)] == [row["text"] for row in read_rows(alone)]
        assert result_of(shared)["timing"]["processes"] == 2
    assert sorted(path.name for path in tmp_path.glob("shared*")) == [
        "shared.jsonl",
        "shared.jsonl.meta.json",
        "shared.jsonl.result.json",
    ]


def test_the_embedded_run_overwrites_only_answers(tmp_path, capsys):
    """Without a checkpoint a finished run begins again, but what is no answer file is safe, and so are finished answers
    from a request that cannot be met."""
    precious = tmp_path / "notes.md"
    precious.write_text("mine\n")
    assert run.main(["textvqa", "--limit", "2", "--answers-file", str(precious)]) == 2
    assert precious.read_text() == "mine\n"
    assert "--overwrite" in capsys.readouterr().err

    arguments = ["textvqa", "--limit", "2", "--out", str(tmp_path / "out")]
    assert run.main(arguments) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run.main([*arguments, "--dominant", "600", "--contextual", "100"]) == 2
    assert "700 tokens" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert run.main(arguments) == 0
