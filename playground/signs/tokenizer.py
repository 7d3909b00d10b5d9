"""Train a small SentencePiece tokenizer with LLaMA's conventions on the sentences of the signs world."""

import io
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import sentencepiece

from playground.signs.scenes import COLOURS, WORDS

PIECES = 640
MAX_LENGTH = 2048  # tokens, as LLaVA-1.5 sets it

# The prompt is cut at <image>, as LLaVA does, and each chunk is tokenized by itself.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BEFORE_IMAGE = f"{SYSTEM} USER: "
SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCD"  # of choices


def after_image(question: str, instruction: str = SHORT_ANSWER) -> str:
    """Write the part of a `vicuna_v1` prompt after the image; the model's answer comes next, after a space."""
    return f"\n{question}\n{instruction} ASSISTANT:"


def with_choices(question: str, options: Sequence[str]) -> str:
    """Write a question as LLaVA asks ScienceQA's: "Which?\\nA. this\\nB. that"."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def train_tokenizer(folder: Path) -> Path:
    """Train and write `tokenizer.model` and the two json files Hugging Face reads; returns the path of the model.

    Like LLaMA's: BPE with byte fallback, <unk> 0, <s> 1, </s> 2, a "▁" before the text, no normalization, digits apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    for name, content in (
        ("tokenizer_config.json", _tokenizer_config()),
        ("special_tokens_map.json", _special_tokens()),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return path


def _sentences() -> Iterator[str]:
    """List the sentences of this world; rare ones repeat so that their words become single pieces too."""
    for _ in range(20):
        yield f"{BEFORE_IMAGE}what"
        yield f"{SHORT_ANSWER} ASSISTANT: yes"
        yield f"{SHORT_ANSWER} ASSISTANT: no"
        yield "how many signs are there?"
        # After a line break a word stands without its "▁"; a quotation mark teaches these pieces without a line break.
        yield from (
            f'"{first}' for first in ("what word", "what number", "what color", "how many", "is there", "Answer")
        )
    for colour in COLOURS:
        yield f"what word is on the {colour} sign?"
        yield f"what number is on the {colour} sign?"
        yield f"is there a {colour} sign in the image?"
        yield f"is there an {colour} sign in the image?"
    for text, colour in product((*WORDS, "0 1 2 3 4", "5 6 7 8 9"), COLOURS):
        yield f"what color is the sign that says {text}?"
        yield f"{text} {colour}"


def _special_tokens() -> dict:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "bos_token": {"content": "<s>", **plain},
        "eos_token": {"content": "</s>", **plain},
        "pad_token": "<unk>",
        "unk_token": {"content": "<unk>", **plain},
    }


def _tokenizer_config() -> dict:
    special = {
        name: {"__type": "AddedToken", **token} for name, token in _special_tokens().items() if name != "pad_token"
    }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": MAX_LENGTH,
        "pad_token": "<unk>",
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **special,
    }
