import argparse
import json
import re
from pathlib import Path

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.perf.sizes import ModelSize
from llava.train import bench
from llava.train.bench import PLAIN, VARIANTS, StepMeasurement, main, make_batch, make_model, to_markdown

OPTIONS = argparse.Namespace(batch_size=2, text_tokens=60, labelled=9, dominant=20, contextual=4)
BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    vision = {"tower_hidden": 16, "tower_intermediate": 32, "tower_layers": 3, "tower_heads": 2}
    small = ModelSize(hidden=32, intermediate=64, layers=2, heads=2, kv_heads=2, vocab=50, **vision)
    monkeypatch.setitem(bench.SIZES, "small", small)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_way_does_what_its_name_says(variant, monkeypatch):
    model = make_model("small", "cpu", torch.float32)
    tower, rows, slots = model.get_vision_tower(), [], []
    batch = make_batch(model, variant, OPTIONS, "cpu", torch.float32)
    model.lm_head.register_forward_hook(lambda module, given, logits: rows.append(logits.shape[:-1].numel()))
    model.model.layers[0].register_forward_hook(lambda module, given, output: slots.append(given[0].shape[1]))
    monkeypatch.setattr(tower, "hidden_states", counted := Counted(tower.hidden_states))
    out = model(**batch, loss_only=variant.labelled_logits)
    out.loss.backward()
    tokens = 60 + (24 if variant.zipped else 576)
    assert slots == [tokens]
    assert rows == [2 * 9 if variant.labelled_logits else 2 * tokens]
    assert counted.calls == (not variant.cached)
    assert tower.is_loaded is not variant.cached
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    ]
    assert (batch["labels"] != IGNORE_INDEX).sum() == 2 * 9


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def test_cached_features_give_the_same_loss():
    losses = []
    for name in ("+ no gradient checkpointing", "+ cached features"):
        torch.manual_seed(3)
        model = make_model("small", "cpu", torch.float32)
        batch = make_batch(model, BY_NAME[name], OPTIONS, "cpu", torch.float32)
        losses.append(model(**batch, loss_only=True).loss)
    torch.testing.assert_close(*losses)


def test_work_is_counted_in_the_process_that_does_it(capsys):
    flops = {}
    for variant in VARIANTS:
        options = ["--only", variant.name, "--steps", "1", "--device", "cpu", "--text-tokens", "60", "--labelled", "9"]
        assert main([*options, "--dominant", "20", "--contextual", "4", "--batch-size", "2"]) == 0
        flops[variant] = StepMeasurement(**json.loads(capsys.readouterr().out.splitlines()[-1])).tflops
    assert list(flops.values()) == sorted(flops.values(), reverse=True)
    assert len(set(flops.values())) == len(VARIANTS)


def test_the_table_compares_with_the_plain_way_and_tells_who_had_no_memory():
    results = {variant.name: [StepMeasurement([1.0, 2.0, 3.0], 4.0, 1.0, 320, 2.0)] for variant in VARIANTS}
    results["+ cached features"] = [StepMeasurement([0.5], 3.0, 1.0, 320, 1.0)]
    results["all tokens, plain"] = []
    lines = to_markdown(results, batch_size=4).splitlines()
    assert "out of memory" in lines[2]
    assert lines[-1] == "| + cached features | 320 | 8.00 (8.00 – 8.00) | 4.00 | 0.25 | 2.00 | 3.00 |"
    assert PLAIN.name in lines[3]


def test_the_documentation_shows_the_last_run():
    docs = Path(__file__).parents[3] / "docs"
    shown = re.search(r"<!-- bench -->\n(.*)\n<!-- /bench -->", (docs / "TRAINING.md").read_text(), re.DOTALL)
    assert shown[1] + "\n" == (docs / "bench/cpu/training.md").read_text()
