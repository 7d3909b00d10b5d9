"""The questions with choices are true, and the committed ones are what the command writes."""

import json
import shutil

from llava.eval.tasks.scienceqa import read_scienceqa
from playground.signs.make_scienceqa import PROBLEMS_FILE, QUESTIONS_FILE, SPLITS_FILE, make_scienceqa
from playground.signs.make_textvqa import ANNOTATION_FILE, DEFAULT_OUT, SIGNS_FILE


def test_the_committed_questions_are_what_the_command_writes(tmp_path):
    shutil.copy(DEFAULT_OUT / SIGNS_FILE, tmp_path)
    assert make_scienceqa(tmp_path) == 516
    for name in (QUESTIONS_FILE, PROBLEMS_FILE, SPLITS_FILE):
        assert (tmp_path / name).read_bytes() == (DEFAULT_OUT / name).read_bytes()


def test_answers_are_those_of_the_set_without_choices():
    asked = read_scienceqa(DEFAULT_OUT / QUESTIONS_FILE)
    problems = json.loads((DEFAULT_OUT / PROBLEMS_FILE).read_text())
    true = json.loads((DEFAULT_OUT / ANNOTATION_FILE).read_text())["data"]
    places = []
    for question, entry in zip(asked, true, strict=True):
        problem = problems[question.question_id]
        choices = problem["choices"]
        assert question.images == (f"{entry['image_id']}.png",)
        assert choices[problem["answer"]] == entry["answers"][0]
        assert len(set(choices)) == 4
        listed = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
        assert question.text == "\n".join([entry["question"], *listed])
        places.append(problem["answer"])
    assert min(map(places.count, range(4))) > 100  # no letter is right much more often than another
