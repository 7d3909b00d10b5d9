import json
import math
from pathlib import Path

import pytest

from llava.eval.metrics import scienceqa

GOLDEN = json.loads((Path(__file__).parents[3] / "golden/json/scienceqa.json").read_text())


def test_scores_equal_the_golden_table():
    result = scienceqa.score(GOLDEN["problems"], GOLDEN["split"], GOLDEN["predictions"])
    assert result.overall.count == len(GOLDEN["split"]) == 34
    assert result.analysis() == GOLDEN["output_file"]
    summary, golden = result.summary(), GOLDEN["output_result"]
    assert summary.pop("acc") == pytest.approx(golden["acc"], rel=1e-6)
    assert summary == {name: value for name, value in golden.items() if name != "acc"}
    assert result.report() + "\n" == GOLDEN["stdout"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. a dog", "B"),
        ("B.", "FAILED"),
        ("F", "FAILED"),
        ("So: The answer is C.", "C"),
        ("", "FAILED"),
        ("The answer is C", "FAILED"),
        ("The answer is C. The answer is D.", "FAILED"),
        ("b", "FAILED"),
    ],
)
def test_parse_choice(text, letter):
    assert scienceqa.parse_choice(text) == letter


def test_a_letter_that_is_not_offered_is_no_choice():
    problem = {"choices": ["x", "y"], "answer": 1}
    result = scienceqa.score({"1": problem}, ["1"], [{"question_id": "1", "prompt": "<image>", "text": "C"}])
    assert result.choices == {"1": -1}
    assert result.with_image == (0, 1)


def test_ratios_without_a_divisor_are_nan():
    problem = {"choices": ["x", "y"], "answer": 1}
    text_only = scienceqa.score({"1": problem}, ["1"], [{"question_id": "1", "prompt": "q", "text": "B"}])
    assert (text_only.overall, text_only.with_image) == ((1, 1), (0, 0))
    assert text_only.report().endswith("IMG-Accuracy: nan%")  # ZeroDivisionError in the published script
    assert math.isnan(scienceqa.score({}, [], []).overall.accuracy)


def test_ids_may_be_numbers_in_the_answers():
    problem = {"choices": ["x", "y"], "answer": 0}
    result = scienceqa.score({"7": problem}, ["7"], [{"question_id": 7, "prompt": "q", "text": "A"}])
    assert result.overall == (1, 1)


def test_unknown_question_is_an_error():
    with pytest.raises(ValueError, match=r"1 of the split's 1 questions are not in problems\.json, for instance 5"):
        scienceqa.score({}, ["5"], [])
