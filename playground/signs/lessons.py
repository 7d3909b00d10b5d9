"""Make training batches, each a pure function of its step: scenes, the labels of every patch, tokenized questions.

B scenes, P = 64 patches, Q text blocks per scene, T tokens per block (padded), N characters (26 letters, 10 digits).
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.utils.data import Dataset

from playground.signs.scenes import (
    COLOURS,
    GRID,
    KINDS,
    ON_SIGN,
    PATCH,
    WORDS,
    Question,
    Scene,
    Sign,
    make_scene,
    options,
    overlap,
    questions,
)
from playground.signs.tokenizer import LETTER_ANSWER, LETTERS, after_image, with_choices

IGNORE = -100  # label of tokens that are not trained
EOS = 2
PATCH_CLASSES = (len(WORDS) + 1, 11, 11, len(COLOURS) + 1)  # word, tens, units, colour; 0 means none
CAPTION_LABELS = len(WORDS) + 10 + 10 + len(COLOURS)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CHOICE = len(KINDS)
CAPTION_BLOCKS = 2
QUESTION_BLOCKS = 5

_PATCH_HAS_CHARACTER = 0.3  # share of the character
_COLOUR_NAMES = list(COLOURS)


class Batch(NamedTuple):
    """A batch of scenes with their labels. Dense scenes, which only train reading, have empty last three fields."""

    images: Tensor  # (B, S, S, 3) uint8
    caption: Tensor  # (B, CAPTION_LABELS) 0 or 1: which words, tens, units and colours the scene shows
    count: Tensor  # (B,) signs, less one
    patches: Tensor  # (B, P, 4) classes of PATCH_CLASSES
    characters: Tensor  # (B, P, N) 0 or 1
    ids: Tensor  # (B, Q, T)
    labels: Tensor  # (B, Q, T)
    kinds: Tensor  # (B, Q) index into KINDS, CHOICE for questions with choices, -1 for captions and padding

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(field.to(device, non_blocking=True) for field in self))


@dataclass(frozen=True)
class Lessons(Dataset):
    """The batches of a run: item i depends on step i alone, so a resumed run sees what an uninterrupted one does."""

    tokenizer_file: str
    batch_size: int
    first_seed: int
    steps: int
    dense: bool = False
    choices: float = 0.0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        first = self.first_seed + step * self.batch_size
        seeds = range(first, first + self.batch_size)
        return make_batch(seeds, _load(self.tokenizer_file), dense=self.dense, choices=self.choices)


def make_batch(seeds: range, tokenizer: SentencePieceProcessor, *, dense: bool = False, choices: float = 0.0) -> Batch:
    """Make the scenes of `seeds` with all their labels; `choices` is the share of questions that offer some."""
    scenes = [make_scene(seed, dense=dense) for seed in seeds]
    pairs = [] if dense else zip(scenes, seeds, strict=True)
    blocks = [_blocks(scene, seed, tokenizer, choices) for scene, seed in pairs]
    return Batch(
        images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
        caption=torch.from_numpy(np.stack([_caption(scene.signs) for scene in scenes])),
        count=torch.tensor([min(len(scene.signs), 2) - 1 for scene in scenes]),
        patches=torch.from_numpy(np.stack([_patches(scene.signs) for scene in scenes])),
        characters=torch.from_numpy(np.stack([_characters(scene.signs) for scene in scenes])),
        **_pad(blocks),
    )


class _Block(NamedTuple):
    ids: list[int]
    labels: list[int]
    kind: int


def _blocks(scene: Scene, seed: int, tokenizer: SentencePieceProcessor, choices: float) -> list[_Block]:
    """Make up to QUESTION_BLOCKS questions, at most one of them about existence, and CAPTION_BLOCKS captions."""
    rng = random.Random(seed)
    asked = questions(scene.signs, seed)
    spare = rng.choice([question for question in asked if question.kind == "exists"])
    asked.remove(spare)
    chosen = rng.sample(asked, min(QUESTION_BLOCKS, len(asked)))
    blocks = []
    for question in chosen:
        offers = choices and rng.random() < choices  # nothing is drawn for lessons without choices
        blocks.append(_choice_block(question, rng, tokenizer) if offers else _question_block(question, tokenizer))
    return blocks + [_caption_block(scene.signs, rng, tokenizer) for _ in range(CAPTION_BLOCKS)]


def _question_block(question: Question, tokenizer: SentencePieceProcessor) -> _Block:
    return _answered(after_image(question.text), question.answer, KINDS.index(question.kind), tokenizer)


def _choice_block(question: Question, rng: random.Random, tokenizer: SentencePieceProcessor) -> _Block:
    offered = options(question, rng)
    prompt = after_image(with_choices(question.text, offered), LETTER_ANSWER)
    return _answered(prompt, LETTERS[offered.index(question.answer)], CHOICE, tokenizer)


def _answered(prompt: str, answer: str, kind: int, tokenizer: SentencePieceProcessor) -> _Block:
    """Make a block of which only the answer is trained."""
    ids = [*tokenizer.encode(f"{prompt} {answer}"), EOS]
    hidden = len(tokenizer.encode(prompt))
    return _Block(ids, [IGNORE] * hidden + ids[hidden:], kind)


def _caption_block(signs: tuple[Sign, ...], rng: random.Random, tokenizer: SentencePieceProcessor) -> _Block:
    """Make a caption, "red stop blue 42" or "stop red 42 blue", of which the second of each pair is trained.

    It takes one look-up in the image ("red" -> what it says). Questions that need two in a row come after it.
    """
    order, text_first = rng.sample(signs, len(signs)), rng.random() < 0.5
    ids = tokenizer.encode("\n")
    labels = [IGNORE] * len(ids)
    for sign in order:
        pair = (sign.text, sign.colour) if text_first else (sign.colour, sign.text)
        given, trained = (tokenizer.encode(part) for part in pair)
        ids += given + trained
        labels += [IGNORE] * len(given) + trained
    return _Block(ids, labels, -1)


def _pad(scenes: list[list[_Block]]) -> dict[str, Tensor]:
    """Pad blocks to rectangles on the right, where a causal model never looks."""
    if not scenes:
        empty = torch.empty(0, dtype=torch.long)
        return {"ids": empty, "labels": empty, "kinds": empty}
    wide = max(len(blocks) for blocks in scenes)
    long = max(len(block.ids) for blocks in scenes for block in blocks)
    shape = (len(scenes), wide)
    ids = torch.zeros(*shape, long, dtype=torch.long)
    labels = torch.full((*shape, long), IGNORE)
    kinds = torch.full(shape, -1)
    for row, blocks in enumerate(scenes):
        for place, block in enumerate(blocks):
            ids[row, place, : len(block.ids)] = torch.tensor(block.ids)
            labels[row, place, : len(block.labels)] = torch.tensor(block.labels)
            kinds[row, place] = block.kind
    return {"ids": ids, "labels": labels, "kinds": kinds}


def _caption(signs: tuple[Sign, ...]) -> np.ndarray:
    shown = np.zeros(CAPTION_LABELS, np.float32)
    tens, units, colours = len(WORDS), len(WORDS) + 10, len(WORDS) + 20
    for sign in signs:
        shown[colours + _COLOUR_NAMES.index(sign.colour)] = 1
        if sign.is_number:
            shown[[tens + int(sign.text[0]), units + int(sign.text[1])]] = 1
        else:
            shown[WORDS.index(sign.text)] = 1
    return shown


def _patches(signs: tuple[Sign, ...]) -> np.ndarray:
    classes = np.zeros((GRID, GRID, len(PATCH_CLASSES)), np.int64)
    for sign in signs:
        if sign.is_number:
            text = (0, int(sign.text[0]) + 1, int(sign.text[1]) + 1)
        else:
            text = (WORDS.index(sign.text) + 1, 0, 0)
        classes[overlap(sign.box) > ON_SIGN] = (*text, _COLOUR_NAMES.index(sign.colour) + 1)
    return classes.reshape(GRID * GRID, -1)


def _characters(signs: tuple[Sign, ...]) -> np.ndarray:
    found = np.zeros((GRID, GRID, len(CHARACTERS)), np.float32)
    for sign in signs:
        for character, box in zip(sign.text, sign.characters, strict=True):
            area = (box.right - box.left) * (box.bottom - box.top) / PATCH**2  # in patches, as overlap() counts
            found[overlap(box) > _PATCH_HAS_CHARACTER * area, CHARACTERS.index(character)] = 1
    return found.reshape(GRID * GRID, -1)


@lru_cache(maxsize=1)
def _load(path: str) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=path)
