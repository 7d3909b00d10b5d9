"""The evaluation set is reproducible, consistent in itself, and the committed one is what the command writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from playground.signs.make_textvqa import (
    ANNOTATION_FILE,
    DEFAULT_OUT,
    IMAGE_FOLDER,
    QUESTIONS_FILE,
    SIGNS_FILE,
    make_textvqa,
)
from playground.signs.scenes import HELD_OUT, make_scene
from playground.signs.train import Recipe

IMAGES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    make_textvqa(folder, seed=0, images=IMAGES)
    return folder


def _read(folder: Path) -> tuple[list[dict], list[dict], dict]:
    prompts = [json.loads(line) for line in (folder / QUESTIONS_FILE).read_text().splitlines()]
    annotations = json.loads((folder / ANNOTATION_FILE).read_text())["data"]
    return prompts, annotations, json.loads((folder / SIGNS_FILE).read_text())


def test_a_second_run_writes_the_same_bytes(made, tmp_path):
    make_textvqa(tmp_path, seed=0, images=IMAGES)
    names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert len(names) == IMAGES + 3
    for name in names:
        assert (made / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_committed_set_is_what_the_command_writes(made):
    made_prompts, made_annotations, made_signs = _read(made)
    prompts, annotations, signs = _read(DEFAULT_OUT)
    assert prompts[: len(made_prompts)] == made_prompts
    assert annotations[: len(made_annotations)] == made_annotations
    assert {name: signs[name] for name in made_signs} == made_signs
    for name in made_signs:
        # Pixels, not bytes: how PNG packs them differs between releases of Pillow.
        made_image, image = (Image.open(folder / IMAGE_FOLDER / f"{name}.png") for folder in (made, DEFAULT_OUT))
        np.testing.assert_array_equal(np.asarray(made_image), np.asarray(image))


def test_the_committed_set_is_complete_and_consistent():
    prompts, annotations, signs = _read(DEFAULT_OUT)
    assert len(signs) == 128
    assert len(prompts) == len(annotations) >= 300
    assert {path.stem for path in (DEFAULT_OUT / IMAGE_FOLDER).iterdir()} == set(signs)
    assert len({(entry["image_id"], entry["question"]) for entry in annotations}) == len(annotations)
    assert len({entry["question_id"] for entry in annotations}) == len(annotations)
    for prompt, entry in zip(prompts, annotations, strict=True):
        assert prompt["text"] == f"{entry['question']}\nAnswer the question using a single word or phrase."
        assert prompt["question_id"] == entry["image_id"] == Path(prompt["image"]).stem
        assert len(entry["answers"]) == 10
        [answer] = set(entry["answers"])
        shown = signs[entry["image_id"]]["signs"]
        by_colour = {sign["colour"]: sign["text"] for sign in shown}
        by_text = {sign["text"]: sign["colour"] for sign in shown}
        words = entry["question"].rstrip("?").split()
        if words[:2] == ["how", "many"]:
            assert answer == str(len(shown))
        elif words[1] == "color":
            assert answer == by_text[words[-1]]
        else:
            assert answer == by_colour[words[-2]]


def test_patches_on_signs_are_those_whose_pixels_are_on_signs():
    for scene in _read(DEFAULT_OUT)[2].values():
        pixels = np.zeros((scene["height"], scene["width"]))
        for sign in scene["signs"]:
            left, top, right, bottom = sign["box"]
            pixels[top:bottom, left:right] = 1
        rows, columns = (scene[side] // scene["patch"] for side in ("height", "width"))
        shares = pixels.reshape(rows, scene["patch"], columns, scene["patch"]).mean((1, 3)).flatten()
        assert scene["on_sign"] == [patch for patch, share in enumerate(shares) if share > 0.35]
        assert scene["on_sign"]


def test_training_never_reaches_the_held_out_seeds():
    recipe = Recipe()
    for stage in recipe.stages():
        assert stage.first_seed + stage.steps * recipe.batch_size <= HELD_OUT


def test_sets_of_other_seeds_show_other_scenes(tmp_path):
    make_textvqa(tmp_path, seed=3, images=1)
    [path] = (tmp_path / IMAGE_FOLDER).iterdir()
    expected = make_scene(HELD_OUT + 3_000_000).image
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


@pytest.mark.parametrize(("seed", "images"), [(-1, 1), (500, 1), (0, 0), (0, 1_000_001)])
def test_numbers_out_of_range_are_named(tmp_path, seed, images):
    with pytest.raises(ValueError, match=r"500 evaluation sets|1 to 1000000 images"):
        make_textvqa(tmp_path, seed=seed, images=images)
    assert not list(tmp_path.iterdir())
