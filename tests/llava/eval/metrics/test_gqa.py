import pytest

from llava.eval.metrics import gqa


def question(answer, structural="query", balanced=True):
    return {"answer": answer, "isBalanced": balanced, "types": {"structural": structural}}


def answers(**texts):
    return [{"question_id": name, "text": text} for name, text in texts.items()]


QUESTIONS = {
    "a": question("red"),
    "b": question("yes", "verify"),
    "c": question("no", "logical"),
    "d": question("dog"),
    "e": question("left", "choose"),
    "f": question("blue", balanced=False),
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", "yes"), ("yes...", "yes"), ("Yes. ", "yes. "), ("the dog.", "the dog"), ("T-Shirt", "t-shirt"), ("", "")],
)
def test_parse_answer(text, answer):
    assert gqa.parse_answer(text) == answer


def test_scores_by_hand():
    result = gqa.score(QUESTIONS, answers(a="Red.", b="Yes", c="yes", d="the dog", e="left"))
    assert result.overall == (3, 5)
    assert result.overall.accuracy == 3 / 5
    assert result.binary == (2, 3)
    assert result.open == (1, 2)


def test_an_unbalanced_question_does_not_count():
    texts = {"a": "red", "b": "yes", "c": "no", "d": "dog", "e": "left"}
    assert gqa.score(QUESTIONS, answers(**texts)) == gqa.score(QUESTIONS, answers(**texts, f="blue"))


def test_the_last_of_several_answers_counts_and_ids_may_be_numbers():
    rows = [{"question_id": 7, "text": text} for text in ("red", "blue")]
    assert gqa.score({"7": question("red")}, rows).overall == (0, 1)
    assert gqa.score({"7": question("blue")}, rows).overall == (1, 1)


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match="2 of GQA's 5 balanced questions have no prediction, for instance d, e"):
        gqa.score(QUESTIONS, answers(a="", b="", c=""))
    with pytest.raises(ValueError, match="1 of 2 predictions answer none of GQA's 6 questions, for instance x"):
        gqa.score(QUESTIONS, answers(a="red", x="red"))
