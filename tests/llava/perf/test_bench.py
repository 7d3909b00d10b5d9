"""The benchmark measures what it says, on models small enough to measure in a moment."""

import gc
import json

import pytest
import torch

from llava.inference.decoding import Decoding
from llava.perf.bench import __main__ as main
from llava.perf.bench import growth, report, stages, workload
from llava.perf.bench.published import PublishedTower
from llava.perf.bench.timing import Timing, compare, peak_of
from llava.perf.devices import Device
from llava.perf.sizes import SIZES, ModelSize, build_model
from visionzip_patch import zipped

CPU = torch.device("cpu")
MICRO = ModelSize(
    **{"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "kv_heads": 2, "vocab": 1024},
    **{"tower_hidden": 16, "tower_intermediate": 32, "tower_layers": 3, "tower_heads": 2, "patch_size": 42},
    crops=5,
)


@pytest.fixture(autouse=True)
def quick_collections():
    """The benchmark collects garbage between measurements; what other tests have left is not looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def micro(monkeypatch):
    """A shape that the command line knows as tiny."""
    monkeypatch.setitem(SIZES, "tiny", MICRO)


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = build_model(MICRO, CPU, torch.float32)
    model.generation_config.eos_token_id = None
    processor = model.get_vision_tower().image_processor
    return stages.Setting("micro", model, processor, MICRO, CPU, torch.float32, 40, 4, 0.0)


def cells(table: str) -> list[list[str]]:
    """Of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_published_way_keeps_the_same_tokens(tiny_tower):
    tower = tiny_tower(num_hidden_layers=5)
    pixels = torch.randn(3, 3, 56, 56)
    tower.reducer = None
    with torch.no_grad():
        theirs = PublishedTower(tower, 6, 3)(pixels)
        with zipped(Holder(tower), dominant=6, contextual=3):
            ours = tower.features(pixels)
    torch.testing.assert_close(theirs.tokens, ours.tokens, atol=1e-5, rtol=1e-4)
    assert torch.equal(theirs.position, ours.position)
    assert theirs.side == ours.side


class Holder:
    """As much of a model as `zipped` needs."""

    def __init__(self, tower):
        self.tower, self.config = tower, type("Config", (), {})()

    def get_vision_tower(self):
        return self.tower


def test_compare_takes_turns_and_gives_the_median(clock):
    watch, calls = clock("llava.perf.bench.timing"), []

    def way(name, seconds):
        def call():
            calls.append(name)
            watch.sleep(seconds * len(calls))

        return lambda: call

    found = compare({"a": way("a", 0.5), "b": way("b", 2.0)}, CPU, patience=0.0)
    assert calls[4:] == ["a", "b"] * 3
    assert found["a"][:4] == (3.5, 2.5, 4.5, 3)  # calls 5, 7 and 9
    assert found["b"][:4] == (16.0, 12.0, 20.0, 3)


def test_what_runs_out_of_memory_is_left_out():
    def fail():
        raise torch.OutOfMemoryError

    found = compare({"large": lambda: fail, "larger": fail, "small": lambda: int}, CPU, patience=0.0)
    assert found["large"] is found["larger"] is None
    assert found["small"].calls == 3


def test_peak_memory_of_a_call_is_seen():
    def allocate():
        torch.ones(30_000_000).sum()

    if (peak := peak_of(allocate, CPU)) is None:
        pytest.skip("this system does not say")
    assert 100e6 < peak < 200e6


def test_stages_count_tokens_and_times(setting):
    variants = stages.variants_of(MICRO, [(6, 1), (12, 2)], 1, ["static"])
    assert [variant.name for variant in variants] == [
        *("all tokens", "all tokens, static", "6+1, published", "6+1", "6+1, static", "12+2, static"),
    ]
    device = Device("made up", 1e10, 1e10, 1e10, 1e10, 1e-5)
    rows = stages.measure_batch(setting, variants, 2, device)
    # 5 crops of 64 patches; a 2 x 2 grid of 8 x 8 patches has 16 rows, each with its newline
    assert [row.tokens for row in rows] == [64 + 16 * 17, 64 + 16 * 17, 35, 35, 35, 70]
    for row in rows:
        assert all(isinstance(timing, Timing) for timing in row.stages.values())
        assert row.per_token > 0
        assert row.kv_bytes == 2 * 2 * 2 * 32 * 4 * (row.tokens + 40)
    assert rows[0].costs["prefill"].flops > 4 * rows[4].costs["prefill"].flops
    assert rows[0].costs["select + merge"].flops == 0
    assert cells(report.work_table(rows))[0][:2] == ["all tokens", "2"]
    text = report.stages_table(rows) + report.calculation_table(rows) + report.goals_table(rows, [], [], is_gpu=False)
    assert text.count("6+1, published") == 2

    failed = [rows[0]._replace(stages={**rows[0].stages, "answer": None}, per_token=None)]
    assert "out of memory" in report.stages_table(failed)
    assert "out of memory" in report.work_table(failed)


def test_all_ways_give_the_same_answer(setting):
    variants = stages.variants_of(MICRO, [(6, 1)], 1, ["static", "graphs"])
    images = [stages.sample_image(MICRO)]
    answers = {}
    for variant in variants:
        published = PublishedTower(setting.model.get_vision_tower(), *variant.budget) if variant.published else None
        answers[variant.name] = stages.Request(setting, variant, images, published).generate(6).tolist()
    for zip_or_not in (True, False):
        group = [answers[variant.name] for variant in variants if (variant.budget is None) == zip_or_not]
        assert all(answer == group[0] for answer in group)


def test_loads_have_the_shape_of_the_benchmarks(tmp_path):
    names = workload.draw_images(tmp_path, 3)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    pope = workload.pope_shaped(tmp_path, names, Decoding())
    assert (pope.images, len(pope.questions)) == (3, 54)
    assert len({question.images for question in pope.questions[:3]}) == 3  # an image's questions lie far apart
    text = workload.textvqa_shaped(tmp_path, names, Decoding())
    assert [question.images for question in text.questions] == [("0.jpg",), ("1.jpg",), ("1.jpg",), ("2.jpg",)]


def test_goals_say_what_was_met():
    runs = [
        workload.WorkloadRun("POPE-shaped", "m", "all tokens, upstream's way", 2, 36, 4, 30.0, None),
        workload.WorkloadRun("POPE-shaped", "m", "all tokens, ours", 2, 36, 36, 5.0, 100.0),
        workload.WorkloadRun("POPE-shaped", "m", "6+1, upstream's way", 2, 36, 4, 20.0, None),
        workload.WorkloadRun("POPE-shaped", "m", "6+1, ours", 2, 36, 36, 2.0, 100.0),
    ]
    turns = [growth.Growth("m", "turns of a chat", "turn", (10, 20), (1.0, 1.2))]
    goals = cells(report.goals_table([], runs, turns, is_gpu=False))
    assert [line[2:] for line in goals] == [["15", "yes"], ["1.2", "no"]]
    assert cells(report.workload_table(runs))[-1][-3:] == ["10", "15", "100.0"]


def test_the_command_writes_all_it_has(micro, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "double_processes", lambda: growth.Growth("m", "processes", "run", (1, 2), (2.0, 1.0)))
    device = Device("made up", 1e10, 1e10, 1e10, 1e10, 1e-5)
    monkeypatch.setattr("llava.perf.measure.measure_device", lambda *_: device)
    out = tmp_path / "out"
    options = ["--shape", "tiny", "--quick", "--patience", "0", "--images", "2", "--sample", "2", "--answer", "3"]
    assert main.main([*options, "--budgets", "6+1", "--text", "40", "--device", "cpu", "--out", str(out)]) == 0
    written = capsys.readouterr().out
    assert (out / "bench.md").read_text() == written
    for title in ("a request, ms", "measured ÷ calculated", "whole runs", "Growth", "Goals"):
        assert title in written
    content = json.loads((out / "bench.json").read_text())
    assert [row["way"] for row in content["stages"]] == [
        "all tokens",
        "all tokens, static",
        "6+1, published",
        "6+1",
        "6+1, static",
    ]
    assert content["stages"][0]["stages"]["tower"]["seconds"] > 0
    assert {run["load"] for run in content["workload"]} == {"POPE-shaped", "TextVQA-shaped"}
    assert all(run["same"] in (None, 100.0) for run in content["workload"])
    assert len(content["growth"]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "54"], "is no budget; write 54+10"),
        (["--answer", "1"], "ask for 2 or more"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["no/such/folder"], "no/such/folder"),
        (["--shape", "huge"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, capsys, micro):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is one")
    try:
        status = main.main([*options, "--quick", "--out", str(tmp_path)])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err
