"""A chat that keeps its past answers as one that is computed afresh at every turn."""

from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from llava.conversation import conv_templates
from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import sequences
from visionzip_patch import zipped

TOKENS = 576  # of an image
QUESTIONS = ("What is it?", "And on the left?", "Compare both, as well as you can.", "Why?", "What is it?")


@pytest.fixture(scope="module")
def model_folder(golden):
    return golden / "models/llava-v1.5-tiny"


@pytest.fixture(scope="module")
def loaded(model_folder):
    from llava.model.builder import load_pretrained_model

    tokenizer, model, image_processor = load_pretrained_model(model_folder, device="cpu")[:3]
    is_byte = [name.startswith("<0x") for name in tokenizer.convert_ids_to_tokens(range(model.config.vocab_size))]
    model.lm_head.weight.data[torch.tensor(is_byte)] = 0  # decoders show a broken character in more than one way
    return tokenizer, model, image_processor


@pytest.fixture(scope="module")
def pictures(golden):
    return [Image.open(path).convert("RGB") for path in sorted((golden / "images").glob("*.png"))]


@pytest.fixture
def chat(loaded):
    """Makes a session with short answers: `chat(context_length=700)`."""
    tokenizer, model, image_processor = loaded

    def make(conv_mode="vicuna_v1", max_new_tokens=6, **options) -> ChatSession:
        return ChatSession(model, tokenizer, image_processor, Decoding(conv_mode, max_new_tokens), **options)

    return make


@pytest.fixture
def afresh(loaded):
    """What the model says to turns [question, answer, question, ...] in transformers' loop; <image> is in the texts."""
    tokenizer, model, image_processor = loaded

    def answer(turns, images, conv_mode="vicuna_v1", max_new_tokens=6) -> str:
        conversation = conv_templates[conv_mode].copy()
        for i, text in enumerate([*turns, None]):
            conversation.append_message(conversation.roles[i % 2], text)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
        pixels = process_images(images, image_processor, model.config) if images else None
        options = {"images": pixels, "do_sample": False, "max_new_tokens": max_new_tokens}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "fast", None)
            return tokenizer.decode(model.generate(ids, **options)[0], skip_special_tokens=True).strip()

    return answer


@pytest.fixture
def says(loaded, monkeypatch):
    """From now on the model says these tokens: `says("yes")`, then ends."""
    tokenizer = loaded[0]

    def make(text: str) -> None:
        ids = iter([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        monkeypatch.setattr(sequences, "choose", lambda logits, config: torch.tensor([next(ids)]))

    return make


def texts(session) -> list[str]:
    return [text for _, text in session.messages]


@pytest.mark.parametrize("mode", ["static", "graphs"])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_every_turn_is_that_of_a_fresh_start(loaded, chat, afresh, pictures, monkeypatch, is_zipped, mode):
    model, turns, shown = loaded[1], [], []
    monkeypatch.setattr(model, "fast", mode)
    with zipped(model, dominant=20, contextual=3) if is_zipped else nullcontext():
        session = chat()
        for i, question in enumerate(QUESTIONS):
            new = pictures[i // 2 : i // 2 + 1] if i in (0, 2) else []
            shown += new
            turns.append("<image>\n" * len(new) + question)
            said = "".join(session.ask(question, new))
            assert said == afresh(turns, shown)
            turns.append(said)
            assert texts(session) == turns
            least = len(new) * (23 if is_zipped else TOKENS)
            assert least < session.computed < least + 120
    assert len(set(turns[1::2])) >= 4  # it listens to what was said


def test_two_images_in_one_turn_and_none(chat, afresh, pictures):
    session = chat()
    assert "".join(session.ask("Hello?")) == afresh(["Hello?"], [])
    turns = [*texts(session), "<image>\n<image>\nWhich?"]
    assert "".join(session.ask("Which?", pictures[:2])) == afresh(turns, pictures[:2])
    assert session.computed > 2 * TOKENS


def test_a_turn_costs_what_is_new_in_it_and_no_more(loaded, chat, pictures, monkeypatch):
    tokenizer, model, _ = loaded
    encode, encoded, costs = model.image_features, [], []
    monkeypatch.setattr(model, "image_features", lambda *args: encoded.append(args) or encode(*args))
    (word,) = tokenizer("yellow", add_special_tokens=False).input_ids
    monkeypatch.setattr(sequences, "choose", lambda logits, config: torch.tensor([word]))
    session = chat(max_new_tokens=4)
    for turn in range(20):
        assert "".join(session.ask("What is it?", pictures[: turn == 0])) == "yellow yellow yellow yellow"
        costs.append(session.computed)
    assert len(encoded) == 1
    assert costs[0] > TOKENS
    assert set(costs[1:]) == {costs[1]}
    assert costs[1] < 30
    assert len(session.held) == sum(costs)  # nothing was computed twice
    other = chat()
    other.images = session.images
    next(other.texts(session.held))  # all of it at once
    held = [[keys[:, :, : len(session.held)] for keys in s.sequences.cache.keys] for s in (session, other)]
    torch.testing.assert_close(*held, rtol=1e-4, atol=1e-4)


def test_another_question_in_place_of_one_taken_back(loaded, chat, afresh, pictures):
    session = chat()
    first = "".join(session.ask("What is it?", pictures[:1]))
    kept = texts(session)
    list(session.ask("And this?", pictures[1:2]))
    session.undo()
    assert texts(session) == kept
    assert "".join(session.ask("Where?", pictures[2:3])) == afresh(
        [*kept, "<image>\nWhere?"], [pictures[0], pictures[2]]
    )
    session.undo()
    assert "".join(session.ask("Why?")) == afresh([*kept, "Why?"], pictures[:1])
    assert session.computed < TOKENS
    for _ in range(3):  # once more than there are turns
        session.undo()
    assert (session.messages, session.images) == ([], [])
    assert "".join(session.ask("What is it?", pictures[:1])) == first


@pytest.mark.parametrize("keeps_the_stream", [False, True])
def test_an_answer_that_is_stopped_stays_as_far_as_it_came(chat, afresh, pictures, keeps_the_stream):
    session = chat()
    stream = session.ask("What is it?", pictures[:1])
    said = next(stream) + next(stream)
    if not keeps_the_stream:
        stream.close()
    assert texts(session) == ["<image>\nWhat is it?", said]
    turns = [*texts(session), "Go on."]
    whole = afresh(turns, pictures[:1])
    assert "".join(session.ask("Go on.")) == whole
    assert session.computed < TOKENS
    assert list(stream) == []  # too late
    del stream
    assert texts(session) == [*turns, whole]
    assert "".join(session.ask("Why?")) == afresh([*turns, whole, "Why?"], pictures[:1])


def test_turns_taken_back_while_they_are_answered_or_before(chat, afresh, pictures):
    session = chat()
    session.ask("Nobody listens.", pictures[:1])
    assert session.messages == []
    stream = session.ask("What is it?", pictures[:1])
    next(stream)
    session.undo()
    assert list(stream) == []
    assert session.messages == []
    stream = session.ask("What is it?", pictures[:1])
    next(stream)
    session.reset()
    assert list(stream) == []
    assert "".join(session.ask("Where?", pictures[1:2])) == afresh(["<image>\nWhere?"], pictures[1:2])


def test_another_budget_between_turns(loaded, chat, afresh, pictures):
    model, session = loaded[1], chat()
    said = "".join(session.ask("What is it?", pictures[:2]))
    turns, tokens = texts(session), []
    for budget in ({"dominant": 20, "contextual": 3}, {"tokens_per_image": 23, "merge": "mean"}):
        with zipped(model, **budget):
            for question in QUESTIONS[1:3]:
                said = "".join(session.ask(question))
                assert said == afresh([*turns, question], pictures[:2])
                turns += [question, said]
                tokens.append(session.computed)
        assert [len(shown.tokens) for shown in session.images] == [23, 23]
    assert min(tokens[0], tokens[2]) > 2 * 23 > max(tokens[1], tokens[3])  # encoded anew, once
    assert "".join(session.ask("Why?")) == afresh([*turns, "Why?"], pictures[:2])
    assert session.reused < 2 * TOKENS < session.computed


def test_an_answer_interrupted_before_its_first_piece_is_no_turn(chat, monkeypatch):
    session = chat()
    said = "".join(session.ask("What is it?"))
    with monkeypatch.context() as patch:
        patch.setattr(sequences, "choose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(session.ask("Why?"))
    assert texts(session) == ["What is it?", said]


def test_what_is_computed_reused_and_answered_is_counted(chat):
    session = chat()
    list(session.ask("What is it?"))
    assert (session.reused, session.answered) == (0, 6)
    assert session.computed == len(session.held)
    held = session.computed
    list(session.ask("Why?"))
    assert held - 6 <= session.reused <= held
    assert session.reused + session.computed == len(session.held)


def test_reset_begins_anew(chat, afresh, pictures):
    session = chat()
    list(session.ask("What is it?", pictures[:1]))
    session.reset()
    assert "".join(session.ask("What is it?", pictures[1:2])) == afresh(["<image>\nWhat is it?"], pictures[1:2])
    assert session.computed > TOKENS  # another image, though the question is the same
    session.reset()
    assert "".join(session.ask("What is it?")) == afresh(["What is it?"], [])


def test_sessions_of_one_model_do_not_mix(chat, afresh, pictures):
    sessions = [chat(), chat()]
    for session, picture in zip(sessions, pictures, strict=False):
        list(session.ask("What is it?", [picture]))
    for session, picture in zip(sessions, pictures, strict=False):
        turns = [*texts(session), "Why?"]
        assert "".join(session.ask("Why?")) == afresh(turns, [picture])


def test_what_would_not_fit_is_refused_and_changes_nothing(chat, afresh, pictures):
    session = chat(context_length=700)
    list(session.ask("What is it?", pictures[:1]))
    kept = list(session.messages)
    with pytest.raises(ValueError, match=r"conversation has 12\d\d tokens, and this model's context is 700: take back"):
        session.ask("And this?", pictures[1:2])
    with pytest.raises(ValueError, match="holds '<image>', which stands for an image: leave it out"):
        session.ask("<image> What?")
    assert session.messages == kept
    assert "".join(session.ask("Why?")) == afresh([*texts(session)[:2], "Why?"], pictures[:1])


def test_an_answer_ends_where_the_context_does(chat, afresh):
    length = len(chat().tokens_of([("USER", "What is it?")], []))
    assert "".join(chat(context_length=length + 2).ask("What is it?")) == afresh(["What is it?"], [], max_new_tokens=2)
    with pytest.raises(ValueError, match=f"has {length} tokens, and this model's context is {length}:"):
        chat(context_length=length).ask("What is it?")


@pytest.mark.parametrize(
    ("text", "shown"), [("yes###Human: no", "yes"), ("one # two", "one # two"), ("at the end ##", "at the end ##")]
)
def test_a_stop_of_several_tokens_is_never_shown(chat, says, text, shown):
    says(text)
    session = chat("v0", max_new_tokens=30)
    pieces = list(session.ask("What is it?"))
    assert "".join(pieces) == texts(session)[-1] == shown
    assert len(pieces) > 1 or shown == "yes"


def test_half_a_character_is_held_back(chat, says):
    says("a 日b")
    pieces = list(chat(max_new_tokens=30).ask("What is it?"))
    assert "".join(pieces) == "a 日b"
    assert len(pieces) >= 2
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_model_that_writes_image_shows_none(chat, afresh, says, monkeypatch):
    session = chat(max_new_tokens=30)
    says("see <image>!")
    assert "".join(session.ask("What is it?")) == "see <image>!"
    monkeypatch.undo()
    turns = [*texts(session), "Why?"]
    assert turns[1] == "see image!"
    assert "".join(session.ask("Why?")) == afresh(turns, [], max_new_tokens=30)


def test_close_gives_the_cache_to_the_next(loaded, chat):
    session = chat()
    list(session.ask("What is it?"))
    cache = session.sequences.cache
    for _ in range(2):
        session.close()
    assert [kept is cache for kept, _ in loaded[1].engine().caches].count(True) == 1
    with pytest.raises(ValueError, match="closed"):
        session.ask("Who is there?")
    following = chat()
    assert following.sequences.cache is cache
    assert not any(kept is cache for kept, _ in loaded[1].engine().caches)


def test_it_grows_with_the_conversation(chat, afresh, pictures):
    session = chat()
    list(session.ask("What is it?", pictures[:3]))
    assert session.sequences.cache.slots > len(session.held) > 3 * TOKENS
    turns = [*texts(session), "Why?"]
    assert "".join(session.ask("Why?")) == afresh(turns, pictures[:3])


def test_what_has_no_single_past_is_refused(loaded, model_folder):
    from llava.model.builder import load_pretrained_model

    tokenizer, model, image_processor = loaded
    with pytest.raises(ValueError, match="A chat cannot do num_beams"):
        ChatSession(model, tokenizer, image_processor, Decoding(num_beams=2))
    model = load_pretrained_model(model_folder, device="cpu", attn_implementation="eager")[1]
    with pytest.raises(ValueError, match="'sdpa', but this model runs 'eager'"):
        ChatSession(model, tokenizer, image_processor)


def test_a_turn_that_fails_is_not_taken(chat, monkeypatch):
    session = chat()
    said = "".join(session.ask("What is it?"))
    with monkeypatch.context() as patch:
        patch.setattr(type(session.sequences), "extend", fail)
        with pytest.raises(torch.OutOfMemoryError):
            list(session.ask("Why?"))
    assert texts(session) == ["What is it?", said]
    assert "".join(session.ask("Why?"))


def fail(*args):
    raise torch.OutOfMemoryError


def interrupt(*args):
    raise KeyboardInterrupt


def test_an_answer_ends_with_its_session(chat):
    session = chat(max_new_tokens=10)
    stream = session.ask("What is it?")
    next(stream)
    session.close()
    assert list(stream) == []
    late = chat()
    stream = late.ask("What is it?")
    with late:
        pass
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_a_question_that_was_asked_before_another_turn_is_refused(chat):
    session = chat()
    early, late = session.ask("What is it?"), session.ask("Why?")
    said = "".join(early)
    with pytest.raises(ValueError, match="Another turn was taken"):
        next(late)
    assert texts(session) == ["What is it?", said]


@pytest.mark.parametrize(("text", "images"), [(b"What?", []), ("What?", "a.png"), ("What?", ["a.png"])])
def test_what_is_no_text_or_image_is_refused(chat, text, images):
    session = chat()
    with pytest.raises(ValueError, match="PIL"):
        session.ask(text, images)
    assert session.messages == []
