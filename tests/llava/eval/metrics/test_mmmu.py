import pytest

from llava.eval.metrics import mmmu

OPTIONS = ["red fox", "blue whale", "green frog", "white owl"]


def choice(question, answer, options=OPTIONS):
    return {"id": question, "question_type": "multiple-choice", "options": str(options), "answer": answer}


def open_question(question, answer):
    return {"id": question, "question_type": "open", "options": "[]", "answer": answer}


def said(question, text):
    return {"question_id": question, "text": text}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("b", None),
        ("B. blue whale", "B"),  # MMMU's own script finds nothing here
        ("(A) or rather (C)", "C"),
        ("(C), not B ", "C"),  # brackets come before letters alone
        ("A or B , so A it is", "A"),
        ("A. red fox B. blue whale", "A"),  # neither stands between spaces: the first letter, not the last
        ("DNA is it", "A"),  # any word that ends with the letter
        ("E", None),  # not offered
        ("It must be the Blue Whale there", "B"),
        ("the blue whale", None),  # not longer than five words
        ("not the white owl but the red fox", "A"),
        ("", None),
    ],
)
def test_find_choice(text, letter):
    assert mmmu.find_choice(text, OPTIONS) == letter


def test_letters_are_drawn_from_those_offered_and_always_the_same():
    names = [f"validation_Art_{i}" for i in range(1, 31)]
    letters = [mmmu.draw_choice(name, OPTIONS) for name in names]
    assert set(letters) == set("ABCD")
    assert [mmmu.draw_choice(name, OPTIONS) for name in reversed(names)] == letters[::-1]
    assert letters[:5] == ["C", "C", "C", "C", "A"]  # on every machine


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3.14159", {3.14}),
        ("The answer is 12,000 m.", {"12,000 m", 12000.0, 0.0}),
        ("so x = 1.2e3", {1200.0, 1.0, 3.0}),
        ("I = 5 A\nso the current is five", {"five"}),  # "=" counts on the last line alone
        ("the current I = 5 A", {"5 a", 5.0}),
        ("Tampa", {"tampa"}),
        ("it is x", {" x", "x "}),
        ("First it is 3. Then it is 4.", {4.0}),  # sentences are not parted
    ],
)
def test_parse_open(text, found):
    assert mmmu.parse_open(text) == found


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("about 8.404 V", ["8.4"], True),
        ("8.41", ["8.4"], False),
        ("The answer is $2,000,000", ["2000000"], True),
        ("-120", ["-120"], True),
        ("The city is Tampa, by the sea", ["Tampa", "Florida"], True),
        ("Miami", ["Tampa", "Florida"], False),
        ("it is maximal", ["x"], False),  # one letter needs a space beside it
        ("it is x squared", ["x"], True),
        ("5 apples", ["5 apples or more"], False),
    ],
)
def test_is_right(text, answers, right):
    assert mmmu.is_right(text, answers) is right


def test_scores_overall_and_by_discipline():
    questions = [
        choice("validation_Art_1", "B"),
        choice("validation_Art_2", "A"),
        choice("validation_Art_Theory_1", "C", ["x", "y", "z"]),
        open_question("validation_Geography_4", "['Tampa', 'Florida']"),
        open_question("validation_Math_1", "[0, 1]"),
        open_question("validation_Finance_10", "2000000"),
    ]
    predictions = [
        said("validation_Art_1", "A"),
        said("validation_Art_1", "B"),  # the last counts
        said("validation_Art_2", "B"),
        said("validation_Art_Theory_1", "C"),
        said("validation_Geography_4", "in Florida"),
        said("validation_Math_1", "the interval is [0, 1]"),
    ]
    result = mmmu.score(questions, predictions)
    assert result.overall == (4, 6)  # the mean of the subjects would be 0.7
    assert result.disciplines == {"Art and Design": (2, 3), "Business": (0, 1), "Science": (2, 2)}


def test_a_letter_that_is_not_found_is_drawn():
    question = choice("validation_Music_7", mmmu.draw_choice("validation_Music_7", OPTIONS))
    assert mmmu.score([question], [said("validation_Music_7", "no idea")]).overall == (1, 1)


def test_lists_may_be_lists():
    question = choice("validation_Music_7", "B") | {"options": OPTIONS}
    assert mmmu.score([question], [said("validation_Music_7", "I think it is the blue whale")]).overall == (1, 1)


def test_thirty_subjects_in_six_disciplines():
    assert len(mmmu.DISCIPLINES) == 6
    assert len(mmmu.DISCIPLINE_OF) == 30


def test_errors_give_the_numbers():
    with pytest.raises(ValueError, match=r"1 of 1 answers are to none of the 0 questions.*validation_Art_1"):
        mmmu.score([], [said("validation_Art_1", "A")])
    with pytest.raises(ValueError, match="'validation_Cooking_1' names none of MMMU's 30 subjects"):
        mmmu.score([choice("validation_Cooking_1", "A")], [])
