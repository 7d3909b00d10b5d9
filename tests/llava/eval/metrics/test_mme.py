import pytest

from llava.eval.metrics import mme
from llava.eval.metrics.mme import Truth

SUFFIX = "\nAnswer the question using a single word or phrase."


def truths():
    """One image per subtask, two in "existence"; the first question of an image is answered yes, the other no."""
    images = [(subtask, "1.jpg") for subtask in mme.SUBTASKS] + [("existence", "2.jpg")]
    return [
        Truth(subtask, image, f"Is it {word}? Please answer yes or no.", answer)
        for subtask, image in images
        for word, answer in (("so", "Yes"), ("not so", "No"))
    ]


def rows(texts):
    """Answers as LLaVA's files have them: right ones, but for those in `texts`, (subtask, image, answer) -> text."""
    return [
        {
            "question_id": f"{subtask}/{image}",
            "prompt": question.removesuffix(" Please answer yes or no.") + SUFFIX,
            "text": texts.get((subtask, image, answer), answer),
        }
        for subtask, image, question, answer in truths()
    ]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("YES, it is", "yes"),
        ("No.", "no"),
        ("Not at all", "no"),
        ("Unknown", "other"),
        ("Know", "no"),
        (" yes", "yes"),
        ("  yes", "other"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_parse_answer(text, parsed):
    assert mme.parse_answer(text) == parsed


def test_all_right_is_2000_and_800():
    result = mme.score(truths(), rows({}))
    assert (result.perception, result.cognition, result.total) == (2000, 800, 2800)
    assert list(result.subtasks) == list(mme.SUBTASKS)


def test_scores_by_hand():
    wrong = {
        ("existence", "2.jpg", "No"): "yes",  # 3 of 4 questions, 1 of 2 images: 75 + 50
        ("OCR", "1.jpg", "Yes"): "Maybe",  # 1 of 2 questions, no image: 50
        ("code_reasoning", "1.jpg", "Yes"): "no",  # both wrong: 0
        ("code_reasoning", "1.jpg", "No"): "It is",
    }
    result = mme.score(truths(), rows(wrong))
    assert result.subtasks["existence"] == (2, 3, 1)
    assert result.subtasks["existence"].accuracy == 75
    assert result.subtasks["existence"].accuracy_plus == 50
    assert result.subtasks["OCR"] == (1, 1, 0)
    assert result.subtasks["code_reasoning"] == (1, 0, 0)
    assert result.perception == 8 * 200 + 125 + 50
    assert result.cognition == 3 * 200


def test_the_order_of_answers_and_blanks_in_prompts_do_not_matter():
    answers = rows({("OCR", "1.jpg", "Yes"): "no"})
    expected = mme.score(truths(), answers)
    assert expected.total == 2650
    spaced = [truth._replace(question=truth.question.replace(" Please", "  Please")) for truth in truths()]
    assert mme.score(spaced, answers[::-1]) == expected
    full = [answer | {"prompt": answer["prompt"].replace(SUFFIX, "  Please answer yes or no.")} for answer in answers]
    assert mme.score(truths(), full) == expected
    folders = [answer | {"question_id": answer["question_id"].replace("/1.jpg", "/images/1.png")} for answer in answers]
    assert mme.score(truths(), folders) == expected


def test_the_last_of_several_answers_counts():
    again = rows({})[0] | {"text": "no"}
    assert mme.score(truths(), [*rows({}), again]).subtasks["existence"] == (2, 3, 1)


def test_images_with_both_questions_answered_count():
    answers = rows({("count", "1.jpg", "Yes"): "no"})
    whole = mme.score(truths(), answers)
    assert whole.possible == 2800
    part = mme.score(truths(), answers[:5])  # the images of existence and count, and a half of that of position
    assert part.subtasks == {"existence": (1, 2, 1), "count": (1, 1, 0)}
    assert (part.perception, part.cognition, part.possible) == (250, 0, 400)
    last = mme.score(truths(), answers[1:])  # of existence the first image is left out
    assert last.subtasks == whole.subtasks | {"existence": (1, 2, 1)}


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match=r"of its 30 questions 15 have a prediction, and no image has two"):
        mme.score(truths(), rows({})[::2])
    other = rows({})[0] | {"prompt": "Is it other?"}
    with pytest.raises(ValueError, match=r"1 of 31 predictions answer none of MME's 30 questions.*Is it other"):
        mme.score(truths(), [*rows({}), other])
    with pytest.raises(ValueError, match=r"14 subtasks; 1 are missing \(existence\) and 1 are unknown \(smell\)"):
        mme.score([t._replace(subtask="smell") if t.subtask == "existence" else t for t in truths()], [])
    with pytest.raises(ValueError, match=r"1 of 15 images have another number: existence/1\.jpg has 1"):
        mme.score(truths()[1:], rows({}))
    with pytest.raises(ValueError, match=r"1 of 30 are not, first .*maybe"):
        mme.score([truths()[0]._replace(answer="maybe"), *truths()[1:]], rows({}))
