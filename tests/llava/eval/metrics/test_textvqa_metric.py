import json
from pathlib import Path

import pytest

from llava.eval.metrics import textvqa

TABLES = Path(__file__).parents[3] / "golden/json"


def table(name):
    return json.loads((TABLES / f"{name}.json").read_text())


def test_normalization_equals_the_golden_table():
    cases = table("evalai_answer_processor")
    assert len(cases) > 150
    for case in cases:
        assert textvqa.normalize_answer(case["input"]) == case["output"], case["input"]


def test_normalization_keeps_no_state():
    before = textvqa.normalize_answer("two dogs dont bark")
    textvqa.normalize_answer("completely other words")
    assert textvqa.normalize_answer("two dogs dont bark") == before == "2 dogs don't bark"


def test_scores_equal_the_golden_table():
    golden = table("textvqa_accuracy")
    assert len(golden["pairs"]) == 60
    predictions = [pair["pred_answer"] for pair in golden["pairs"]]
    answers = [pair["gt_answers"] for pair in golden["pairs"]]
    result = textvqa.score(predictions, answers)
    assert result.scores == pytest.approx([pair["score"] for pair in golden["pairs"]], rel=1e-6)
    assert result.accuracy == pytest.approx(golden["overall"], rel=1e-6)
    exact = textvqa.score(predictions, answers, metric=textvqa.exact_match)
    assert exact.accuracy == pytest.approx(golden["stvqa_overall"], rel=1e-6)


def test_soft_accuracy_by_number_of_matches():
    scores = [textvqa.soft_accuracy("nike", ["nike"] * n + ["puma"] * (10 - n)) for n in range(11)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)


def test_questions_equal_the_golden_table():
    cases = table("textvqa_prompt_processor")
    assert len(cases) >= 7
    for case in cases:
        assert textvqa.question_in_prompt(case["prompt"]) == case["question"]


@pytest.mark.parametrize("prompt", ["one line", "a\nb\nc", "OCR tokens: a Question: without an end", "a\nb\nc\nd"])
def test_prompt_without_question_is_an_error(prompt):
    with pytest.raises(ValueError, match="No question found"):
        textvqa.question_in_prompt(prompt)


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match="10 human answers per question; got 3"):
        textvqa.soft_accuracy("a", ["a"] * 3)
    with pytest.raises(ValueError, match="2 predictions and 1 answers"):
        textvqa.score(["a", "b"], [["a"] * 10])
    with pytest.raises(ValueError, match="0 predictions"):
        textvqa.score([], [])
