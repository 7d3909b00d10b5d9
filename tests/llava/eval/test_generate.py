"""Batches, shared images and faster steps change no answer, and spare what can be spared."""

import json
import multiprocessing
from itertools import chain

import pytest
import torch

from llava.conversation import choose_template, conv_templates
from llava.eval.answers import AnswerFile
from llava.eval.generate import CHUNK, SORT_WINDOW, answer_questions, make_chunks
from llava.eval.questions import Question, missing_images, read_questions
from llava.inference import preprocess
from llava.inference.batch import Answers, even_batches, generate_batch, generate_batches, pad_left
from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.inference.preprocess import read_picture
from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.engine import Engine
from visionzip_patch import visionzip, zipped

FOUR = Decoding(max_new_tokens=4)


def run(loaded, benchmark, path, **options):
    tokenizer, model, image_processor = loaded
    answers = AnswerFile(path, read_questions(benchmark.question_file), {})
    given = {"progress": None, "num_workers": 0, **options}
    answer_questions(model, tokenizer, image_processor, answers.todo, benchmark.images, answers, **given)
    return answers


def texts(answers) -> list[str]:
    return [answers.rows[row]["text"] for row in sorted(answers.rows)]


def one_by_one(loaded, benchmark, **options) -> list[str]:
    """What transformers' loop answers to each question by itself."""
    tokenizer, model, image_processor = loaded
    assert model.fast in (None, "off")
    found = []
    for question in benchmark.questions:
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message("USER", f"<image>\n{question['text']}")
        conversation.append_message("ASSISTANT", None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
        image = load_image(benchmark.images / question["image"])
        given = {
            "images": process_images([image], image_processor, model.config),
            "image_sizes": [image.size],
            "do_sample": False,
            "max_new_tokens": 4,
            **options,
        }
        found.append(tokenizer.decode(model.generate(ids, **given)[0], skip_special_tokens=True).strip())
    assert len(set(found)) > 3  # the model does listen to its prompts
    return found


@pytest.fixture
def own(checkpoint):
    """Loads a model that a test may change: `own(attn_implementation="eager")`."""
    from llava.model.builder import load_pretrained_model

    return lambda **options: load_pretrained_model(checkpoint, device="cpu", **options)[:3]


@pytest.fixture
def forwards(monkeypatch):
    """(rows, tokens) of each call of the language model."""
    forward, seen = Engine.forward, []

    def counting(self, cache, window, masked, embeds, last):
        seen.append(tuple(embeds.shape[:2]))
        return forward(self, cache, window, masked, embeds, last)

    monkeypatch.setattr(Engine, "forward", counting)
    return seen


@pytest.fixture
def no_sharing(monkeypatch):
    """From now on, what begins all prompts may not be computed by itself."""
    monkeypatch.setattr(Engine, "open_cache", lambda *args: pytest.fail("something was shared"))


SETS = ((0,), (1, 2), (), (2, 1), (1, 2), (3, 3, 0), (1,), (0,))  # images of each question


@pytest.fixture
def mixed(benchmark):
    """The benchmark's first questions, with as many images as SETS say."""
    names = [[f"image{i}.jpg" for i in images] for images in SETS]
    given = zip(benchmark.questions[2:10], names, strict=True)
    return [
        Question(row, row, tuple(images), question["text"], row + 1) for row, (question, images) in enumerate(given)
    ]


@pytest.mark.parametrize("is_zipped", [False, True])
def test_several_images_one_or_none_in_any_batch(own, benchmark, mixed, tmp_path, is_zipped):
    loaded = own()
    tokenizer, model, image_processor = loaded
    if is_zipped:
        visionzip(model, dominant=20, contextual=3)
    expected, lengths = [], []
    for question in mixed:
        images = [load_image(benchmark.images / name) for name in question.images]
        text = " ".join(["<image>"] * len(images)) + "\n" + question.text if images else question.text
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message("USER", text)
        conversation.append_message("ASSISTANT", None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
        given = {"do_sample": False, "max_new_tokens": 4}
        if images:
            given["images"] = process_images(images, image_processor, model.config)
            given["image_sizes"] = [image.size for image in images]
        expected.append(tokenizer.decode(model.generate(ids, **given)[0], skip_special_tokens=True).strip())
        lengths.append(len(images) * (23 if is_zipped else 576))
    assert len(set(expected)) > 5
    assert expected[1] != expected[3]  # the order of the images counts, see SETS

    for fast, size in (("off", 4), (None, 1), (None, 3)):
        model.fast = fast
        answers = AnswerFile(tmp_path / f"{fast}-{size}.jsonl", mixed, {})
        options = {"decoding": FOUR, "num_workers": 0, "progress": None, "batch_size": size}
        answer_questions(model, tokenizer, image_processor, answers.todo, benchmark.images, answers, **options)
        assert texts(answers) == expected, (fast, size)
        assert [answers.rows[row]["metadata"]["image_tokens"] for row in sorted(answers.rows)] == lengths


def test_questions_about_several_images_go_on_where_they_were(loaded, benchmark, mixed, tmp_path):
    tokenizer, model, image_processor = loaded
    found = []
    for stops in ([4, 7, None], [None]):
        for stop in stops:
            answers = AnswerFile(tmp_path / f"{len(stops)}.jsonl", mixed, {})
            todo = answers.todo[: None if stop is None else stop - len(answers.rows)]
            options = {"decoding": FOUR, "num_workers": 0, "progress": None, "batch_size": 3}
            answer_questions(model, tokenizer, image_processor, todo, benchmark.images, answers, **options)
            answers.close()
            assert len(answers.rows) == (stop or len(mixed))
        found.append(texts(answers))
    assert found[0] == found[1]


def test_one_unusable_image_of_several_refuses_the_question(loaded, benchmark, mixed, tmp_path):
    (benchmark.images / "image2.jpg").write_bytes(b"no image")
    tokenizer, model, image_processor = loaded
    answers = AnswerFile(tmp_path / "a.jsonl", mixed, {})
    options = {"decoding": FOUR, "num_workers": 0, "progress": None, "batch_size": 5}
    answer_questions(model, tokenizer, image_processor, answers.todo, benchmark.images, answers, **options)
    refused = [row for row, images in enumerate(SETS) if 2 in images]
    assert sorted(refusal.question.row for refusal in answers.refused) == refused
    assert sorted(answers.rows) == [row for row in range(len(SETS)) if row not in refused]


def test_a_question_file_may_name_several_images(benchmark):
    line = json.dumps({**benchmark.questions[0], "image": ["image1.jpg", "image0.jpg"]})
    benchmark.question_file.write_text(line + "\n" + json.dumps(benchmark.questions[1]))
    found = [question.images for question in read_questions(benchmark.question_file)]
    assert found == [("image1.jpg", "image0.jpg"), ("image0.jpg",)]
    for wrong in ([], [1], ["image0.jpg", None], None):
        benchmark.question_file.write_text(json.dumps({**benchmark.questions[0], "image": wrong}))
        with pytest.raises(ValueError, match=r"line 1: image is .*; expected text or a list of texts"):
            read_questions(benchmark.question_file)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_answers_equal_those_asked_one_by_one(own, benchmark, tmp_path, is_zipped):
    loaded = own()
    if is_zipped:
        visionzip(loaded[1], dominant=20, contextual=3)
    expected = one_by_one(loaded, benchmark)
    for fast, size in ((None, 1), (None, 3), (None, 16), ("graphs", 5)):
        loaded[1].fast = fast
        answers = run(loaded, benchmark, tmp_path / f"{size}.jsonl", decoding=FOUR, batch_size=size)
        assert texts(answers) == expected, (fast, size)


def test_prompts_that_will_be_cut_are_not_shared(own, benchmark, tmp_path, caplog, forwards):
    loaded = own()
    loaded[1].config.tokenizer_model_max_length = 650
    expected = one_by_one(loaded, benchmark)
    assert "tokens of a prompt were cut off: tokenizer_model_max_length is 650" in caplog.text
    assert texts(run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=3)) == expected
    assert sum(rows for rows, tokens in forwards if tokens > 576) == 12  # each prompt from its beginning


def test_beams_go_the_plain_way(loaded, benchmark, tmp_path, no_sharing):
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=Decoding(max_new_tokens=4, num_beams=2))
    assert texts(answers) == one_by_one(loaded, benchmark, num_beams=2)


def test_other_attention_kernels_go_the_plain_way(own, benchmark, tmp_path, no_sharing):
    eager = own(attn_implementation="eager")
    assert texts(run(eager, benchmark, tmp_path / "a.jsonl", decoding=FOUR)) == one_by_one(eager, benchmark)


def test_transformers_loop_can_be_asked_for(own, benchmark, tmp_path, no_sharing):
    loaded = own(fast="off")
    assert texts(run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR)) == one_by_one(loaded, benchmark)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_what_a_checkpoint_says_on_generation_counts(own, benchmark, tmp_path, no_sharing):
    loaded = own()
    loaded[1].generation_config.repetition_penalty = 3.0
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=1)
    assert texts(answers) == one_by_one(loaded, benchmark)
    with pytest.raises(ValueError, match="A chat cannot do repetition_penalty"):
        ChatSession(loaded[1], *loaded[::2])


def test_what_would_not_fit_is_not_shared(loaded, benchmark, tmp_path, forwards, monkeypatch):
    monkeypatch.setattr("llava.inference.batch.SHARED_BYTES", 1000)
    assert texts(run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR)) == one_by_one(loaded, benchmark)
    assert sum(rows for rows, tokens in forwards if tokens > 576) == 12  # each prompt from its beginning


def test_a_projector_of_another_type(own, benchmark, tmp_path):
    """As tuning leaves it: in fp32 on a language model in half precision."""
    loaded = own(dtype=torch.bfloat16)
    loaded[1].get_model().mm_projector.float()
    assert len(texts(run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR))) == 12


def test_no_questions_no_answers(loaded):
    assert generate_batch(loaded[1], loaded[0], [], [], FOUR) == Answers([], [])


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
        for about, count in (([pictures[:1], pictures[1:]], [1, 1]), ([[], pictures], [0, 2])):
            with zipped(model, dominant=20, contextual=3):
                found = generate_batch(model, tokenizer, questions, about, decoding)
                assert found.image_tokens == [23 * images for images in count]
            found = generate_batch(model, tokenizer, questions, about, decoding)
            assert found.image_tokens == [576 * images for images in count]


def test_answers_of_a_batch_come_in_the_order_of_the_questions(loaded, benchmark):
    tokenizer, model, image_processor = loaded
    one, two = (read_picture(benchmark.images / f"image{i}.jpg", image_processor, model.config) for i in (0, 1))
    asked = [("a rather long question, you see?", [one, two]), ("why?", []), ("what is it?", [two]), ("a?", [one])]
    questions, about = zip(*asked, strict=True)
    alone = [generate_batch(model, tokenizer, [text], [pictures], FOUR) for text, pictures in asked]
    expected = Answers(*([part for (part,) in parts] for parts in zip(*alone, strict=True)))
    assert expected.image_tokens == [1152, 0, 576, 576]
    assert len(set(expected.texts)) > 2
    assert generate_batch(model, tokenizer, questions, about, FOUR) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_shared_image_is_dealt_with_once(loaded, benchmark, tmp_path, monkeypatch, forwards, batch_size):
    _, model, _ = loaded
    prepare, encode, prepared, encoded = preprocess.read_picture, model.image_features, [], []

    def preparing(path, *args):
        prepared.append(path.name)
        return prepare(path, *args)

    def encoding(pixels, sizes):
        encoded.append(len(pixels))
        return encode(pixels, sizes)

    monkeypatch.setattr(preprocess, "read_picture", preparing)
    monkeypatch.setattr(model, "image_features", encoding)
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=batch_size)
    assert len(answers.rows) == len(answers.questions) == 12
    assert sorted(prepared) == [f"image{i}.jpg" for i in range(4)]
    assert encoded == {1: [1, 1, 1, 1], 3: [3, 1], 16: [4]}[batch_size]
    with_image = [rows for rows, tokens in forwards if tokens > 576]
    assert with_image == encoded  # the language model reads an image once, and questions go on from there
    questions = [rows for rows, tokens in forwards if 1 < tokens <= 576]
    assert sum(questions) == 12
    assert max(questions) <= batch_size


def test_one_question_per_image_shares_nothing(loaded, benchmark, tmp_path, forwards):
    benchmark.question_file.write_text("".join(benchmark.question_file.read_text().splitlines(True)[::3]))
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR)
    assert texts(answers) == one_by_one(loaded, benchmark)[::3]
    assert [rows for rows, tokens in forwards if tokens > 1] == [4]  # question and image in one go


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_left([[5, 6, 7], [8]], padding=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_an_unusable_image_refuses_its_questions_only(loaded, benchmark, tmp_path):
    (benchmark.images / "image1.jpg").write_bytes(b"no image")
    for workers in (0, 2):
        answers = run(
            loaded, benchmark, tmp_path / f"{workers}.jsonl", decoding=FOUR, batch_size=5, num_workers=workers
        )
        assert sorted(answers.rows) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
        assert sorted(refusal.question.row for refusal in answers.refused) == [3, 4, 5]
        assert all("image1.jpg" in refusal.reason for refusal in answers.refused)


def test_no_usable_image_at_all(loaded, benchmark, tmp_path):
    for path in benchmark.images.iterdir():
        path.unlink()
    answers = run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=3)
    assert (len(answers.rows), len(answers.refused)) == (0, 12)


def test_workers_end_at_an_error(loaded, benchmark, tmp_path, monkeypatch):
    before = set(multiprocessing.active_children())
    started = []

    def full_disk(*args):
        started.extend(set(multiprocessing.active_children()) - before)
        raise ValueError("full")

    monkeypatch.setattr(AnswerFile, "append", full_disk)
    with pytest.raises(ValueError, match="full") as error:
        run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=1, num_workers=2)
    assert len(started) == 2
    assert error.traceback  # holds on to all that the failed call had
    assert set(multiprocessing.active_children()) <= before


def test_sampling_is_passed_on(loaded, benchmark):
    tokenizer, model, image_processor = loaded
    picture = read_picture(benchmark.images / "image0.jpg", image_processor, model.config)
    texts = set()
    for seed in range(4):
        torch.manual_seed(seed)
        texts.update(
            generate_batch(model, tokenizer, ["q"], [[picture]], Decoding(temperature=5.0, max_new_tokens=4)).texts
        )
    assert len(texts) > 1


def test_prompt_puts_the_image_before_the_question():
    ask = Decoding("vicuna_v1").prompt
    assert ask("Why?").endswith("USER: <image>\nWhy? ASSISTANT:")
    assert ask("Why?", use_start_end=True).endswith("USER: <im_start><image><im_end>\nWhy? ASSISTANT:")
    assert ask("Why?", images=3).endswith("USER: <image> <image> <image>\nWhy? ASSISTANT:")
    assert ask("Why?", images=0).endswith("USER: Why? ASSISTANT:")


def test_nothing_is_asked_before_the_template_is_known(loaded):
    tokenizer, model, _ = loaded
    asks = (
        lambda: Decoding().template,
        lambda: Decoding().stop,
        lambda: Decoding().cut("Yes.</s>"),
        lambda: Decoding().prompt("Why?"),
        lambda: Decoding().ids("Why?", tokenizer, model.config),
        lambda: Decoding().options(model, tokenizer),
        lambda: next(generate_batches(model, tokenizer, ["Why?"], [[]], Decoding(), 1)),
    )
    for ask in asks:
        with pytest.raises(ValueError, match=r"no prompt template yet: .*\.settled\(config, tokenizer\)"):
            ask()


def test_the_template_is_chosen_once_for_all_questions(loaded, benchmark, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        "llava.inference.decoding.choose_template", lambda *given: chosen.append(given[0]) or choose_template(*given)
    )
    run(loaded, benchmark, tmp_path / "a.jsonl", decoding=FOUR, batch_size=2)
    tokenizer, model, _ = loaded
    generate_batch(model, tokenizer, ["Why?", "How?"], [[], []], FOUR)
    assert chosen == [None, None]


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


def test_the_end_of_a_template_ends_an_answer_though_the_checkpoint_names_another(tiny_llava, llama_3, loaded):
    model = tiny_llava("llama")
    decoding = Decoding(max_new_tokens=5).settled(model.config, llama_3)
    call = {"inputs": torch.tensor([decoding.ids("Why?", llama_3, model.config, images=0)])}
    first = model.generate(**call, do_sample=False, max_new_tokens=1)[0, 0].item()
    end = llama_3.convert_tokens_to_ids("<|eot_id|>")
    swapped = model.lm_head.weight.data[[end, first]]
    model.lm_head.weight.data[[first, end]] = swapped  # now it says this end at once
    options = decoding.options(model, llama_3)
    assert options["eos_token_id"] == [model.generation_config.eos_token_id, end] == [2, end]
    for fast in ("static", "off"):
        assert model.generate(**call, **options, fast=fast).tolist() == [[end]]
    assert generate_batch(model, llama_3, ["Why?"], [[]], decoding).texts == [""]

    model.generation_config.eos_token_id = None
    assert decoding.ends(model, llama_3) == [end]
    tokenizer, vicuna, _ = loaded
    assert Decoding("vicuna_v1").ends(vicuna, tokenizer) == [2]
    assert Decoding("v0").ends(vicuna, tokenizer) == [2]  # ### is several tokens, and is cut off


def test_a_checkpoint_is_asked_in_its_own_template(tiny_llava, llama_3, ascii_tokenizer):
    qwen = ascii_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>")
    for family, tokenizer, name in (("llama", llama_3, "llava_llama_3"), ("qwen", qwen, "qwen_1_5")):
        model = tiny_llava(family)
        assert Decoding().settled(model.config, tokenizer) == Decoding(name)
        with ChatSession(model, tokenizer, model.get_vision_tower().image_processor) as chat:
            assert chat.decoding.conv_mode == name
            assert len(list(chat.ask("Why?"))) <= chat.answered
        model.config.conv_mode = "mistral_instruct"  # as training writes it
        assert Decoding().settled(model.config, tokenizer) == Decoding("mistral_instruct")
        assert Decoding("mpt").settled(model.config, tokenizer) == Decoding("mpt")


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


def questions_about(images, per_image):
    """Questions in a mixed order: the first about each image, then the second about each, ..."""
    rows = range(images * per_image)
    return [Question(row, row, (f"{row % images}.jpg",), "x" * (row * 37 % 101), row + 1) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize(("images", "per_image"), [(100, 1), (50, 3), (7, 40), (1, 200)])
def test_chunks_hold_whole_images(images, per_image, batch_size):
    questions = questions_about(images, per_image)
    chunks = make_chunks(questions, batch_size)
    assert sorted(question.row for chunk in chunks for question in chunk.questions) == list(range(len(questions)))
    assert sorted(name for chunk in chunks for name in chunk.images) == sorted(f"{i}.jpg" for i in range(images))
    for chunk in chunks:
        assert {name for question in chunk.questions for name in question.images} == set(chunk.images)
        assert len(chunk.images) <= batch_size
        assert len(chunk.questions) < CHUNK * batch_size + per_image
    worked = chain.from_iterable(chunk.images for chunk in chunks)
    window = -(-SORT_WINDOW * batch_size // per_image)  # images that are sorted together
    assert all(abs(int(name.removesuffix(".jpg")) - place) < window for place, name in enumerate(worked))


def test_chunks_bring_similar_lengths_together():
    chunks = make_chunks(questions_about(100, 1), 4)
    assert {len(chunk.images) for chunk in chunks} == {4}
    window = [len(question.text) for chunk in chunks[:8] for question in chunk.questions]
    assert window == sorted(window)
    assert {question.row for chunk in chunks[:8] for question in chunk.questions} == set(range(32))
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        make_chunks(questions_about(2, 1), 0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_chunks_keep_questions_about_one_image_apart(batch_size):
    questions = [Question(row, row, tuple(f"{row}-{i}.jpg" for i in range(row % 5)), "x", row + 1) for row in range(60)]
    chunks = make_chunks(questions, batch_size)
    assert sorted(question.row for chunk in chunks for question in chunk.questions) == list(range(60))
    kinds = [{min(len(question.images), 2) for question in chunk.questions} for chunk in chunks]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds == sorted(kinds, key=max, reverse=True)
    for chunk in chunks:
        assert chunk.images == [name for question in chunk.questions for name in question.images]
        assert len(chunk.images) <= batch_size or len(chunk.questions) == 1
    assert len(chunks) >= len(questions) * 2 / batch_size / CHUNK


def test_chunks_hold_an_image_of_several_questions_once():
    sets = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")]
    questions = [Question(row, row, images, "x", row + 1) for row, images in enumerate(sets)]
    assert [chunk.images for chunk in make_chunks(questions, 3)] == [["a", "b", "c"], ["d"]]


def test_batches_are_about_equally_large():
    for count, size, sizes in ((12, 5, [4, 4, 4]), (12, 16, [12]), (7, 3, [2, 2, 3]), (3, 1, [1, 1, 1])):
        batches = even_batches(range(count), size)
        assert list(map(len, batches)) == sizes
        assert list(chain.from_iterable(batches)) == list(range(count))


def test_missing_images_names_the_first_question_of_each(benchmark):
    (benchmark.images / "image2.jpg").unlink()
    missing = missing_images(read_questions(benchmark.question_file), benchmark.images)
    assert {name: (question.row, question.line) for name, question in missing.items()} == {"image2.jpg": (6, 7)}
