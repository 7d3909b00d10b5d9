"""Where the tower looks: shares are those of the attention maps, and the files hold what was measured."""

import csv
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from llava.analysis import common
from llava.analysis.attention import __main__ as attention
from llava.analysis.attention import report
from llava.analysis.attention.measure import effective_number, histogram, layer_shares, measure, top_share
from llava.analysis.attention.report import Mass, to_budgets

KINDS = ("distribution", "layers", "mass")


def read(out: Path, kind: str) -> list[dict]:
    with (out / f"attention-{kind}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.inference_mode()
def test_shares_are_those_of_eager_attention(tiny_tower, kind):
    tower, pixels = tiny_tower(kind), torch.randn(2, 3, 56, 56)
    layers = list(layer_shares(tower, pixels))
    encoder = tower.vision_tower
    assert encoder.config._attn_implementation == "sdpa"
    encoder.set_attn_implementation("eager")
    maps = encoder(pixels, output_attentions=True).attentions  # of (B, H, L, L)
    encoder.set_attn_implementation("sdpa")
    assert len(layers) == len(maps) == 3  # one more than the tower reads
    for shares, weights in zip(layers, maps, strict=True):
        scores = weights[:, :, 0, 1:].mean(1) if tower.has_cls else weights.mean((1, 2))  # (B, P)
        torch.testing.assert_close(shares, scores / scores.sum(1, keepdim=True))


def test_a_spread_has_every_crop_and_the_layer_that_is_read(tiny_tower):
    tower = tiny_tower()
    pixels = torch.randn(5, 3, 56, 56)
    spread = measure(tower, pixels.split(2))
    shares = list(layer_shares(tower, pixels))[tower.depth - 1]
    torch.testing.assert_close(spread.shares, shares.sort(descending=True).values)
    torch.testing.assert_close(spread.top[:, tower.depth - 1], top_share(shares))
    assert spread.top.shape == spread.effective.shape == (5, 3)


def test_concentration_of_known_shares():
    even, one = torch.full((1, 40), 1 / 40), torch.eye(40)[:1]
    half = torch.cat([even[:, :20] * 2, torch.zeros(1, 20)], dim=1)
    torch.testing.assert_close(top_share(torch.cat([even, one, half])), torch.tensor([0.1, 1.0, 0.2]))
    torch.testing.assert_close(effective_number(torch.cat([even, one, half])), torch.tensor([40.0, 1.0, 20.0]))


@pytest.mark.parametrize("patches", [16, 48, 64, 729])
def test_a_histogram_holds_all_patches_and_all_attention(patches):
    one = torch.eye(patches)[:1]  # a patch holds everything
    skewed = torch.rand(7, patches).pow(9).softmax(1)
    bins = histogram(torch.cat([one, skewed]))
    assert bins[0].patches_from == pytest.approx(100)
    assert bins[0].attention_from == pytest.approx(100)
    for field in ("patches", "attention"):
        assert sum(getattr(one, field) for one in bins) == pytest.approx(100)
    assert all(one.upper == after.lower for one, after in pairwise(bins))
    (last,) = [one for one in bins if one.lower <= patches < one.upper]
    assert last.patches == pytest.approx(100 / (8 * patches), rel=1e-3)
    assert last.attention == pytest.approx(100 / 8, rel=1e-3)
    (at_one,) = [one for one in histogram(torch.full((3, 64), 1 / 64)) if one.patches]
    assert (at_one.lower, at_one.patches, at_one.attention) == (1, 100, 100)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes longest."""
    monkeypatch.setattr(report, "write_figure", lambda plt, figure, path: plt.close(figure))


@pytest.mark.slow
def test_figures_of_the_embedded_model(tmp_path):
    assert attention.main(["--limit", "2", "--out", str(tmp_path)]) == 0
    for kind in KINDS:
        assert Image.open(tmp_path / f"attention-{kind}.png").width > 800


def test_the_embedded_model(tmp_path, capsys, undrawn):
    assert attention.main(["--limit", "8", "--batch-size", "3", "--out", str(tmp_path)]) == 0
    layers, masses = read(tmp_path, "layers"), read(tmp_path, "mass")
    (read_layer,) = [row for row in layers if row["is_read"] == "True"]
    assert int(read_layer["layer"]) == len(layers) - 1
    tenth = masses[5]  # of 64
    assert tenth["patches"] == "6"
    assert float(tenth["mean"]) == pytest.approx(float(read_layer["top"]), abs=0.01)
    assert float(masses[-1]["mean"]) == pytest.approx(100)
    assert len(masses) == 64
    said = capsys.readouterr().out
    assert "attention of CLS, 8 images" in said
    assert "6 + 1" in said  # 64 of 576 tokens, on 64 patches
    assert float(layers[0]["top"]) < float(read_layer["top"])  # it does concentrate


def test_crops_count_one_by_one(golden, tmp_path, capsys, undrawn):
    model = str(golden / "models/llava-v1.6-tiny")
    out = tmp_path / "out"
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 90), "red").save(folder / "one.JPG")
    assert attention.main([model, "--images", str(tmp_path / "images"), "--device", "cpu", "--out", str(out)]) == 0
    assert "3 crops" in capsys.readouterr().out
    assert float(read(out, "distribution")[0]["patches_from"]) == 100


def test_budgets_are_the_papers():
    masses = [Mass(i, 100 * math.sqrt(i / 576), 0) for i in range(1, 577)]
    ninth, *others = to_budgets(masses, SimpleNamespace(num_patches=576, has_cls=True))
    assert ninth[:4] == (64, 54, 10, 53)
    assert ninth.mass == pytest.approx(100 * math.sqrt(53 / 576))
    assert [one[:3] for one in others] == [(128, 108, 20), (192, 162, 30)]
    without = SimpleNamespace(num_patches=576, has_cls=False)
    assert [one.patches for one in to_budgets(masses, without)] == [54, 108, 162]


def test_bad_folders_are_told(tmp_path, capsys):
    def run(*arguments: str) -> str:
        assert attention.main([*arguments, "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "no pictures in this folder; looked for .png" in run()
    (tmp_path / "broken.png").write_text("no picture")
    told = run()
    assert "broken.png" in told
    assert "Take it out" in told
    assert not list((tmp_path / "out").iterdir())


def test_without_matplotlib_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    args = attention.parse_arguments(["--out", str(tmp_path / "out")])
    with pytest.raises(ImportError, match="pip install matplotlib"):
        common.begin("attention", args, {})
    assert not (tmp_path / "out").exists()


def test_tables_of_others_are_not_replaced(tmp_path):
    (tmp_path / "attention-layers.csv").write_text("mine")
    args = attention.parse_arguments(["--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"attention-layers\.csv: already there, and not what"):
        common.begin("attention", args, {"attention-layers": report.Layer})
