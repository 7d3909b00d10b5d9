import csv
import json
import re
from pathlib import Path

import pytest
import torch

from llava.analysis import sweep
from llava.analysis.in_memory import object_patches
from llava.eval import run
from llava.inference.preprocess import Picture


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    assert sweep.main(["--limit", "16", "--seeds", "2", "--out", str(out)]) == 0
    with (out / "sweep.csv").open() as file:
        return out, list(csv.DictReader(file))


def test_every_setting_is_in_the_files(swept):
    out, rows = swept
    settings = [(row["selector"], int(row["tokens"]), int(row["dominant"]), int(row["contextual"])) for row in rows]
    splits = [(32, 27, 5), (16, 14, 2), (8, 7, 1), (4, 3, 1), (2, 2, 0)]
    expected = [(name, *split) for split in splits for name in ("visionzip", "random", "uniform")]
    assert settings == [("full", 64, 64, 0), *expected]
    saved = json.loads((out / "sweep.json").read_text())
    assert [row["accuracy"] for row in saved["rows"]] == pytest.approx(
        [float(row["accuracy"]) for row in rows], abs=1e-3
    )
    assert (saved["questions"], saved["random_seeds"]) == (16, 2)
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_attention_finds_the_signs(swept):
    _, rows = swept
    for tokens in ("2", "4", "8"):
        on_signs = {row["selector"]: float(row["on_signs"]) for row in rows if row["tokens"] == tokens}
        assert on_signs["visionzip"] > 30 + max(on_signs["random"], on_signs["uniform"])


def test_accuracy_is_that_of_the_evaluation(swept, tmp_path):
    _, rows = swept
    budget = ["--dominant", "7", "--contextual", "1"]
    assert run.main(["textvqa", "--limit", "16", *budget, "--out", str(tmp_path)]) == 0
    for name, selector, tokens in (("full", "full", "64"), ("7+1", "visionzip", "8")):
        result = json.loads((tmp_path / f"{name}-first-16.jsonl.result.json").read_text())
        (row,) = [row for row in rows if (row["selector"], row["tokens"]) == (selector, tokens)]
        assert result["scores"]["accuracy"] == pytest.approx(float(row["accuracy"]), abs=1e-3)


def test_markdown_has_a_line_per_budget():
    rows = [sweep.SweepRow("full", 64, 64, 0, 90.0, 90.0, 90.0, 17.0)]
    rows += [sweep.SweepRow(name, 8, 7, 1, 80.0, 79.0, 81.0, 50.0) for name in ("visionzip", "random", "uniform")]
    lines = sweep.to_markdown(rows, 64).splitlines()
    assert lines[2].endswith("| VisionZip | random | uniform |")
    assert lines[-1] == "| 8 | 7 + 1 | 80.0 (50) | 80.0 (50) | 80.0 (50) |"
    assert lines[-2].startswith("| 64 (all 64 patches) | | 90.0 (17)")
    plain = sweep.to_markdown([row._replace(on_signs=None) for row in rows], 64).splitlines()
    assert plain[-1] == "| 8 | 7 + 1 | 80.0 | 80.0 | 80.0 |"


def test_any_selectors_of_the_table_can_be_compared(capsys):
    assert sweep.parse_arguments(["--selectors", "uniform, visionzip"]).selectors == ["uniform", "visionzip"]
    assert sweep.parse_arguments([]).selectors == ["visionzip", "random", "uniform"]
    rows = [sweep.SweepRow("full", 64, 64, 0, 90.0, 90.0, 90.0, None)]
    rows += [sweep.SweepRow("uniform", tokens, tokens, 0, 80.0, 80.0, 80.0, None) for tokens in (32, 16)]
    table = sweep.to_markdown(rows, 64).splitlines()
    assert table[2:3] + table[5:] == [
        "| tokens per image | kept + merged | uniform |",
        "| 32 | 32 + 0 | 80.0 |",
        "| 16 | 16 + 0 | 80.0 |",
    ]
    for wrong, message in (("best", "'best' is no selector; choose of visionzip"), ("random,random", "twice")):
        with pytest.raises(SystemExit):
            sweep.parse_arguments(["--selectors", wrong])
        assert message in capsys.readouterr().err


def test_signs_on_another_grid_are_left_out(tiny_tower):
    tower = tiny_tower()
    picture = Picture(torch.zeros(3, 56, 56), (56, 56))
    scene = {"width": 56, "height": 56, "patch": 14, "on_sign": [0, 5]}
    (on_object,) = object_patches({"a": scene}, {"a.png": picture}, tower)
    assert on_object.nonzero().flatten().tolist() == [0, 5]
    assert len(on_object) == 16
    assert object_patches({"a": {**scene, "width": 112}}, {"a.png": picture}, tower) is None
    crops = Picture(torch.zeros(2, 3, 56, 56), (56, 112))
    assert object_patches({"a": scene}, {"a.png": crops}, tower) is None


def test_the_documented_results_are_not_where_results_go_by_default(monkeypatch, tmp_path):
    (tmp_path / "playground").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (
        sweep.main(["--limit", "2"]) == 2
    )  # there is no embedded model here; the folder is made before it is looked for
    assert [path.name for path in (tmp_path / "playground/results/sweep").iterdir()] == ["llava-signs"]
    assert not (tmp_path / "docs").exists()


def test_the_readme_shows_what_the_sweep_wrote():
    root = Path(__file__).parents[3]
    written = json.loads((root / "docs/embedded/sweep.json").read_text())
    rows = [sweep.SweepRow(**row) for row in written["rows"]]
    shown = re.search(r"<!-- sweep -->\n(.*)\n<!-- /sweep -->", (root / "README.md").read_text(), re.DOTALL)
    assert shown[1] == sweep.to_markdown(rows, patches=64)
