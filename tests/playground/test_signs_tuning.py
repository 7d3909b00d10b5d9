import json
import re
from pathlib import Path

import pytest
from PIL import Image

from llava.model.builder import load_pretrained_model
from playground.signs import tuning
from playground.signs.language_model import write_language_model
from playground.signs.make_instructions import make_caption
from playground.signs.scenes import make_scene
from playground.signs.tuning import Row, draw, main, to_csv, to_markdown

ROWS = [Row(2, 2, 0, 70.0, [80.0, 82.0, 84.0], [70.0, 71.0, 72.0], [90.0, 91.0, 92.0])]


def test_the_table_has_mean_and_spread_and_what_was_regained():
    assert to_markdown(95.0, ROWS).splitlines()[-1] == (
        "| 2 | 70.0 | 82.0 (80.0 – 84.0) | 48 % | 71.0 (70.0 – 72.0) | 91.0 (90.0 – 92.0) |"
    )


def test_the_readme_shows_the_table_of_the_last_run():
    root = Path(__file__).parents[2]
    written = json.loads((root / "docs/embedded/tuning.json").read_text())
    rows = [Row(**row) for row in written["rows"]]
    shown = re.search(r"<!-- tuning -->\n(.*)\n<!-- /tuning -->", (root / "README.md").read_text(), re.DOTALL)
    assert shown[1] == to_markdown(written["full"], rows)


def test_the_csv_has_a_line_per_seed_and_the_plot_is_drawn(tmp_path):
    assert to_csv(ROWS).splitlines()[2] == "2,1,70.000,82.000,71.000,91.000"
    draw(95.0, ROWS, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500


@pytest.mark.slow
def test_a_short_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tuning, "QUESTIONS", tmp_path / "questions")
    monkeypatch.setattr(tuning, "BUDGETS", ((3, 1),))
    assert main(["--out", str(tmp_path / "out"), "--steps", "2", "--seeds", "1", "--images", "8"]) == 0
    assert "| 4 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "tuning.json").read_text())["rows"]) == 1


def test_a_caption_names_every_sign():
    scene = make_scene(5)
    record = make_caption(scene, 5)
    assert record["image"] == "sign5.png"
    question, answer = record["conversations"]
    assert question["value"] == "<image>"
    assert all(sign.colour in answer["value"] and sign.text in answer["value"] for sign in scene.signs)


def test_the_language_model_alone_speaks_as_before(tmp_path):
    write_language_model(tmp_path / "alone")
    _, alone, processor, _ = load_pretrained_model(str(tmp_path / "alone"), device="cpu")
    _, whole, _, _ = load_pretrained_model("playground/checkpoints/llava-signs", device="cpu")
    assert processor is None
    kept = {key: value for key, value in whole.state_dict().items() if key in alone.state_dict()}
    assert kept.keys() == alone.state_dict().keys()
    assert all((alone.state_dict()[key] == value).all() for key, value in kept.items())
