import json
import sys

import pytest

from llava.train import report
from llava.train.report import Throughput, smooth, summarize, write_report

HISTORY = [
    *({"step": step, "loss": 3.0 - step / 10, "learning_rate": 1e-3 / step} for step in range(1, 21)),
    {"step": 20, "train_runtime": 5.0, "train_loss": 2.0},
]
WITH_SPEED = [{**line, "samples_per_second": 8.0 + line["step"]} for line in HISTORY[:3]]


def test_throughput_is_since_the_last_reading():
    now = [100.0]
    throughput = Throughput(lambda: now[0])
    now[0] += 50  # loading, before the first step
    for _ in range(3):
        throughput.tick(16)
        now[0] += 2
    assert throughput.rate() == 8
    now[0] += 1  # saving
    throughput.tick(16)
    now[0] += 3
    assert throughput.rate() == 4


@pytest.mark.parametrize("history", [HISTORY, WITH_SPEED, HISTORY[:1]])
def test_what_is_left(tmp_path, history):
    pytest.importorskip("matplotlib")
    write_report(tmp_path, history=history, facts={"budget": "54+10"})
    assert {path.name for path in tmp_path.iterdir()} == {"training.json", "loss.png"}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "training.json").read_text())
    assert (saved["budget"], saved["history"]) == ("54+10", history)
    assert saved.items() >= summarize(history).items()


def test_summary():
    summary = summarize(HISTORY)
    assert summary["loss"] == pytest.approx({"first": 2.9, "last": 1.0, "mean_of_last_tenth": 1.05})
    assert (summary["steps"], summary["seconds"], summary["samples_per_second"]) == (20, 5.0, None)
    assert summarize(WITH_SPEED)["samples_per_second"] == 10  # the median


def test_a_run_that_logged_no_loss(tmp_path):
    write_report(tmp_path, history=HISTORY[-1:], facts={})
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]
    assert json.loads((tmp_path / "training.json").read_text())["loss"] is None


def test_without_matplotlib(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_report(tmp_path, history=HISTORY, facts={})
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]
    assert [record.message for record in caplog.records] == ["loss.png is not drawn: that needs matplotlib."]


def test_training_json_comes_last(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(report, "draw", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, history=HISTORY, facts={})
    assert not list(tmp_path.iterdir())  # it would mark the run as done


def test_smooth():
    assert smooth([1, 2, 6, 7], window=2) == [1, 1.5, 4, 6.5]
    assert smooth([1, 2, 6, 7], window=1) == [1, 2, 6, 7]


def test_facts_name_only_what_is_installed(monkeypatch):
    monkeypatch.setattr(report, "OPTIONAL", ("accelerate", "no-such-package"))
    facts = report.gather_facts()
    assert facts["versions"].keys() == {"python", "torch", "transformers", "pillow", "accelerate"}
    assert facts["processes"] == 1
    assert 0.05 < facts["peak_memory_gib"] < 200  # of a Python with torch
