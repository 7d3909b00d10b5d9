"""A model with its questions and pictures in memory, to be measured at one setting after the other."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llava.eval.cli import choose_data, require_images
from llava.eval.data import Data
from llava.eval.generate import make_chunks
from llava.eval.questions import Question, read_questions
from llava.eval.tasks import Task
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
    """How the model fares at one setting."""

    tokens: int  # per image, rounded, that the language model saw
    accuracy: float  # % of the questions
    on_objects: float | None  # % of the kept patches that lie on an object, where the places of objects are known


@dataclass(frozen=True)
class InMemoryEval:
    """Everything that stays the same from setting to setting; `prepare` makes it."""

    task: Task
    data: Data
    tokenizer: object
    model: object
    questions: list[Question]
    pictures: dict[str, Picture]
    on_object: Tensor | None  # (images, patches) bool, in the order of `pictures`
    decoding: Decoding
    batch_size: int

    @property
    def patches(self) -> int:
        return self.model.get_vision_tower().num_patches

    def measure(self, budget: VisionZipConfig | None) -> Measurement:
        """Answer all questions at `budget`, None being all tokens. The model is as it was loaded afterwards."""
        if budget is None:
            tokens, accuracy = self.answer()
            return Measurement(
                tokens, accuracy, None if self.on_object is None else 100 * self.on_object.float().mean().item()
            )
        attach(self.model, budget)
        try:
            return Measurement(*self.answer(), None if self.on_object is None else self.share_on_objects())
        finally:
            unzip(self.model)

    def answer(self) -> tuple[int, float]:
        """Tokens per image, and the accuracy in %."""
        rows, tokens, images = [], 0, 0
        for chunk in make_chunks(self.questions, self.batch_size):
            pictures = [[self.pictures[name] for name in question.images] for question in chunk.questions]
            texts = [question.text + self.task.prompt_suffix for question in chunk.questions]
            batches = generate_batches(self.model, self.tokenizer, texts, pictures, self.decoding, self.batch_size)
            for batch, answers in batches:
                tokens += sum(answers.image_tokens)
                for i, text in zip(batch, answers.texts, strict=True):
                    question = chunk.questions[i]
                    images += len(question.images)
                    rows.append({"question_id": question.question_id, "prompt": question.text, "text": text})
        with silence_logging():  # each setting would repeat the same remark on --limit
            scores = self.task.metric(self.data, rows)
        return round(tokens / images), scores[self.task.headline]

    @torch.inference_mode()
    def share_on_objects(self) -> float:
        """Return how many % of the kept patches lie on an object; CLS and merged tokens have no place and do not count."""
        tower, hits, kept = self.model.get_vision_tower(), 0, 0
        first = int(tower.has_cls)  # position of the first patch
        for pixels, on_object in zip(self.stacks(), self.on_object.split(ENCODE), strict=True):
            patches = tower.select(pixels).kept[:, first:].cpu() - first  # (B, D), CLS left out
            hits += on_object.gather(1, patches).sum().item()
            kept += patches.numel()
        return 100 * hits / kept if kept else float("nan")

    def stacks(self) -> Iterator[Tensor]:
        pixels = [picture.pixels for picture in self.pictures.values()]
        for first in range(0, len(pixels), ENCODE):
            yield torch.stack(pixels[first : first + ENCODE])


def prepare(args: argparse.Namespace, checkpoint: str, task: Task) -> InMemoryEval:
    """Load the model; decode and prepare each image once, for all settings."""
    if args.checkpoint is None:
        use_one_thread()
    data = choose_data(args, task)
    questions = read_questions(data.question_file, args.limit)
    require_images(questions, data.question_file, data.image_folder, data.how_to_fetch())
    tokenizer, model, image_processor = load(checkpoint, device=device_of(args.device, ALONE))
    unzip(model)  # a setting that the checkpoint carries
    names = dict.fromkeys(name for question in questions for name in question.images)
    pictures = {name: read_picture(data.image_folder / name, image_processor, model.config) for name in names}
    scenes = data.question_file.parent / SCENES
    on_object = object_patches(read_json(scenes), pictures, model.get_vision_tower()) if scenes.exists() else None
    decoding = Decoding(args.conv_mode, args.max_new_tokens).settled(model.config, tokenizer)
    return InMemoryEval(task, data, tokenizer, model, questions, pictures, on_object, decoding, args.batch_size)


def object_patches(scenes: dict, pictures: dict[str, Picture], tower) -> Tensor | None:
    """Mark the patches that lie on an object, (images, patches) bool; None if the tower sees the scenes on another grid."""
    scenes = [scenes[Path(name).stem] for name in pictures]
    side, patch = tower.config.image_size, tower.config.patch_size
    same = all((scene["width"], scene["height"], scene["patch"]) == (side, side, patch) for scene in scenes)
    one_crop = all(picture.pixels.ndim == 3 for picture in pictures.values())
    if not same or not one_crop:
        return None
    on_object = torch.zeros(len(scenes), (side // patch) ** 2, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        on_object[row, scene["on_sign"]] = True
    return on_object
