"""Measure a model at one setting after the other, with its questions and pictures kept in memory."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llava.eval.data_options import choose_data, require_images
from llava.eval.generate import make_chunks
from llava.eval.questions import Question, read_questions
from llava.eval.tasks.base import Data, Task
from llava.inference.batch import generate_batches
from llava.inference.decoding import Decoding
from llava.inference.loading import load
from llava.inference.preprocess import Picture, read_picture
from llava.utils.cli import silence_logging
from llava.utils.environment import device_of, use_one_thread
from llava.utils.files import read_json
from llava.utils.processes import ALONE
from visionzip_patch import VisionZipConfig, unzip
from visionzip_patch.api import attach

SCENES = "signs.json"  # next to the questions, where the places of objects are known
ENCODE = 32  # images at a time where only the selection is asked for


class Measurement(NamedTuple):
    """Tokens and accuracy of the model at one setting."""

    tokens: int  # per image, rounded, that the language model gets
    accuracy: float  # % of the questions
    on_objects: float | None  # % of the kept patches that lie on an object, where the places of objects are known


@dataclass(frozen=True)
class InMemoryEval:
    """A model, the questions of a task and their prepared images: what stays the same from setting to setting.

    Made by `prepare`.
    """

    task: Task
    data: Data
    tokenizer: Any
    model: Any  # a LLaVA
    questions: list[Question]
    pictures: dict[str, Picture]
    on_object: Tensor | None  # (images, patches) bool, in the order of `pictures`
    decoding: Decoding
    batch_size: int

    @property
    def patches(self) -> int:
        """Patches of a crop."""
        return self.model.get_vision_tower().num_patches

    def measure(self, budget: VisionZipConfig | None) -> Measurement:
        """Answer all questions at `budget`, None for all tokens. Afterwards the model is as it was loaded."""
        if budget is None:
            on_objects = None if self.on_object is None else 100 * self.on_object.float().mean().item()
            return Measurement(*self.answer(), on_objects)
        attach(self.model, budget)
        try:
            return Measurement(*self.answer(), self.share_on_objects())
        finally:
            unzip(self.model)

    def answer(self) -> tuple[int, float]:
        """Answer all questions with the model as it is; returns tokens per image, and the accuracy in %."""
        texts, tokens, images = [], 0, 0
        for chunk in make_chunks(self.questions, self.batch_size):
            pictures = [[self.pictures[name] for name in question.images] for question in chunk.questions]
            prompts = [question.text + self.task.prompt_suffix for question in chunk.questions]
            batches = generate_batches(self.model, self.tokenizer, prompts, pictures, self.decoding, self.batch_size)
            for batch, answers in batches:
                tokens += sum(answers.image_tokens)
                images += sum(len(pictures[i]) for i in batch)
                texts += zip((chunk.questions[i] for i in batch), answers.texts, strict=True)
        return round(tokens / images), self.score(texts)

    def score(self, answers: Iterable[tuple[Question, str]]) -> float:
        """Return the task's headline score of the answers, in %. Raises ValueError for a task that a server scores."""
        if self.task.metric is None or self.task.headline is None:
            raise ValueError(f"{self.task.name} is scored elsewhere; choose a task that has a metric here.")
        rows = [
            {"question_id": question.question_id, "prompt": question.text, "text": text} for question, text in answers
        ]
        with silence_logging():  # each setting would repeat the same remark on --limit
            return self.task.metric(self.data, rows)[self.task.headline]

    @torch.inference_mode()
    def share_on_objects(self) -> float | None:
        """Return how many % of the kept patches lie on an object, or None where the places of objects are unknown.

        CLS and merged tokens have no place and do not count.
        """
        if self.on_object is None:
            return None
        tower, hits, kept = self.model.get_vision_tower(), 0, 0
        first = int(tower.has_cls)  # position of the first patch
        for pixels, on_object in zip(self.stacks(), self.on_object.split(ENCODE), strict=True):
            patches = tower.select(pixels).kept[:, first:].cpu() - first  # (B, D), CLS left out
            hits += on_object.gather(1, patches).sum().item()
            kept += patches.numel()
        return 100 * hits / kept if kept else float("nan")

    def stacks(self) -> Iterator[Tensor]:
        """Yield the pixels of ENCODE images at a time, (B, 3, S, S)."""
        pixels = [picture.pixels for picture in self.pictures.values()]
        for first in range(0, len(pixels), ENCODE):
            yield torch.stack(pixels[first : first + ENCODE])


def prepare(args: argparse.Namespace, checkpoint: str, task: Task) -> InMemoryEval:
    """Load the model, read the questions, and decode and prepare each image once, for all settings.

    Args:
        args: `checkpoint`, None for the embedded one; `device`, `limit`, `conv_mode`, `max_new_tokens`, `batch_size`,
            and the options of `llava.eval.data_options.add_data_options`.
        checkpoint: folder or hub id.
        task: what is asked.

    Raises:
        ValueError: the data or the checkpoint cannot be read, or an image is missing.
    """
    if args.checkpoint is None:
        use_one_thread()
    data = choose_data(args, task)
    questions = read_questions(data.question_file, args.limit)
    require_images(
        questions, data.question_file, data.image_folder, task.how_to_fetch(embedded=args.checkpoint is None)
    )
    tokenizer, model, image_processor = load(checkpoint, device=device_of(args.device, ALONE))
    unzip(model)  # a setting that the checkpoint carries
    names = dict.fromkeys(name for question in questions for name in question.images)
    pictures = {name: read_picture(data.image_folder / name, image_processor, model.config) for name in names}
    scenes = data.question_file.parent / SCENES
    on_object = object_patches(read_json(scenes), pictures, model.get_vision_tower()) if scenes.exists() else None
    decoding = Decoding(args.conv_mode, args.max_new_tokens).settled(model.config, tokenizer)
    return InMemoryEval(task, data, tokenizer, model, questions, pictures, on_object, decoding, args.batch_size)


def object_patches(scenes: dict, pictures: dict[str, Picture], tower) -> Tensor | None:
    """Mark the patches that lie on an object: (images, patches) bool.

    Args:
        scenes: by the stem of an image's name, its `width`, `height` and `patch` in pixels, and the patches `on_sign`.
        pictures: by name, in the order of the rows.
        tower: the vision tower; None is returned if it sees the scenes on another grid, or in several crops.
    """
    shown = [scenes[Path(name).stem] for name in pictures]
    side, patch = tower.config.image_size, tower.config.patch_size
    same = all((scene["width"], scene["height"], scene["patch"]) == (side, side, patch) for scene in shown)
    one_crop = all(picture.pixels.ndim == 3 for picture in pictures.values())
    if not same or not one_crop:
        return None
    on_object = torch.zeros(len(shown), (side // patch) ** 2, dtype=torch.bool)
    for row, scene in enumerate(shown):
        on_object[row, scene["on_sign"]] = True
    return on_object
