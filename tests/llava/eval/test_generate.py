import pytest
import torch

from llava.conversation import conv_templates
from llava.eval import generate
from llava.eval.answers import AnswerFile
from llava.eval.generate import Decoding, answer_questions, generate_batch, make_batches, pad_left, read_picture
from llava.eval.questions import Question, missing_images, read_questions
from llava.mm_utils import load_image, process_images, tokenizer_image_token
from visionzip_patch import zipped

FOUR = Decoding(max_new_tokens=4)


def run(loaded, benchmark, path, **options):
    tokenizer, model, image_processor = loaded
    answers = AnswerFile(path, read_questions(benchmark.question_file), {})
    answer_questions(
        model, tokenizer, image_processor, answers.todo, benchmark.images, answers, **{"progress": None, **options}
    )
    return answers


def test_answers_equal_those_asked_one_by_one(loaded, benchmark, tmp_path):
    tokenizer, model, image_processor = loaded
    expected = {}
    for row, question in enumerate(benchmark.questions):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message("USER", f"<image>\n{question['text']}")
        conversation.append_message("ASSISTANT", None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
        image = load_image(benchmark.images / question["image"])
        pixels = process_images([image], image_processor, model.config)
        output = model.generate(ids, images=pixels, image_sizes=[image.size], do_sample=False, max_new_tokens=4)
        expected[row] = tokenizer.decode(output[0], skip_special_tokens=True).strip()
    assert len(set(expected.values())) > 3

    for batch_size in (1, 5):
        answers = run(loaded, benchmark, tmp_path / f"{batch_size}.jsonl", decoding=FOUR, batch_size=batch_size)
        assert {row: answer["text"] for row, answer in answers.rows.items()} == expected


def test_rows_have_upstreams_fields(loaded, benchmark, tmp_path, read_rows):
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR)
    assert answers.finish()
    rows = read_rows(tmp_path / "a.jsonl")
    assert [(row["question_id"], row["prompt"]) for row in rows] == [
        (question["question_id"], question["text"]) for question in benchmark.questions
    ]
    for number, row in enumerate(rows):
        assert set(row) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
        assert row["metadata"] == {"row": number, "image_tokens": 576}
    assert len({row["answer_id"] for row in rows}) == 12


@pytest.mark.parametrize("beams", [1, 2])
def test_image_tokens_are_counted(loaded, benchmark, beams):
    tokenizer, model, image_processor = loaded
    pictures = [read_picture(benchmark.images / f"image{i}.jpg", image_processor, model.config) for i in (0, 1)]
    decoding = Decoding(max_new_tokens=2, num_beams=beams)
    for questions in (["short?", "a longer question, so that one is padded?"], ["same", "same"]):
        with zipped(model, dominant=20, contextual=3):
            assert generate_batch(model, tokenizer, questions, pictures, decoding).image_tokens == [23, 23]
        assert generate_batch(model, tokenizer, questions, pictures, decoding).image_tokens == [576, 576]


def test_a_shared_image_is_prepared_once_per_batch(loaded, benchmark, tmp_path, monkeypatch):
    seen = []

    def counting(path, *args):
        seen.append(path.name)
        return read_picture(path, *args)

    monkeypatch.setattr(generate, "read_picture", counting)
    run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=12)
    assert sorted(seen) == [f"image{i}.jpg" for i in range(4)]


def test_a_shared_image_is_encoded_once_per_batch(loaded, benchmark, tmp_path, monkeypatch):
    _, model, _ = loaded
    encode, seen = model.image_features, []

    def counting(pixels, sizes):
        seen.append(len(pixels))
        return encode(pixels, sizes)

    monkeypatch.setattr(model, "image_features", counting)
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=12)
    assert seen == [4]
    assert len(answers.rows) == len(answers.questions)


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_left([[5, 6, 7], [8]], padding=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_an_unusable_image_refuses_its_questions_only(loaded, benchmark, tmp_path):
    (benchmark.images / "image1.jpg").write_bytes(b"no image")
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=5)
    assert sorted(answers.rows) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert sorted(refusal.question.row for refusal in answers.refused) == [3, 4, 5]
    assert all("image1.jpg" in refusal.reason for refusal in answers.refused)


def test_sampling_is_passed_on(loaded, benchmark):
    tokenizer, model, image_processor = loaded
    picture = read_picture(benchmark.images / "image0.jpg", image_processor, model.config)
    texts = set()
    for seed in range(4):
        torch.manual_seed(seed)
        texts.update(
            generate_batch(model, tokenizer, ["q"], [picture], Decoding(temperature=5.0, max_new_tokens=4)).texts
        )
    assert len(texts) > 1


def test_prompt_puts_the_image_before_the_question():
    assert Decoding().prompt("Why?").endswith("USER: <image>\nWhy? ASSISTANT:")
    assert Decoding().prompt("Why?", use_start_end=True).endswith("USER: <im_start><image><im_end>\nWhy? ASSISTANT:")


@pytest.mark.parametrize(
    ("conv_mode", "text", "expected"),
    [
        ("vicuna_v1", " a red bus</s> USER: more", "a red bus"),
        ("vicuna_v1", "plain ", "plain"),
        ("v0", "yes###Human: and", "yes"),
        ("mpt", "yes<|im_end|>", "yes"),
        ("mistral_instruct", "yes</s>[INST]", "yes"),
    ],
)
def test_cut_stops_where_the_turn_ends(conv_mode, text, expected):
    assert Decoding(conv_mode).cut(text) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conv_mode": "vicuna"}, "choose one of .*vicuna_v1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"num_beams": 0}, "at least 1"),
        ({"temperature": -1.0}, "0 .greedy. or more"),
        ({"top_p": 0.0}, "above 0"),
    ],
)
def test_decoding_refuses_what_is_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**values)


def test_batches_hold_each_question_once_and_sort_near_ones():
    questions = [Question(row, row, "i.jpg", "x" * (row * 37 % 101), row + 1) for row in range(100)]
    batches = list(make_batches(questions, 4))
    assert sorted(question.row for batch in batches for question in batch) == list(range(100))
    assert max(map(len, batches)) == 4
    window = [len(question.text) for batch in batches[:8] for question in batch]
    assert window == sorted(window)
    assert {question.row for batch in batches[:8] for question in batch} == set(range(32))
    with pytest.raises(ValueError, match="batch_size=0"):
        list(make_batches(questions, 0))


def test_missing_images_names_the_first_question_of_each(benchmark):
    (benchmark.images / "image2.jpg").unlink()
    missing = missing_images(read_questions(benchmark.question_file), benchmark.images)
    assert [(question.row, question.line) for question in missing] == [(6, 7)]
