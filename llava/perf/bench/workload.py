"""Time whole runs of questions: upstream's loop, a question at a time, against ours.

Upstream's way is that of `model_vqa_loader` in LLaVA 1.2: a question at a time, for which the image is decoded and
prepared again, ahead of the model by up to four workers, and encoded again; then transformers' loop. Ours is
`llava.eval.generate.answer_questions`.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from llava.eval.generate import answer_questions
from llava.eval.questions import Question
from llava.inference.decoding import Decoding
from llava.inference.instructions import SHORT
from llava.inference.preprocess import free_workers, read_pictures
from llava.model.graphs import OFF
from llava.perf.bench.stages import Setting, Variant
from llava.perf.bench.timing import synchronize


class Workload(NamedTuple):
    """Questions to be answered, each about one image in a folder."""

    name: str
    folder: Path
    questions: list[Question]
    decoding: Decoding

    @property
    def images(self) -> int:
        return len({name for question in self.questions for name in question.images})


class Endless(Decoding):
    """Decoding whose answers all have `max_new_tokens` tokens: random weights would end them anywhere."""

    def ends(self, model, tokenizer) -> None:
        return None


class WorkloadRun(NamedTuple):
    """What a run of a workload took; the fields are those of bench.json."""

    load: str  # name of the workload
    shape: str  # name of the model
    way: str  # name of the variant, and whose loop
    images: int
    questions: int
    timed: int  # questions that were timed; if fewer, `seconds` are those of all by proportion
    seconds: float
    same: float | None  # % of the answers that equal those of upstream's way with the same tokens


class AnswersInMemory:
    """A stand-in for an `AnswerFile` that keeps answers in memory, by row."""

    def __init__(self):
        self.texts: dict[int, str] = {}

    def append(self, questions: Sequence[Question], texts: Sequence[str], image_tokens: Sequence[int]) -> None:
        self.texts |= {question.row: text for question, text in zip(questions, texts, strict=True)}

    def refuse(self, question: Question, reason: str) -> None:
        raise ValueError(reason)


def pope_shaped(folder: Path, images: Sequence[str], decoding: Decoding, each: int = 18) -> Workload:
    """Make many yes/no questions about few images, `each` per image; those of an image lie far apart, as in POPE."""
    asked = [(image, f"Is there a {thing} in the image?{SHORT}") for thing in things(each) for image in images]
    return Workload("POPE-shaped", folder, to_questions(asked), decoding)


def textvqa_shaped(folder: Path, images: Sequence[str], decoding: Decoding) -> Workload:
    """Make one or two questions about each image, with OCR tokens, so of very different lengths."""
    draw = random.Random(0)
    asked = []
    for i, image in enumerate(images):
        for _ in range(1 + i % 2):
            words = ", ".join(draw.choice(things(18)) for _ in range(draw.randrange(1, 30)))
            asked.append((image, f"what does the sign say?\nReference OCR token: {words}{SHORT}"))
    return Workload("TextVQA-shaped", folder, to_questions(asked), decoding)


def things(count: int) -> list[str]:
    """List words to ask about."""
    names = ("sign", "dog", "car", "bench", "person", "bottle", "chair", "table", "bus", "clock", "tree", "cup")
    return [names[i % len(names)] for i in range(count)]


def to_questions(asked: Sequence[tuple[str, str]]) -> list[Question]:
    """Make questions of (image, text) pairs, numbered in order."""
    return [Question(row, row, (image,), text, row + 1) for row, (image, text) in enumerate(asked)]


def draw_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of a photograph's size and detail; returns their names."""
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
    """Time upstream's loop and ours, with all tokens and zipped.

    Args:
        setting, tokenizer: the model.
        workload: the questions.
        budget: dominant and contextual tokens of a crop.
        fast: how our loop decodes, as in `generate`.
        batch_size: questions at a time in our loop.
        sample: questions that upstream's loop is timed on, evenly spread. Its time is scaled up to all of them, as it
            keeps nothing of a question for the next.
    """
    loop = workload.questions[:: max(1, len(workload.questions) // sample)][:sample]
    runs = []
    for zipped in (None, budget):
        variant = Variant("all tokens" if zipped is None else f"{zipped[0]}+{zipped[1]}", zipped, fast)
        counts = (workload.images, len(workload.questions))
        with variant.on(setting.model):
            upstream = partial(one_by_one, setting, tokenizer, workload, loop)
            seconds, theirs = timed(setting, upstream)
            seconds *= len(workload.questions) / len(loop)
            name = f"{variant.name}, upstream's way"
            runs.append(WorkloadRun(workload.name, setting.name, name, *counts, len(loop), seconds, None))
            seconds, ours = timed(setting, partial(together, setting, tokenizer, workload, batch_size, fast))
            same = 100 * sum(ours[row] == text for row, text in theirs.items()) / len(theirs)
            name = f"{variant.name}, ours"
            runs.append(WorkloadRun(workload.name, setting.name, name, *counts, counts[1], seconds, same))
    return runs


def timed(setting: Setting, answer: Callable[[], dict[int, str]]) -> tuple[float, dict[int, str]]:
    """Call a function twice, the first time to warm up; returns the seconds of the second call, and its answers."""
    answer()
    synchronize(setting.device)
    start = time.perf_counter()
    texts = answer()
    synchronize(setting.device)
    return time.perf_counter() - start, texts


@torch.inference_mode()
def one_by_one(setting: Setting, tokenizer, workload: Workload, questions: Sequence[Question]) -> dict[int, str]:
    """Answer as upstream's loop does; returns answers by row."""
    model, texts = setting.model, {}
    workers = min(4, free_workers(setting.device, len(workload.questions)))
    names = [name for question in questions for name in question.images]
    pictures = read_pictures(names, workload.folder, setting.image_processor, model.config, workers, batch_size=8)
    shown = tqdm(questions, desc=f"{workload.name}, upstream's way", unit="question", leave=False)
    for question, picture in zip(shown, pictures, strict=True):
        if isinstance(picture, str):
            raise ValueError(picture)
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
    """Answer with our loop; returns answers by row."""
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
