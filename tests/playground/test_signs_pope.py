"""The yes/no questions about the signs are true, and the committed ones are what the command writes."""

import json
import shutil

from playground.signs.make_pope import ANSWERS_FOLDER, LISTS, QUESTIONS_FILE, make_pope
from playground.signs.make_textvqa import DEFAULT_OUT, SIGNS_FILE


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_committed_questions_are_what_the_command_writes(tmp_path):
    shutil.copy(DEFAULT_OUT / SIGNS_FILE, tmp_path)
    assert make_pope(tmp_path) == 3 * 2 * 128
    for name in (QUESTIONS_FILE, *(f"{ANSWERS_FOLDER}/coco_pope_{name}.json" for name in LISTS)):
        assert (tmp_path / name).read_bytes() == (DEFAULT_OUT / name).read_bytes()


def test_answers_are_true():
    scenes = json.loads((DEFAULT_OUT / SIGNS_FILE).read_text())
    asked = read(DEFAULT_OUT / QUESTIONS_FILE)
    assert len({question["question_id"] for question in asked}) == len(asked)
    chosen = {}
    for name in LISTS:
        questions = [question for question in asked if question["category"] == name]
        answers = read(DEFAULT_OUT / ANSWERS_FOLDER / f"coco_pope_{name}.json")
        for question, answer in zip(questions, answers, strict=True):
            assert question["text"].startswith(answer["text"])
            assert question["image"] == answer["image"]
            colour = answer["text"].split()[3]
            present = {sign["colour"] for sign in scenes[question["image"].removesuffix(".png")]["signs"]}
            assert (answer["label"] == "yes") == (colour in present)
        labels = [answer["label"] for answer in answers]
        assert labels.count("yes") == labels.count("no") == 128
        chosen[name] = {answer["text"] for answer in answers if answer["label"] == "no"}
    assert len(chosen["popular"]) < len(chosen["random"])  # few colours are the most common
