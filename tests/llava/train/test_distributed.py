"""Several processes learn what one does, whatever shares the work between them; and survive what one survives."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
LAUNCH = [sys.executable, "-m", "llava.utils.launch"]
STEPS, BATCH = 6, 8

pytestmark = pytest.mark.slow


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def start(flags, *where, **changes) -> subprocess.Popen:
    command = [*LAUNCH, *where, "-m", "llava.train.train", *flags(**{"max_steps": STEPS} | changes)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def train(flags, out, processes=2, **changes):
    """Run to the end. Processes may abort after all work is done, so it is the result that is looked at."""
    changes = {"per_device_train_batch_size": BATCH // processes, "group_by_modality_length": True} | changes
    done = start(flags, "--standalone", "--nproc_per_node", str(processes), output_dir=out, **changes)
    said = done.communicate(timeout=300)[1]
    assert (out / "training.json").exists(), said
    return out


def losses(out):
    return [line["loss"] for line in json.loads((out / "training.json").read_text())["history"] if "loss" in line]


def projector(out):
    return torch.load(out / "mm_projector.bin", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def expected(flags, alone):
    """What one process learns."""
    if not (alone / "training.json").exists():
        train(flags, alone, processes=1)
    return losses(alone), projector(alone)


@pytest.mark.parametrize("sharing", ["none", "zero2", "zero3", "zero3_offload"])
def test_two_processes_learn_what_one_learns(flags, tmp_path, expected, sharing):
    """Some of the batches are of text alone, on both processes or on one."""
    if sharing != "none":
        pytest.importorskip("deepspeed")
        sharing = f"configs/deepspeed/{sharing}.json"
    out = train(flags, tmp_path / "out", deepspeed=sharing)
    torch.testing.assert_close(losses(out), expected[0], rtol=1e-4, atol=1e-5)
    for key, value in projector(out).items():
        torch.testing.assert_close(value, expected[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sharing", ["none", "zero2", "zero3"])
def test_a_process_with_text_alone_does_not_stop_the_others(flags, signs_data, tmp_path, sharing):
    if sharing != "none":
        pytest.importorskip("deepspeed")
        sharing = f"configs/deepspeed/{sharing}.json"
    records = json.loads((signs_data / "data.json").read_text())
    text, seen = ([r for r in records if ("image" in r) == wanted] for wanted in (False, True))
    pairs = [record for pair in zip(text * 4, seen, strict=False) for record in pair]
    (tmp_path / "mixed.json").write_text(json.dumps(pairs))
    changes = {"per_device_train_batch_size": 1, "group_by_modality_length": False, "max_steps": None}
    out = tmp_path / "out"
    done = start(
        flags,
        *("--standalone", "--nproc_per_node", "2"),
        **changes | {"output_dir": out, "deepspeed": sharing, "data_path": tmp_path / "mixed.json"},
    )
    said = done.communicate(timeout=300)[1]
    assert (out / "training.json").exists(), said


@pytest.mark.parametrize(("processes", "sharing"), [(1, "none"), (2, "none"), (2, "zero2"), (2, "zero3")])
def test_killed_with_all_its_processes_it_goes_on_the_same(flags, tmp_path, processes, sharing):
    if sharing != "none":
        pytest.importorskip("deepspeed")
        sharing = f"configs/deepspeed/{sharing}.json"
    whole = train(flags, tmp_path / "whole", processes, deepspeed=sharing)
    out = tmp_path / "out"
    changes = {"per_device_train_batch_size": BATCH // processes, "group_by_modality_length": True}
    running = start(
        flags, "--standalone", "--nproc_per_node", str(processes), output_dir=out, deepspeed=sharing, **changes
    )
    deadline = time.monotonic() + 200
    while not (out / "checkpoint-2").exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    for rest in ("checkpoint-4", "checkpoint-6", "training.json", "mm_projector.bin"):  # if it was faster than the kill
        path = out / rest
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    train(flags, out, processes, deepspeed=sharing)
    assert losses(out) == losses(whole)
    assert all(torch.equal(value, projector(whole)[key]) for key, value in projector(out).items())


def train_on_two_machines(flags, outs, **changes) -> list[str]:
    """Two launchers that meet at an address, as on two machines; what each has said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    changes = {"per_device_train_batch_size": BATCH // 2, "group_by_modality_length": True} | changes
    nodes = []
    for rank, out in enumerate(outs):
        where = ("--nnodes", "2", "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port)
        nodes.append(start(flags, *where, "--nproc_per_node", "1", output_dir=out, **changes))
    return [node.communicate(timeout=300)[1] for node in nodes]


def test_two_machines(flags, tmp_path, expected):
    out = tmp_path / "out"
    said = train_on_two_machines(flags, [out, out])
    assert (out / "training.json").exists(), said
    torch.testing.assert_close(losses(out), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharing", ["none", "zero2", "zero3"])
def test_two_machines_without_a_shared_disk(flags, tmp_path, expected, sharing):
    """Each keeps what it needs to go on; a checkpoint that one has not finished is none."""
    if sharing != "none":
        pytest.importorskip("deepspeed")
        sharing = f"configs/deepspeed/{sharing}.json"
    outs, changes = [tmp_path / "first", tmp_path / "second"], {"deepspeed": sharing, "save_total_limit": 2}

    def assert_complete(said):
        for out in outs:
            assert (out / "training.json").exists(), said
            assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
            assert not list(out.glob(".s*"))
        assert losses(outs[0]) == losses(outs[1])
        assert all(torch.equal(value, projector(outs[0])[key]) for key, value in projector(outs[1]).items())

    assert_complete(train_on_two_machines(flags, outs, **changes))
    whole = losses(outs[0]), projector(outs[0])
    torch.testing.assert_close(whole[0], expected[0], rtol=1e-4, atol=1e-5)

    (outs[1] / ".saving-6").mkdir()
    (outs[1] / "checkpoint-6").rename(outs[1] / ".saving-6" / "checkpoint-6")
    (outs[1] / "training.json").unlink()
    said = train_on_two_machines(flags, outs, **changes)
    assert f"Going on from {outs[0] / 'checkpoint-4'}" in said[0]
    assert_complete(said)
    assert losses(outs[0]) == whole[0]
    assert all(torch.equal(value, whole[1][key]) for key, value in projector(outs[0]).items())

    shutil.rmtree(outs[1])
    said = train_on_two_machines(flags, outs, **changes)
    assert "no checkpoint in common: checkpoint-4, checkpoint-6; none" in said[0]
    assert (outs[0] / "checkpoint-6").exists()


@pytest.mark.parametrize("part", ["lora", "full"])
@pytest.mark.parametrize("sharing", ["zero2", "zero3"])
def test_the_other_parts_under_deepspeed(flags, tmp_path, part, sharing):
    pytest.importorskip("deepspeed")
    from llava.model.builder import load_pretrained_model

    changes = {"tune_mm_mlp_adapter": None, "learning_rate": 1e-4}
    if part == "lora":
        changes |= {"lora_enable": True, "lora_r": 4}
    out = train(flags, tmp_path / "out", deepspeed=f"configs/deepspeed/{sharing}.json", **changes)
    one = train(flags, tmp_path / "one", processes=1, **changes | {"lora_dropout": 0.0})
    load_pretrained_model(str(out), device="cpu")
    if part == "full":
        torch.testing.assert_close(losses(out), losses(one), rtol=1e-3, atol=1e-4)


def test_the_reason_is_the_last_word_and_its_status_the_launchers(flags, tmp_path):
    done = start(flags, "--standalone", "--nproc_per_node", "2", data_path="nowhere.json")
    said = done.communicate(timeout=120)[1]
    assert done.returncode == 2
    assert "nowhere.json" in said.splitlines()[-1]
    assert "Traceback" not in said
