"""The tokenizer follows LLaMA's conventions and Hugging Face reads it as sentencepiece does."""

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer

from playground.signs.scenes import COLOURS, WORDS
from playground.signs.tokenizer import BEFORE_IMAGE, PIECES, after_image, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(folder):
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_special_ids_and_size(pieces):
    assert len(pieces) == PIECES
    assert [pieces.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]


def test_words_are_single_pieces_and_digits_stand_alone(pieces):
    for word in (*WORDS, *COLOURS, "yes", "no"):
        assert pieces.encode(word, out_type=str) == [f"▁{word}"]
    assert pieces.encode("42", out_type=str) == ["▁", "4", "2"]


@pytest.mark.parametrize(
    "text",
    [
        BEFORE_IMAGE,
        after_image("what word is on the red sign?"),
        after_image("what color is the sign that says 42?") + " purple",
        "Grüße, 世界! ",
    ],
)
def test_hugging_face_gives_the_same_ids(folder, pieces, text):
    ids = LlamaTokenizer.from_pretrained(folder)(text).input_ids
    assert ids == [1, *pieces.encode(text)]
    assert pieces.decode(ids[1:]) == text


def test_the_answer_begins_after_the_whole_prompt(pieces):
    """Generation starts where the prompt's ids end, so the two must not merge across the border."""
    prompt = after_image("how many signs are there?")
    for answer in ("2", "stop", "42", "yes"):
        alone, together = pieces.encode(prompt), pieces.encode(f"{prompt} {answer}")
        assert together[: len(alone)] == alone
