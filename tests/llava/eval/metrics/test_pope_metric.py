import json
import math
from pathlib import Path

import pytest

from llava.eval.metrics import pope

CASES = json.loads((Path(__file__).parents[3] / "golden/json/pope.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES)
def test_case_equals_the_golden_one(case):
    assert len(case["answers"]) == 60
    assert [pope.parse_answer(answer) for answer in case["answers"]] == case["parsed"]
    result = pope.score(case["answers"], case["labels"])
    assert dict(zip(("TP", "FP", "TN", "FN"), result, strict=True)) == case["counts"]
    assert result.accuracy == pytest.approx(case["Accuracy"], rel=1e-6)
    assert result.precision == pytest.approx(case["Precision"], rel=1e-6)
    assert result.recall == pytest.approx(case["Recall"], rel=1e-6)
    assert result.f1 == pytest.approx(case["F1 score"], rel=1e-6)
    assert result.yes_ratio == pytest.approx(case["Yes ratio"], rel=1e-6)
    assert result.report() + "\n" == case["stdout"]


def test_ratios_without_a_divisor_are_defined():
    all_no = pope.score(["no", "no"], ["no", "yes"])  # ZeroDivisionError in the published script
    assert (all_no.accuracy, all_no.precision, all_no.recall, all_no.f1, all_no.yes_ratio) == (0.5, 0, 0, 0, 0)
    assert pope.score(["no"], ["no"]).recall == 0
    nothing = pope.score([], [])
    assert math.isnan(nothing.accuracy)
    assert math.isnan(nothing.yes_ratio)
    assert "Accuracy: nan" in nothing.report()


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match="1 answers and 2 labels"):
        pope.score(["yes"], ["yes", "no"])
    with pytest.raises(ValueError, match="maybe"):
        pope.score(["yes"], ["maybe"])
