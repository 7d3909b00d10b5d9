"""Whole runs of questions: upstream's way, one after the other, against ours.

Upstream's way is that of `model_vqa_loader` in LLaVA 1.2: a question at a time, for which the image is decoded and
prepared again, ahead of the model by up to four workers, and encoded again; then transformers' loop. Ours is
`llava.eval.generate.answer_questions`.
"""

import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from llava.eval.generate import answer_questions
from llava.eval.questions import Question
from llava.inference.decoding import Decoding
from llava.inference.preprocess import free_workers, read_pictures
from llava.inference.prompts import SHORT
from llava.model.graphs import OFF
from llava.perf.bench.stages import Setting, Variant
from llava.perf.bench.timing import synchronize


class Workload(NamedTuple):
    """Questions, each about one image in a folder."""

    name: str
    folder: Path
    questions: list[Question]
    decoding: Decoding

    @property
    def images(self) -> int:
        return len({name for question in self.questions for name in question.images})


class Endless(Decoding):
    """AnswersInMemory of `max_new_tokens` tokens, all of them: random weights would end them anywhere."""

    def ends(self, model, tokenizer) -> None:
        return None


class WorkloadRun(NamedTuple):
    """What a run of a load took."""

    load: str
    shape: str
    way: str
    images: int
    questions: int
    timed: int  # questions that were timed; if fewer, `seconds` are those of all by proportion
    seconds: float
    same: float | None  # % of the answers that equal those of upstream's way with the same tokens


class AnswersInMemory:
    """In place of an `AnswerFile`: keeps answers in memory, by row."""

    def __init__(self):
        self.texts: dict[int, str] = {}

    def append(self, questions: Sequence[Question], texts: Sequence[str], image_tokens: Sequence[int]) -> None:
        self.texts |= {question.row: text for question, text in zip(questions, texts, strict=True)}

    def refuse(self, question: Question, reason: str) -> None:
        raise ValueError(reason)


def pope_shaped(folder: Path, images: Sequence[str], decoding: Decoding, each: int = 18) -> Workload:
    """Many yes/no questions about few images; as in POPE, three lists that each hold a part of every image's."""
    asked = [(image, f"Is there a {thing} in the image?{SHORT}") for thing in things(each) for image in images]
    return Workload("POPE-shaped", folder, to_questions(asked), decoding)


def textvqa_shaped(folder: Path, images: Sequence[str], decoding: Decoding) -> Workload:
    """One or two questions about each image, with OCR tokens, so of very different length."""
    draw = random.Random(0)
    asked = []
    for i, image in enumerate(images):
        for _ in range(1 + i % 2):
            words = ", ".join(draw.choice(things(18)) for _ in range(draw.randrange(1, 30)))
            asked.append((image, f"what does the sign say?\nReference OCR token: {words}{SHORT}"))
    return Workload("TextVQA-shaped", folder, to_questions(asked), decoding)


def things(count: int) -> list[str]:
    names = ("sign", "dog", "car", "bench", "person", "bottle", "chair", "table", "bus", "clock", "tree", "cup")
    return [names[i % len(names)] for i in range(count)]


def to_questions(asked: Sequence[tuple[str, str]]) -> list[Question]:
    return [Question(row, row, (image,), text, row + 1) for row, (image, text) in enumerate(asked)]


def draw_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of a photograph's size and of as much detail; returns their names."""
    names = []
    for i in range(count):
        noise = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(i)).mul(255).byte()
        picture = Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.jpg", quality=90)
        names.append(f"{i}.jpg")
    return names


def compare_runs(
    setting: Setting, tokenizer, workload: Workload, budget: tuple[int, int], fast: str, batch_size: int, sample: int
) -> list[WorkloadRun]:
    """Upstream's way and ours, with all tokens and zipped.

    Args:
        sample: questions that upstream's way is timed on, spread over the load; its time is taken to grow with their
            number, as nothing of a question is kept for the next.
    """
    loop = workload.questions[:: max(1, len(workload.questions) // sample)][:sample]
    runs = []
    for zipped in (None, budget):
        variant = Variant("all tokens" if zipped is None else f"{zipped[0]}+{zipped[1]}", zipped, fast)
        counts = (workload.images, len(workload.questions))
        with variant.on(setting.model):
            for _ in range(2):  # the first warms up
                seconds, texts = timed(setting, partial(one_by_one, setting, tokenizer, workload, loop))
            seconds *= len(workload.questions) / len(loop)
            runs.append(
                WorkloadRun(
                    workload.name, setting.name, f"{variant.name}, upstream's way", *counts, len(loop), seconds, None
                )
            )
            for _ in range(2):
                seconds, ours = timed(setting, partial(together, setting, tokenizer, workload, batch_size, fast))
            same = 100 * sum(ours[key] == text for key, text in texts.items()) / len(texts)
            runs.append(
                WorkloadRun(workload.name, setting.name, f"{variant.name}, ours", *counts, counts[1], seconds, same)
            )
    return runs


def timed(setting: Setting, function) -> tuple[float, dict[int, str]]:
    synchronize(setting.device)
    start = time.perf_counter()
    texts = function()
    synchronize(setting.device)
    return time.perf_counter() - start, texts


@torch.inference_mode()
def one_by_one(setting: Setting, tokenizer, workload: Workload, questions: Sequence[Question]) -> dict[int, str]:
    """AnswersInMemory by row."""
    model, texts = setting.model, {}
    workers = min(4, free_workers(setting.device, len(workload.questions)))
    names = [name for question in questions for name in question.images]
    pictures = read_pictures(names, workload.folder, setting.image_processor, model.config, workers, batch_size=8)
    shown = tqdm(questions, desc=f"{workload.name}, upstream's way", unit="question", leave=False)
    for question, picture in zip(shown, pictures, strict=True):
        ids = torch.tensor([workload.decoding.ids(question.text, tokenizer, model.config)], device=setting.device)
        output = model.generate(
            ids,
            images=picture.pixels[None].to(setting.device, setting.dtype),
            image_sizes=[picture.size],
            attention_mask=torch.ones_like(ids),
            use_cache=True,
            fast=OFF,
            **workload.decoding.options(model, tokenizer),
        )
        texts[question.row] = workload.decoding.cut(tokenizer.decode(output[0], skip_special_tokens=True))
    return texts


def together(setting: Setting, tokenizer, workload: Workload, batch_size: int, fast: str) -> dict[int, str]:
    """AnswersInMemory by row."""
    answers = AnswersInMemory()
    setting.model.fast = fast
    try:
        answer_questions(
            setting.model,
            tokenizer,
            setting.image_processor,
            workload.questions,
            workload.folder,
            answers,
            decoding=workload.decoding,
            batch_size=batch_size,
            progress=None,
        )
    finally:
        setting.model.fast = None
    return answers.texts
