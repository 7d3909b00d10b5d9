import pytest

from llava.eval.metrics import vqa


def annotation(question, answers, kind="other"):
    return {
        "question_id": question,
        "answer_type": kind,
        "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers, start=1)],
    }


def vizwiz(image, answers, kind="other"):
    given = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    return {"image": image, "question": "?", "answer_type": kind, "answerable": 1, "answers": given}


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("hello!", "hello"),
        ("coca-cola", "coca cola"),
        ("coca- cola", "coca cola"),
        ("b - c-d", "b cd"),  # a mark that is beside a space once vanishes everywhere
        ("red,white", "red white"),  # "redwhite" on TextVQA's server
        ("red, white-blue", "red white blue"),
        ("1,000", "1000"),
        ("1,000 black-white", "1000 blackwhite"),  # "1000 black white" on TextVQA's server
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("2:50 pm", "2:50 pm"),
        ("nike's", "nike's"),  # "nike 's" on TextVQA's server
        ("A", ""),
    ],
)
def test_normalization(answer, normal):
    assert vqa.normalize_answer(answer) == normal


def test_soft_accuracy_by_number_of_matches():
    scores = [vqa.soft_accuracy("nike", ["nike"] * n + ["puma"] * (10 - n)) for n in range(11)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)


def test_answers_are_normalized_only_where_people_differ():
    assert vqa.soft_accuracy("Yes!", ["yes"] * 10) == 0
    assert vqa.soft_accuracy("Yes!", ["yes"] * 9 + ["no"]) == 1
    assert vqa.soft_accuracy("the cat", ["the cat"] * 10) == 1
    assert vqa.soft_accuracy(" yes\n", ["yes", "yes\t"] * 5) == 1  # space around an answer is no difference
    assert vqa.soft_accuracy("cat", ["the cat", "a cat"] + ["dog"] * 8) == pytest.approx(0.6)


def test_vizwiz_normalizes_the_prediction_alone():
    assert vqa.vizwiz_accuracy("Unanswerable.", ["unanswerable"] * 10) == 1
    assert vqa.vizwiz_accuracy("coca-cola", ["coca-cola"] * 9 + ["coke"]) == 0
    assert vqa.vizwiz_accuracy("the left", ["left"] * 3 + ["the left"] * 7) == pytest.approx(0.9)


def test_scores_overall_and_by_type():
    annotations = [
        annotation(1, ["yes"] * 10, "yes/no"),
        annotation(2, ["no"] * 8 + ["yes"] * 2, "yes/no"),
        annotation(3, ["2"] * 3 + ["3"] * 7, "number"),
        annotation(4, ["red"] * 5 + ["blue"] * 5),
    ]
    answers = [
        {"question_id": 1, "answer": "yes"},
        {"question_id": 2, "answer": "no"},
        {"question_id": 2, "answer": "yes"},  # the last counts
        {"question_id": "3", "answer": "two"},
    ]
    result = vqa.score(annotations, answers)
    assert result.scores == pytest.approx({"1": 1, "2": 0.6, "3": 0.9, "4": 0})
    assert result.accuracy == pytest.approx(2.5 / 4)
    assert result.answer_types == pytest.approx({"number": 0.9, "other": 0, "yes/no": 0.8})


def test_vizwiz_scores():
    annotations = [
        vizwiz("VizWiz_val_00000000.jpg", ["unanswerable"] * 9 + ["soup"], "unanswerable"),
        vizwiz("VizWiz_val_00000001.jpg", ["soup"] * 2 + ["tomato soup"] * 8),
        vizwiz("VizWiz_val_00000002.jpg", ["yes"] * 10, "yes/no"),
    ]
    questions = [{"question_id": i, "image": row["image"]} for i, row in enumerate(annotations)]
    predictions = [{"question_id": i, "text": text} for i, text in enumerate(["Unanswerable", "Soup", "No"])]
    result = vqa.score_vizwiz(annotations, vqa.vizwiz_submission(questions, predictions))
    assert result.answer_types == pytest.approx({"other": 0.6, "unanswerable": 1, "yes/no": 0})
    assert result.accuracy == pytest.approx(1.6 / 3)


def test_submission_lists_every_question_in_its_normal_form():
    questions = [{"question_id": 262144005}, {"question_id": 2}, {"question_id": 3}]
    predictions = [
        {"question_id": 2, "text": "first"},
        {"question_id": 2, "text": "The Nike's, Red"},
        {"question_id": 3, "text": "A"},
    ]
    assert vqa.submission(questions, predictions) == [
        {"question_id": 262144005, "answer": ""},
        {"question_id": 2, "answer": "nike 's red"},
        {"question_id": 3, "answer": ""},
    ]


def test_score_of_a_submission_counts_a_capital_letter_as_the_server_does():
    annotations, predictions = [annotation(1, ["yes"] * 10)], [{"question_id": 1, "text": "Yes"}]
    assert vqa.score(annotations, vqa.submission([{"question_id": 1}], predictions)).accuracy == 1


def test_vizwiz_submission_is_whole():
    questions = [{"question_id": "a", "image": "1.jpg"}, {"question_id": "b", "image": "2.jpg"}]
    predictions = [{"question_id": "b", "text": "Two cats."}, {"question_id": "a", "text": "no"}]
    assert vqa.vizwiz_submission(questions, predictions) == [
        {"image": "1.jpg", "answer": "no"},
        {"image": "2.jpg", "answer": "2 cats"},
    ]
    with pytest.raises(ValueError, match="1 of VizWiz's 2 questions have no prediction, for instance b"):
        vqa.vizwiz_submission(questions, predictions[1:])


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match=r"2 of 2 answers are to none of the 1 questions.*question_id.*8, 9"):
        vqa.score([annotation(1, ["a"] * 10)], [{"question_id": i, "answer": "a"} for i in (8, 9)])
    with pytest.raises(ValueError, match=r"question_id 7: .*10 human answers per question; got 3"):
        vqa.score([annotation(7, ["a"] * 3)], [{"question_id": 7, "answer": "a"}])
    with pytest.raises(ValueError, match=r"1 of 1 answers .*their image is, for instance, x\.jpg"):
        vqa.score_vizwiz([], [{"image": "x.jpg", "answer": "a"}])
    with pytest.raises(ValueError, match="1 of 1 answers are to none of the 0 questions"):
        vqa.submission([], [{"question_id": 1, "text": "a"}])
