import math

import pytest

from llava.eval.metrics import mmbench

ANIMALS = {"A": "dog", "B": "cat", "C": "teddy bear", "D": "bird"}


def question(index, answer, texts):
    cells = dict(zip("ABCD", [*texts, "", ""], strict=False))
    return {"index": index, "question": "Which?", "hint": "", **cells, "answer": answer} | {
        "category": "action",
        "image": "base64",
        "source": "web",
        "l2-category": "perception",
        "comment": "",
        "split": "dev",
    }


def answers(texts):
    return [{"question_id": index, "text": text} for index, text in texts.items()]


ROWS = [
    question(5, "A", ["dog", "cat", "bird"]),
    question(1_000_005, "C", ["cat", "bird", "dog"]),
    question(2_000_005, "B", ["bird", "dog", "cat"]),
    question(6, "B", ["left", "right"]),
    question(1_000_006, "A", ["right", "left"]),
    question(7, "A", ["yes", "no"]),
    question(1_000_007, "B", ["no", "yes"]),
]
RIGHT = {5: "A", 1_000_005: "C", 2_000_005: "B", 6: "B", 1_000_006: "A", 7: "A", 1_000_007: "B"}


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. cat", "B"),
        ("The answer is C", "C"),
        ("B and B", "B"),
        ("A or B", None),
        ("b", None),
        ("E", None),
        ("BD", None),
        ("A", "A"),
        ("A. dog", "A"),
        ("A dog sits", "A"),
        ("A cat is sitting there", "B"),  # an article: the option's text decides
        ("A horse is sitting there", None),
        ("It is a Teddy Bear", "C"),
        ("a dog and a cat", None),
        ("答案是 B", "B"),
        ("答案是B。", None),
        ("", None),
    ],
)
def test_parse_choice(text, choice):
    assert mmbench.parse_choice(text, ANIMALS) == choice


def test_an_option_inside_another_is_a_tie():
    assert mmbench.parse_choice("11", {"A": "1", "B": "11"}) is None
    assert mmbench.parse_choice("1", {"A": "1", "B": "11"}) == "A"
    assert mmbench.parse_choice("一只狗", {"A": "猫", "B": "狗"}) == "B"


@pytest.mark.parametrize("empty", [None, "", "nan", "None", math.nan])
def test_options_end_at_the_first_empty_cell(empty):
    assert mmbench.options_of({"A": "x", "B": 2, "C": empty, "D": "y"}) == {"A": "x", "B": "2"}


def test_a_letter_that_is_not_offered_is_no_choice():
    assert mmbench.score(ROWS, answers(RIGHT | {6: "C"})).circular == (2, 3)


def test_circular_needs_every_rotation_and_vanilla_the_original():
    result = mmbench.score(ROWS, answers(RIGHT | {2_000_005: "A", 6: "left"}))
    assert result.circular == (1, 3)
    assert result.vanilla == (2, 3)
    assert mmbench.score(ROWS[::-1], answers(RIGHT)).circular == (3, 3)


def test_a_missing_prediction_is_wrong():
    texts = {index: text for index, text in RIGHT.items() if index != 1_000_006}
    assert mmbench.score(ROWS, answers(texts)) == ((2, 3), (3, 3))


def test_the_last_of_several_answers_counts_and_indices_may_be_strings():
    rows = [row | {"index": str(row["index"])} for row in ROWS]
    assert mmbench.score(rows, [*answers({"6": "A"}), *answers(RIGHT)]).circular == (3, 3)
    assert mmbench.score(rows, [*answers(RIGHT), *answers({"6": "A"})]).circular == (2, 3)


def test_submission_has_the_columns_of_the_official_table():
    table = mmbench.submission(ROWS, answers({6: "B", 5: "A. dog"}))
    assert [row["prediction"] for row in table] == ["A. dog", None, None, "B", None, None, None]
    assert list(table[0]) == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert table[3] == {"index": 6, "question": "Which?", "A": "left", "B": "right", "C": "", "D": ""} | {
        "prediction": "B",
        "answer": "B",
        "split": "dev",
    }
    test_split = [{name: value for name, value in ROWS[0].items() if name != "answer"}]
    assert list(mmbench.submission(test_split, [])[0]) == [name for name in table[0] if name != "answer"]


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match="1 of 2 predictions answer none of MMBench's 7 rows, for instance 9"):
        mmbench.score(ROWS, answers({5: "A", 9: "A"}))
    with pytest.raises(ValueError, match="none of MMBench's 7 rows"):
        mmbench.submission(ROWS, answers({9: "A"}))
    with pytest.raises(ValueError, match="1 of 7 rows of MMBench have no answer"):
        mmbench.score([ROWS[0] | {"answer": ""}, *ROWS[1:]], answers(RIGHT))
