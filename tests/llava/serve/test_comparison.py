"""Two conversations about one picture: both get what they should, and no turn is half taken."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from PIL import Image

from llava.inference.chat import ChatSession
from llava.inference.decoding import Decoding
from llava.model import sequences
from llava.model.builder import load_pretrained_model
from llava.serve.comparison import Comparison, ComparisonServer
from llava.visualize import KEPT
from visionzip_patch import VisionZipConfig, visionzip
from visionzip_patch.selectors.handpicked import hand_picked

BUDGET = VisionZipConfig(dominant=20, contextual=3)
SIDE = 24  # patches in a row
CELL = 23  # pixels that each of them is shown with


@pytest.fixture(scope="module")
def loaded(golden):
    return load_pretrained_model(golden / "models/llava-v1.5-tiny", device="cpu")[:3]


@pytest.fixture(scope="module")
def pictures(golden):
    return [Image.open(path).convert("RGB") for path in sorted((golden / "images").glob("*.png"))]


@pytest.fixture
def server(loaded):
    return ComparisonServer(
        *loaded, Decoding("vicuna_v1", max_new_tokens=5), budget=BUDGET, suffix="Be short.", visitors=2
    )


@pytest.fixture
def comparison(server, pictures):
    comparison = server.enter("somebody")
    comparison.show(pictures[0])
    return comparison


def finish(comparison: Comparison, question: str):
    """Takes a turn to its end; the turn."""
    for _ in comparison.ask(question):
        pass
    return comparison.turns[-1]


def click(comparison: Comparison, patch: int) -> None:
    comparison.pick((patch % SIDE + 0.5) * CELL, (patch // SIDE + 0.5) * CELL)


def patches(comparison: Comparison) -> set[int]:
    return {patch.patch for patch in comparison.manual.kept}


def test_both_sides_say_what_a_session_of_their_own_says(loaded, server, comparison, pictures):
    tokenizer, model, processor = loaded
    turns = [finish(comparison, question) for question in ("What is it?", "And on the left?")]
    assert comparison.turns == turns
    for side, budget in (("full", None), ("few", BUDGET)):
        if budget:
            visionzip(model, BUDGET.dominant, BUDGET.contextual)
        session = ChatSession(model, tokenizer, processor, server.decoding)
        said = [
            "".join(session.ask("What is it?\nBe short.", pictures[:1])),
            "".join(session.ask("And on the left?\nBe short.")),
        ]
        model.get_vision_tower().reducer = None
        assert [getattr(turn, side).text for turn in turns] == said
        assert getattr(turns[1], side).cost.computed == session.computed
    assert turns[0].full.text != turns[0].few.text


def test_what_a_turn_took(comparison):
    first, second = finish(comparison, "What is it?"), finish(comparison, "Why?")
    assert (first.full.cost.visual_tokens, first.few.cost.visual_tokens) == (576, 23)
    assert first.full.cost.computed - first.few.cost.computed == 576 - 23
    assert first.few.cost.reused == 0
    assert second.few.cost.reused > 23
    assert second.few.cost.computed < 30
    decoder = comparison.server.model.get_model()
    per_token = 2 * len(decoder.layers) * decoder.config.hidden_size * 4
    assert first.full.cache_bytes - first.few.cache_bytes == (576 - 23) * per_token
    assert first.full.peak_bytes is None
    assert first.full.cost.first_ms > 0
    assert first.few.cost.ms_per_token > 0


def test_answers_grow_one_after_the_other(comparison):
    seen = []
    for _ in comparison.ask("What is it?"):
        turn = comparison.turns[-1]
        seen.append((turn.full.text, turn.few and turn.few.text))
    whole = seen[-1][0]
    alone = [few is None for _, few in seen]
    assert alone == sorted(alone, reverse=True)
    assert sum(alone) > 2
    assert len(alone) - sum(alone) > 2
    assert all(whole.startswith(full) for full, _ in seen)
    assert [full for full, few in seen if few is not None] == [whole] * (len(alone) - sum(alone))


def test_the_model_has_no_budget_between_questions(loaded, comparison):
    tower, held = loaded[1].get_vision_tower(), []
    for _ in comparison.ask("What is it?"):
        held.append(tower.reducer)
    assert set(held) == {None}


def test_patches_by_hand(server, comparison):
    view = comparison.view
    assert view.tokens == 23
    kept = {i for i, token in enumerate(view.crops[0].token) if token == -1}
    (free, *_) = set(range(SIDE**2)) - kept
    click(comparison, free)
    assert patches(comparison) == kept | {free}
    assert comparison.view.tokens == 24
    assert finish(comparison, "What is it?").few.cost.visual_tokens == 24
    comparison.clear()
    assert comparison.view.tokens == 1 + 3
    for patch in (5, 7, 7, 30):
        click(comparison, patch)
    assert patches(comparison) == {5, 30}
    turn = finish(comparison, "Why?")
    assert (turn.by_hand, turn.few.cost.visual_tokens) == (True, 6)
    tower = server.tower
    evidence = tower.evidence(comparison.encoded.before, comparison.encoded.after)
    assert hand_picked([[5, 30]], 3, tower).select(evidence).kept.tolist() == [[0, 6, 31]]
    with server.reducing(hand_picked([[5, 30]], 3, tower)):
        tokens = server.open_session().encode(comparison.encoded.image).tokens
    torch.testing.assert_close(comparison.sessions[1].images[0].tokens, tokens)
    comparison.pick(-5, 10)
    assert patches(comparison) == {5, 30}
    comparison.set_budget(20, 8)  # more merged tokens leave the choice
    assert comparison.view.tokens == 3 + 8
    comparison.let_visionzip_choose()
    assert comparison.view.tokens == 28
    click(comparison, free)
    comparison.set_budget(12, 8)
    assert (comparison.manual, comparison.view.tokens) == (None, 20)


def test_a_budget_that_is_too_large_changes_nothing(comparison):
    with pytest.raises(ValueError, match="asks for 603 tokens, but the vision tower gives 577"):
        comparison.set_budget(600, 3)
    assert (comparison.dominant, comparison.contextual, comparison.view.tokens) == (20, 3, 23)


def test_a_new_budget_counts_from_the_next_question(comparison):
    assert finish(comparison, "What is it?").few.cost.visual_tokens == 23
    comparison.set_budget(6, 1)
    assert finish(comparison, "Why?").few.cost.visual_tokens == 7
    assert comparison.sessions[1].reused < 60  # the picture is another for this side
    assert comparison.sessions[0].reused > 576


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (" \n", "no question yet"),
        ("x" * 4001, "has 4001 letters; at most 4000"),
        ("What is <image>?", "stands for an image"),
        ("a?" * 2000, r"conversation has \d+ tokens, and this model's context is 4096"),
    ],
)
def test_a_question_that_cannot_be_asked_changes_nothing(comparison, question, reason):
    turn = finish(comparison, "What is it?")
    messages = [session.messages for session in comparison.sessions]
    with pytest.raises(ValueError, match=reason):
        finish(comparison, question)
    assert comparison.turns == [turn]
    assert [session.messages for session in comparison.sessions] == messages
    assert not comparison.is_busy
    assert finish(comparison, "Why?").full.cost.reused > 576


def test_no_picture_no_question(server):
    with pytest.raises(ValueError, match="no picture yet"):
        finish(server.enter("a"), "What is it?")


@pytest.mark.parametrize("steps", [1, 8])
def test_a_turn_that_is_left_is_taken_back_from_both(comparison, steps):
    turn = finish(comparison, "What is it?")
    stream = comparison.ask("Why?")
    list(islice(stream, steps))
    assert (comparison.turns[-1].few is None) == (steps == 1)
    stream.close()
    assert comparison.turns == [turn]
    assert [len(session.messages) for session in comparison.sessions] == [2, 2]
    assert finish(comparison, "Why?").few.text


def test_an_error_of_the_second_side_takes_back_the_first(comparison, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("full")

    finish(comparison, "What is it?")
    monkeypatch.setattr(comparison.sessions[1], "texts", fail)
    with pytest.raises(torch.OutOfMemoryError):
        finish(comparison, "Why?")
    assert len(comparison.turns) == 1
    assert [len(session.messages) for session in comparison.sessions] == [2, 2]


def test_stop_ends_one_answer_and_keeps_what_was_said(comparison, monkeypatch):
    monkeypatch.setattr(sequences, "choose", lambda logits, config: torch.tensor([300]))
    stream = comparison.ask("What is it?")
    next(stream)
    comparison.stop()
    for _ in stream:
        pass
    turn = comparison.turns[-1]
    assert 0 < len(turn.full.text) < len(turn.few.text)
    assert comparison.sessions[0].messages[-1][1] == turn.full.text


def test_nothing_else_while_an_answer_is_written(comparison, pictures):
    stream = comparison.ask("What is it?")
    next(stream)
    others = (
        lambda: comparison.show(pictures[1]),
        comparison.undo,
        comparison.begin_anew,
        lambda: finish(comparison, "?"),
    )
    for other in others:
        with pytest.raises(ValueError, match="An answer is being written"):
            other()
    click(comparison, 3)  # for the next question
    for _ in stream:
        pass
    assert comparison.turns[-1].few.cost.visual_tokens == 23


def test_undo_and_another_picture(comparison, pictures):
    first = finish(comparison, "What is it?")
    second = finish(comparison, "Why?")
    comparison.undo()
    assert comparison.turns == [first]
    assert finish(comparison, "Why?").few.text == second.few.text
    comparison.begin_anew()
    with pytest.raises(ValueError, match="no question to take back"):
        comparison.undo()
    assert finish(comparison, "What is it?").full.text == first.full.text
    click(comparison, 3)
    comparison.show(pictures[1])
    assert (comparison.turns, comparison.manual) == ([], None)
    assert finish(comparison, "What is it?").full.text != first.full.text


def test_visitors_are_apart_and_the_longest_idle_goes(server, pictures):
    one, two = server.enter("one"), server.enter("two")
    for comparison, picture in zip((one, two), pictures, strict=False):
        comparison.show(picture)
        finish(comparison, "What is it?")
    assert one.turns[0].full.text != two.turns[0].full.text
    click(one, 3)
    assert two.manual is None
    assert server.find("one") is one
    server.enter("three")
    assert two.is_closed
    assert not any(session.sequences.is_open for session in two.sessions)
    with pytest.raises(ValueError, match=r"has ended: .* Reload it\."):
        server.find("two")
    assert finish(one, "Why?").few.text
    again = server.enter("one")  # the page was loaded anew
    assert one.is_closed
    assert again.turns == []
    server.leave("one")
    server.leave("one")
    assert list(server.visitors) == ["three"]


def test_a_visitor_who_leaves_ends_the_answer(server, comparison):
    stream = comparison.ask("What is it?")
    next(stream)
    server.leave("somebody")
    with pytest.raises(ValueError, match="was closed"):
        list(stream)
    assert comparison.turns == []
    assert not comparison.is_busy


def test_caches_serve_the_next_visitor(server, pictures):
    kept, seen = server.model.engine().caches, []
    kept.clear()  # those of earlier tests
    for name in "abcd":
        comparison = server.enter(name)
        comparison.show(pictures[0])
        finish(comparison, "What is it?")
        assert kept == [] or name == "a"
        server.leave(name)
        seen.append({id(cache) for cache, _ in kept})
    assert seen == seen[:1] * 4


def test_anyres_crops(golden, pictures):
    loaded = load_pretrained_model(golden / "models/llava-v1.6-tiny", device="cpu")[:3]
    server = ComparisonServer(*loaded, Decoding(max_new_tokens=2), budget=VisionZipConfig(4, 1), visitors=1)
    comparison = server.enter("a")
    comparison.show(pictures[0])
    crops = comparison.view.crops
    assert len(crops) > 1
    before = comparison.view.tokens
    x, y = crops[1].corner(0)
    comparison.pick(x + 1, y + 1)
    assert comparison.view.tokens == before + len(crops)  # crops have equally many
    assert crops[1].token[0] != -1
    assert comparison.view.crops[1].token[0] == -1
    assert finish(comparison, "What?").few.cost.visual_tokens >= before


def test_a_patch_of_a_tile_that_is_let_go_is_gone(golden, pictures):
    loaded = load_pretrained_model(golden / "models/llava-v1.6-tiny", device="cpu")[:3]
    comparison = ComparisonServer(*loaded, budget=VisionZipConfig(4, 1), visitors=1).enter("a")
    comparison.show(pictures[0])
    tokens, gone = comparison.view.tokens, []
    for _ in range(3):
        crop = comparison.view.crops[1]
        gone.append(crop.token.tolist().index(KEPT))
        x, y = crop.corner(gone[-1])
        comparison.pick(x + 1, y + 1)
        assert comparison.view.tokens == tokens  # another comes in its place
        assert not any(comparison.view.crops[1].token[gone] == KEPT)
    comparison.pick(x + 1, y + 1)
    assert comparison.view.crops[1].token[gone[-1]] == KEPT
    for crop in (0, *range(2, len(comparison.view.crops))):
        shown = comparison.view.crops[crop]
        x, y = shown.corner(shown.token.tolist().index(KEPT))
        comparison.pick(x + 1, y + 1)
    assert comparison.view.tokens == tokens - len(comparison.view.crops)  # one fewer in each


def test_no_picture_nothing_to_let_go(server):
    comparison = server.enter("a")
    with pytest.raises(ValueError, match="no picture yet: pick or upload one"):
        comparison.clear()
    comparison.let_visionzip_choose()
    assert comparison.manual is None


@pytest.mark.parametrize("side", [0, 1])
def test_stop_before_the_first_words_leaves_both_a_turn(comparison, monkeypatch, side):
    finish(comparison, "What is it?")
    ask = ChatSession.ask

    def ask_and_stop(session, *args):
        if session is comparison.sessions[side]:
            comparison.stop()
        return ask(session, *args)

    monkeypatch.setattr(ChatSession, "ask", ask_and_stop)
    turn = finish(comparison, "Why?")
    said = [session.messages[-1][1] for session in comparison.sessions]
    assert [turn.full.text, turn.few.text] == said
    assert [len(session.messages) for session in comparison.sessions] == [4, 4]
    assert len(said[side]) < len(said[1 - side])
    assert finish(comparison, "Why?").few.text


def test_an_answer_takes_the_models_time_and_no_one_elses(server, comparison, clock):
    watch, lock, waits = clock("llava.serve.timing", tick=0.001), server.lock, []

    class Busy:
        """Someone else always has the model first."""

        def __enter__(self):
            waits.append(watch.sleep(5))
            lock.acquire()

        def __exit__(self, *_):
            lock.release()

    server.lock = Busy()
    cost = finish(comparison, "What is it?").few.cost
    assert len(waits) > 10
    assert cost.first_ms == 2  # of the start and of the first piece: 1 ms from one reading to the next
    assert cost.ms_per_token < 5


def test_two_visitors_at_once_get_what_each_gets_alone(server, pictures):
    questions, alone = ("What is it?", "Why?"), []
    for picture in pictures[:2]:
        comparison = server.enter("alone")
        comparison.show(picture)
        alone.append([texts_of(finish(comparison, question)) for question in questions])
    server.leave("alone")

    def talk(name: str, picture):
        comparison = server.enter(name)
        comparison.show(picture)
        started.wait(10)
        return [texts_of(finish(comparison, question)) for question in questions]

    started = threading.Barrier(2)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(talk, "ab", pictures)) == alone
    assert alone[0] != alone[1]


def texts_of(turn) -> tuple[str, str]:
    return turn.full.text, turn.few.text


def test_of_questions_at_once_one_is_answered(comparison):
    """The first has not found itself alone before the others look."""
    opened = comparison.server.open_session

    def open_slowly():
        time.sleep(0.1)
        return opened()

    comparison.server.open_session = open_slowly

    def ask(_):
        try:
            finish(comparison, "What is it?")
        except ValueError as error:
            return str(error)[:27]

    with ThreadPoolExecutor() as pool:
        said = sorted(pool.map(ask, range(3)), key=str)
    assert said.count("An answer is being written:") + len(comparison.turns) == 3
    assert {len(session.messages) for session in comparison.sessions} == {2 * len(comparison.turns)}


def test_clicks_at_once_all_count(comparison, monkeypatch):
    view_by = Comparison.view_by
    monkeypatch.setattr(Comparison, "view_by", lambda *args: time.sleep(0.02) or view_by(*args))
    comparison.clear()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda patch: click(comparison, patch), (1, 2, 3, 4)))
    assert patches(comparison) == {1, 2, 3, 4}


def test_a_picture_that_cannot_be_shown_changes_nothing(server, comparison, pictures, monkeypatch):
    finish(comparison, "What is it?")
    before = comparison.encoded, comparison.view, comparison.turns
    monkeypatch.setattr(Comparison, "view_by", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        comparison.show(pictures[1])
    assert (comparison.encoded, comparison.view, comparison.turns) == before
    monkeypatch.undo()
    assert finish(comparison, "Why?").full.cost.reused > 576


def test_who_is_answered_is_not_sent_away(server, pictures):
    streams = []
    for name in ("one", "two"):
        comparison = server.enter(name)
        comparison.show(pictures[0])
        streams.append(comparison.ask("What is it?"))
        next(streams[-1])
    with pytest.raises(ValueError, match="2 conversations are being answered, and no more than 2 are kept"):
        server.enter("three")
    list(streams[1])
    server.find("two")  # "one" has been idle longer, but for its answer
    server.enter("three")
    assert list(server.visitors) == ["one", "three"]
    with pytest.raises(ValueError, match="has ended"):
        finish(comparison, "Why?")
    assert not any(session.sequences.is_open for session in comparison.sessions)
    list(streams[0])
    assert server.find("one").turns[0].few.text


def test_a_slow_start_counts_as_time_to_the_first_words(comparison, monkeypatch, clock):
    watch, encode = clock("llava.serve.timing"), ChatSession.encode
    monkeypatch.setattr(ChatSession, "encode", lambda *args: watch.sleep(0.2) or encode(*args))
    first, second = finish(comparison, "What is it?"), finish(comparison, "Why?")
    assert (first.few.cost.first_ms, second.few.cost.first_ms) == (200, 0)
