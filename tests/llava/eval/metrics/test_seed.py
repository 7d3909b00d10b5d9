import pytest

from llava.eval.metrics import seed


def question(name, type_id, answer):
    data_type = "image" if type_id < 10 else "video"
    return {"question_id": name, "question_type_id": type_id, "data_type": data_type, "answer": answer}


QUESTIONS = [
    question("101669", 9, "A"),
    question("7", 1, "B"),
    question("8", 1, "C"),
    question("v1", 10, "D"),
    question("v2", 10, "A"),
]


def answers(texts):
    return [{"question_id": name, "text": text} for name, text in texts.items()]


def test_scores_by_hand():
    result = seed.score(QUESTIONS, answers({101669: "A", 7: "B", 8: "B", "v1": "D", "v2": "D"}))
    assert result == ((3, 5), (2, 3), (1, 2), {1: (1, 2), 9: (1, 1), 10: (1, 2)})
    assert result.overall.accuracy == 3 / 5


@pytest.mark.parametrize("text", ["B.", "b", "B. a dog", "(B)", " B", ""])
def test_only_the_letter_alone_is_right(text):
    assert seed.score([question("7", 1, "B")], answers({7: text})).overall == (0, 1)


def test_a_missing_prediction_is_wrong():
    result = seed.score(QUESTIONS, answers({101669: "A", 7: "B", 8: "C"}))  # images alone
    assert result.image == (3, 3)
    assert result.video == (0, 2)
    assert result.overall == (3, 5)


def test_the_last_of_several_answers_counts():
    rows = [{"question_id": name, "text": text} for name, text in ((7, "A"), ("7", "B"))]
    assert seed.score([question("7", 1, "B")], rows).overall == (1, 1)


def test_unknown_question_is_an_error():
    with pytest.raises(ValueError, match="1 of 2 predictions answer none of SEED-Bench's 5 questions, for instance x"):
        seed.score(QUESTIONS, answers({7: "B", "x": "A"}))
