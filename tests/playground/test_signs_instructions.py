"""The instruction set is reproducible, in LLaVA's format, from scenes of its own, and whole or not there at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.inference.decoding import Decoding
from llava.utils.files import drop_lock, take_lock
from playground.signs import make_instructions as module
from playground.signs.make_instructions import FIRST_SEED, IMAGE_FOLDER, RECORDS_FILE, main, make_instructions
from playground.signs.scenes import HELD_OUT, make_scene, questions
from playground.signs.tokenizer import BEFORE_IMAGE, SHORT_ANSWER, after_image
from playground.signs.train import Recipe

IMAGES = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs") / "set"
    make_instructions(folder, seed=0, images=IMAGES)
    return folder


def read(folder: Path) -> list[dict]:
    return json.loads((folder / RECORDS_FILE).read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_writes_the_same_bytes(made, tmp_path):
    assert make_instructions(tmp_path, seed=0, images=IMAGES) == len(read(made))
    assert len(contents(made)) == IMAGES + 3
    assert contents(tmp_path) == contents(made)


def test_every_answer_is_that_of_the_scene(made):
    about_images = [record for record in read(made) if "image" in record]
    pictures = {f"sign{seed}.png": seed for seed in range(FIRST_SEED, FIRST_SEED + IMAGES)}
    assert {record["image"] for record in about_images} == set(pictures)
    for record in about_images:
        human, gpt = record["conversations"]
        seed = pictures[record["image"]]
        answers = {question.text: question.answer for question in questions(make_scene(seed).signs, seed)}
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        token, question, suffix = human["value"].split("\n")
        assert (token, suffix) == (DEFAULT_IMAGE_TOKEN, SHORT_ANSWER)
        assert gpt["value"] == answers[question]


def test_pictures_are_the_scenes(made):
    for seed in range(FIRST_SEED, FIRST_SEED + IMAGES):
        picture = Image.open(made / IMAGE_FOLDER / f"sign{seed}.png")
        np.testing.assert_array_equal(np.asarray(picture), make_scene(seed).image)


def test_a_record_asks_as_the_evaluation_and_the_first_training_do(made):
    record = next(record for record in read(made) if "image" in record)
    question = record["conversations"][0]["value"].removeprefix(f"{DEFAULT_IMAGE_TOKEN}\n")
    prompt = Decoding("vicuna_v1").prompt(question)
    assert prompt == f"{BEFORE_IMAGE}{DEFAULT_IMAGE_TOKEN}{after_image(question.split(chr(10))[0])}"


def test_some_records_are_text_alone_and_hold_their_answer(tmp_path):
    total = make_instructions(tmp_path, seed=1, images=60)
    records = read(tmp_path)
    text_only = [record for record in records if "image" not in record]
    assert total == len(records) == len({record["id"] for record in records})
    assert {type(record["id"]) for record in records} == {int, str}
    assert 0.05 < len(text_only) / total < 0.08
    for record in text_only:
        human, gpt = record["conversations"]
        assert DEFAULT_IMAGE_TOKEN not in human["value"]
        assert f"says {gpt['value']}." in human["value"]


def test_questions_about_existence_are_as_often_true_as_not(tmp_path):
    make_instructions(tmp_path, seed=0, images=10)
    answers = [record["conversations"][1]["value"] for record in read(tmp_path)]
    assert answers.count("yes") == answers.count("no") == 5


def test_its_scenes_are_neither_in_the_first_training_nor_in_an_evaluation():
    recipe = Recipe()
    for stage in recipe.stages():
        assert stage.first_seed + stage.steps * recipe.batch_size <= FIRST_SEED
    assert FIRST_SEED + module.SETS * module.SEEDS_PER_SET <= HELD_OUT


def test_sets_of_other_seeds_show_other_scenes(tmp_path):
    make_instructions(tmp_path, seed=3, images=1)
    [path] = (tmp_path / IMAGE_FOLDER).iterdir()
    assert path.name == f"sign{FIRST_SEED + 3_000_000}.png"


def test_what_is_there_is_not_made_again(made, monkeypatch, capsys):
    monkeypatch.setattr(module, "make_scene", None)
    assert main(["--out", str(made), "--images", str(IMAGES)]) == 0
    assert capsys.readouterr().out.startswith(f"Already there: {len(read(made))} records")


def test_other_numbers_replace_a_set_only_when_told_to(tmp_path, capsys):
    out = tmp_path / "set"
    make_instructions(out, seed=0, images=2)
    before = contents(out)
    assert main(["--out", str(out), "--images", "1"]) == 2
    error = capsys.readouterr().err
    assert "'images': 2" in error
    assert "'images': 1" in error
    assert "--overwrite" in error
    assert contents(out) == before
    assert main(["--out", str(out), "--images", "1", "--overwrite"]) == 0
    assert len(list((out / IMAGE_FOLDER).iterdir())) == 1
    assert list(tmp_path.iterdir()) == [out]


def test_files_of_others_are_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds something else"):
            make_instructions(tmp_path, seed=0, images=1, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        make_instructions(tmp_path / "set", seed=0, images=2)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    draft = tmp_path / ".set.unfinished" / IMAGE_FOLDER
    draft.mkdir(parents=True)
    (draft / "sign1.png").write_bytes(b"half")
    make_instructions(tmp_path / "set", seed=0, images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in (tmp_path / "set" / IMAGE_FOLDER).iterdir()] == [f"sign{FIRST_SEED}.png"]


def test_two_at_once_are_one_too_many(tmp_path):
    lock = tmp_path / "set.lock"
    held = take_lock(lock)
    try:
        with pytest.raises(ValueError, match=r"Another process is writing .*set\."):
            make_instructions(tmp_path / "set", seed=0, images=1)
    finally:
        drop_lock(held, lock)


@pytest.mark.parametrize(("seed", "images"), [(-1, 1), (500, 1), (0, 0), (0, 1_000_001)])
def test_numbers_out_of_range_are_named(tmp_path, seed, images):
    with pytest.raises(ValueError, match=r"500 instruction sets|1 to 1000000 images"):
        make_instructions(tmp_path, seed=seed, images=images)
    assert not list(tmp_path.iterdir())
