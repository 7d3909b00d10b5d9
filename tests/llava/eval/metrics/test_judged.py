import pytest

from llava.eval.metrics import judged

RULES = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"Rate ({kind})."} for kind in ("conv", "detail")}
QUESTIONS = [
    {"question_id": 0, "image": "001.jpg", "text": "Where?", "category": "conv"},
    {"question_id": 1, "image": "001.jpg", "text": "Describe.", "category": "detail"},
]
CONTEXTS = [{"id": "001", "image": "001.jpg", "caption": ["A hill.", "The sea."]}]
REFERENCES = [{"question_id": i, "text": f"reference {i}", "answer_id": f"r{i}"} for i in (0, 1)]
PREDICTIONS = [{"question_id": i, "text": f"model {i}"} for i in (1, 0)]


def test_mmvet_answers():
    rows = [{"question_id": 0, "text": "x"}, {"question_id": "v1_1", "text": "y"}, {"question_id": 0, "text": "z"}]
    assert judged.mmvet_answers(rows) == {"v1_0": "z", "v1_1": "y"}


def test_mmvet_prompt_ends_with_a_row_to_complete():
    prompt = judged.mmvet_prompt("Table\n--- | ---\n", "What is x?", "-1<AND>-5", "x = 3")
    assert prompt == "Table\n--- | ---\n\nWhat is x? | -1 <AND> -5 | x = 3 | "


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.7", 0.7),
        ("1.0 |", 1.0),
        ("0", 0.0),
        ("1.5", None),
        ("-0.1", None),
        ("good", None),
        ("", None),
        ("nan", None),
    ],
)
def test_parse_grade(text, grade):
    assert judged.parse_grade(text) == grade


def test_mmvet_score_by_hand():
    questions = {
        "v1_0": {"capability": ["ocr", "math"]},
        "v1_1": {"capability": ["rec"]},
        "v1_2": {"capability": ["rec", "know"]},
    }
    grades = {"v1_0": {"model": ["m", "m"], "score": [1.0, 0.5]}, "v1_1": {"score": [0.1, 0.2]}}
    result = judged.mmvet_score(questions, grades)
    assert (result.total, result.std) == (30.0, 6.7)  # of 1.1 / 3 and 0.7 / 3; the third question has no grades
    assert result.capabilities == {"rec": 7.5, "ocr": 75.0, "know": 0.0, "math": 75.0}  # rec: (0.05 + 0.1) / 2
    assert list(result.capabilities) == ["rec", "ocr", "know", "math"]


def test_mmvet_errors_give_the_numbers():
    questions = {"v1_0": {"capability": ["rec"]}, "v1_1": {"capability": ["rec"]}}
    with pytest.raises(ValueError, match=r"1 of 1 answers are to none of the 2 questions.*v1_9"):
        judged.mmvet_score(questions, {"v1_9": {"score": [1.0]}})
    with pytest.raises(ValueError, match=r"graded once per run; found \[1, 2\] grades"):
        judged.mmvet_score(questions, {"v1_0": {"score": [1.0]}, "v1_1": {"score": [1.0, 0.0]}})
    for nothing in ({}, {"v1_0": {"score": []}}):
        with pytest.raises(ValueError, match="graded once per run"):
            judged.mmvet_score(questions, nothing)


def test_llava_bench_reviews():
    first, second = judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, PREDICTIONS, RULES)
    assert first.prompt == (
        "[Context]\nA hill.\nThe sea.\n\n[Question]\nWhere?\n\n"
        "[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nmodel 0\n\n[End of Assistant 2]\n\n"
        "[System]\nRate (conv).\n\n"
    )
    assert second.reviewed("9 6\nBecause.") == {
        "id": 2,
        "question_id": 1,
        "answer1_id": "r1",
        "answer2_id": 1,
        "category": "llava_bench_detail",
        "content": "9 6\nBecause.",
        "tuple": [9.0, 6.0],
    }


def test_a_caption_may_be_one_text():
    contexts = [{"image": "001.jpg", "caption": "A hill."}]
    reviews = judged.llava_bench_reviews(QUESTIONS, contexts, REFERENCES, PREDICTIONS, RULES)
    assert reviews[0].prompt.startswith("[Context]\nA hill.\n\n[Question]")


def test_what_a_review_lacks_is_named():
    with pytest.raises(ValueError, match=r"question 0 \(1 of 2\) has no context and no prediction"):
        judged.llava_bench_reviews(QUESTIONS, [], REFERENCES, PREDICTIONS[:1], RULES)
    rules = {"llava_bench_conv": RULES["llava_bench_conv"]}
    with pytest.raises(ValueError, match=r"question 1 \(2 of 2\) has no rule"):
        judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, PREDICTIONS, rules)
    predictions = [*PREDICTIONS, {"question_id": 7, "text": "x"}]
    with pytest.raises(ValueError, match="1 of 3 answers are to none of the 2 questions"):
        judged.llava_bench_reviews(QUESTIONS, CONTEXTS, REFERENCES, predictions, RULES)


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 7.5\nThe first ...", [8, 7.5]),
        ("8,7.5", [8, 7.5]),
        ("8, 7.5", [-1, -1]),
        ("8 7.5 ", [-1, -1]),
        ("Scores: 8", [-1, -1]),
        ("\n8 7.5", [-1, -1]),
        ("nan 7", [-1, -1]),
        ("8 inf", [-1, -1]),
        ("", [-1, -1]),
    ],
)
def test_parse_scores(review, scores):
    assert judged.parse_scores(review) == scores


def test_llava_bench_score_by_hand():
    rows = [
        {"question_id": 0, "category": "llava_bench_conv", "tuple": [9, 1]},
        {"question_id": 0, "category": "llava_bench_conv", "tuple": [9, 6]},  # the last counts
        {"question_id": 1, "category": "llava_bench_conv", "tuple": [8.0, 8.0]},
        {"question_id": 2, "category": "llava_bench_detail", "tuple": [-1, -1]},
        {"question_id": 3, "category": "llava_bench_detail", "tuple": [9, 7]},
    ]
    result = judged.llava_bench_score(rows)
    assert result.categories["llava_bench_conv"] == (8.5, 7.0)
    assert result.categories["llava_bench_detail"] == (4, 3)
    ratios = {name: score.ratio for name, score in result.categories.items()}
    assert ratios == {"all": 80.0, "llava_bench_conv": 82.4, "llava_bench_detail": 75.0}
    assert result.failed == 1


def test_means_are_rounded_before_they_are_divided():
    pairs = [(0.004, 0.005)] * 2 + [(0.004, 0.004)]  # means 0.004 and 0.004667, rounded to 0.005
    rows = [{"question_id": i, "category": "c", "tuple": pair} for i, pair in enumerate(pairs)]
    assert judged.llava_bench_score(rows).categories["all"].ratio == 125.0  # 116.7 without


def test_llava_bench_without_reviews_or_reference():
    with pytest.raises(ValueError, match="no reviews"):
        judged.llava_bench_score([])
    row = {"question_id": 0, "category": "c", "tuple": [0, 5]}
    assert judged.llava_bench_score([row]).categories["all"].ratio is None  # ZeroDivisionError in the published script
