"""The command: files for one image, frames and an average; what it says of bad requests."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.visualize import KEPT
from llava.visualize.__main__ import main
from llava.visualize.crops import view_of
from llava.visualize.frames import frames_of
from llava.visualize.render import average
from visionzip_patch import visionzip

SIGNS = Path(__file__).parents[3] / "playground/data/eval/signs/train_images"
SIGN = SIGNS / "sign000000000.png"


def data_of(path: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.mark.parametrize("model", [None, "playground/checkpoints/llava-signs"])
def test_one_image(tmp_path, capsys, monkeypatch, model):
    """Named or not, the embedded model has its usual budget; and the image survives beside its pictures."""
    monkeypatch.chdir(Path(__file__).parents[3])
    image = tmp_path / "sign.png"
    image.write_bytes(SIGN.read_bytes())
    assert main([str(image), "--out", str(tmp_path), "--size", "96", *(["--model", model] if model else [])]) == 0
    assert "7 tokens for 64 patches: CLS + 5 patches kept, 1 contextual" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"sign.png", "sign-visionzip.html", "sign-visionzip.png"}
    assert image.read_bytes() == SIGN.read_bytes()
    assert Image.open(tmp_path / "sign-visionzip.png").width > 3 * 96
    (crop,) = data_of(tmp_path / "sign-visionzip.html")["views"][0]["crops"]
    assert crop["token"].count(KEPT) == 5


def test_frames_of_a_folder(tmp_path):
    command = [str(SIGNS), "--frames", "3", "--size", "100", "--dominant", "9", "--contextual", "0"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    views = data_of(tmp_path / "train_images-visionzip.html")["views"]
    assert [view["title"] for view in views] == [f"sign{i:09}" for i in (21, 64, 106)]
    assert all(view["size"] == [96, 96] for view in views)  # whole patches
    assert len({tuple(view["scale"]) for view in views}) == 1


def test_the_average_is_that_of_the_images(tmp_path, tiny_llava):
    model = visionzip(tiny_llava(), 5, 2)
    processor = model.get_vision_tower().image_processor
    frames = list(frames_of(SIGNS, 3))
    (score, kept), count = average(model, processor, iter(frames))
    singles = [view_of(model, processor, image).crops[0] for _, image in frames]
    assert count == 3
    assert score.crops[0].score == pytest.approx(np.mean([crop.score for crop in singles], axis=0))
    assert kept.crops[0].score == pytest.approx(100 * np.mean([crop.token == KEPT for crop in singles], axis=0))

    assert main([*(str(SIGNS / f"{name}.png") for name, _ in frames), "--out", str(tmp_path), "--average"]) == 0
    views = data_of(tmp_path / "frames-visionzip-average.html")["views"]
    assert [view["title"] for view in views] == ["mean score", "how often kept"]
    assert Image.open(tmp_path / "frames-visionzip-average.png").width > 2 * 480


def test_nothing_of_others_is_replaced(tmp_path, capsys):
    """Not the image itself, by its own name or a folder's, and no other picture of that name; an earlier run's is."""
    image, other = tmp_path / "a.png", tmp_path / "frames-visionzip.png"
    for path in (image, other):
        path.write_bytes(SIGN.read_bytes())
    assert main([str(image), str(other), "--out", str(tmp_path)]) == 2
    assert f"{other} would be written over, and {other} is read" in capsys.readouterr().err

    folder = tmp_path / "shots"
    folder.mkdir()
    inside = folder / "shots-visionzip.png"
    inside.write_bytes(SIGN.read_bytes())
    assert main([str(folder), "--out", str(folder)]) == 2
    assert f"{inside} would be written over" in capsys.readouterr().err

    assert main([str(image), str(SIGN), "--out", str(tmp_path)]) == 2
    assert f"{other}: already there, and not what this command has written" in capsys.readouterr().err
    assert other.read_bytes() == inside.read_bytes() == SIGN.read_bytes()

    for _ in range(2):
        assert main([str(image), "--out", str(tmp_path), "--size", "64"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], r"nowhere\.png: cannot be read"),
        (["{tmp}/broken.png"], r"broken\.png: not an image"),
        (["{tmp}"], r"no pictures in this folder"),
        (["{tmp}/film.mp4"], r"pip install -e '\.\[video\]'"),
        ([str(SIGN), "--model", "{tmp}/nothing"], r"nothing"),
        ([str(SIGN), "--dominant", "60", "--contextual", "10"], r"asks for 70 tokens.*gives 65"),
        ([str(SIGN), "--dominant", "60"], r"go together"),
        ([str(SIGN), "--out", "{tmp}/broken.png/x"], r"cannot write here"),
    ],
)
def test_bad_requests_end_with_a_reason(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "av", None)
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("broken.png", "film.mp4"):
        (tmp_path / name).write_bytes(b"no picture")
    places = {"{tmp}": str(folder)}
    filled = [places.get(text, text.replace("{tmp}", str(tmp_path))) for text in ["--out", "{tmp}", *arguments]]
    assert main(filled) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(folder.iterdir()) == []


def test_a_checkpoint_that_goes_on_a_base_is_read_with_it(monkeypatch, capsys):
    read = []

    def read_config(checkpoint, model_base=None):
        read.append((checkpoint, model_base))
        raise ValueError("far enough")

    monkeypatch.setattr("llava.visualize.render.read_config", read_config)
    assert main([str(SIGN), "--model", "adapter", "--model-base", "base"]) == 2
    assert read == [("adapter", "base")]
    assert capsys.readouterr().err == "far enough\n"


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "in pixels" in text
    assert text.count("default") > 5
