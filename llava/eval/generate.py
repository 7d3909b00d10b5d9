"""Ask a model many questions about images: batched, images prepared ahead of the model, answers saved as they come.

Shapes: B questions, T ids of the longest prompt, S pixels a side.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.eval.answers import AnswerFile
from llava.eval.questions import Question
from llava.mm_utils import load_image, process_images, tokenizer_image_token

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 3  # prepared while the model works on another
SORT_WINDOW = 8  # batches whose questions are sorted by length together: little padding, images still shared


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn.

    Args:
        conv_mode: key of `llava.conversation.conv_templates`.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy; above, answers are sampled.
        top_p: sample only from the most likely tokens that hold this share of the probability.
        num_beams: beams of beam search; 1 is none.

    Raises:
        ValueError: a value out of range; what is possible is named.
    """

    conv_mode: str = "vicuna_v1"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self):
        if self.conv_mode not in conv_templates:
            raise ValueError(
                f"conv_mode={self.conv_mode!r} is unknown; choose one of {', '.join(sorted(conv_templates))}."
            )
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1.")

    def prompt(self, question: str, use_start_end: bool = False) -> str:
        """The whole prompt for a question about one image; `use_start_end` is the model's `mm_use_im_start_end`."""
        image = DEFAULT_IMAGE_TOKEN
        if use_start_end:
            image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
        conversation = conv_templates[self.conv_mode].copy()
        conversation.append_message(conversation.roles[0], f"{image}\n{question}")
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def cut(self, text: str) -> str:
        """The answer without what a model wrote past its own turn."""
        conversation = conv_templates[self.conv_mode]
        two_seps = conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
        stop = conversation.sep2 if two_seps else conversation.sep
        return text.split(stop)[0].strip() if stop else text.strip()

    def options(self) -> dict:
        """Arguments for `model.generate`; None overrides what a checkpoint's generation_config suggests."""
        sampled = self.temperature > 0
        return {
            "do_sample": sampled,
            "temperature": self.temperature if sampled else None,
            "top_p": self.top_p if sampled else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }


class Picture(NamedTuple):
    """An image as the model takes it."""

    pixels: Tensor  # (3, S, S), or (crops, 3, S, S) of an anyres model
    size: tuple[int, int]  # width and height of the original, in pixels


class Answers(NamedTuple):
    """What the model said to a batch."""

    texts: list[str]
    image_tokens: list[int]  # visual tokens the language model saw for each image


def read_picture(path: str | Path, image_processor, config) -> Picture:
    """Decode and prepare one image. Raises ValueError, naming the file, where it is no usable image."""
    image = load_image(str(path))
    try:
        return Picture(process_images([image], image_processor, config)[0], image.size)
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: {error or 'preparing it takes more memory than there is'}") from error


@torch.inference_mode()
def generate_batch(
    model, tokenizer, questions: Sequence[str], pictures: Sequence[Picture], decoding: Decoding
) -> Answers:
    """Answer B questions, each about its own picture. A picture given for several of them is encoded once."""
    use_start_end = getattr(model.config, "mm_use_im_start_end", False)
    prompts = [
        tokenizer_image_token(decoding.prompt(question, use_start_end), tokenizer, IMAGE_TOKEN_INDEX)
        for question in questions
    ]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_ids, mask = pad_left(prompts, padding)
    distinct = {id(picture): picture for picture in pictures}
    encoded = dict(zip(distinct, encode(model, list(distinct.values())), strict=True))
    features = [encoded[id(picture)] for picture in pictures]  # of (tokens, C)
    output = model.generate(
        input_ids.to(model.device),
        image_features=features,
        attention_mask=mask.to(model.device),
        pad_token_id=padding,
        use_cache=True,
        **decoding.options(),
    )
    texts = [decoding.cut(text) for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    return Answers(texts, [len(tokens) for tokens in features])


def encode(model, pictures: Sequence[Picture]) -> list[Tensor]:
    """The tokens of each picture as the language model gets them: a list of (tokens, C)."""
    pixels = [picture.pixels for picture in pictures]
    if len({tensor.shape for tensor in pixels}) == 1:
        pixels = torch.stack(pixels)
    return model.image_features(pixels, [picture.size for picture in pictures])


def pad_left(prompts: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Prompts side by side, (B, T), and the mask of what is no padding, (B, T) bool."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) >= longest - lengths[:, None]


def answer_questions(
    model,
    tokenizer,
    image_processor,
    questions: Sequence[Question],
    image_folder: str | Path,
    answers: AnswerFile,
    *,
    decoding: Decoding | None = None,
    prompt_suffix: str = "",
    batch_size: int = 16,
    num_workers: int | None = None,
    progress: str | None = "",
) -> None:
    """Answer `questions`, appending to `answers` batch by batch.

    Images are decoded and prepared in threads while the model works, each once per batch however many questions share
    it. Greedy answers do not depend on `batch_size` in fp32. A question whose image cannot be used is refused in
    `answers`, with the reason; the others go on.

    Args:
        model, tokenizer, image_processor: from `load_pretrained_model`.
        questions: those still to be answered, usually `answers.todo`.
        image_folder: what the questions' `image` is relative to.
        answers: where answers go.
        decoding: how they are drawn; greedy by default.
        prompt_suffix: put after every question.
        batch_size: questions per call of the model.
        num_workers: threads that prepare images; by default one per CPU core, at most 8.
        progress: what to call the progress bar on stderr; None for no bar.
    """
    decoding = decoding or Decoding()
    folder, workers = Path(image_folder), num_workers or min(8, os.cpu_count() or 1)

    def load(name: str) -> Picture:
        return read_picture(folder / name, image_processor, model.config)

    with tqdm(
        total=len(questions), desc=progress, unit="question", disable=progress is None, dynamic_ncols=True
    ) as bar:
        for batch, futures in read_ahead(make_batches(questions, batch_size), load, workers):
            asked, pictures = [], []
            for question in batch:
                try:
                    pictures.append(futures[question.image].result())
                    asked.append(question)
                except ValueError as error:
                    answers.refuse(question, str(error))
            if asked:
                texts = [question.text + prompt_suffix for question in asked]
                answers.append(asked, *generate_batch(model, tokenizer, texts, pictures, decoding))
            bar.update(len(batch))


def answer_and_merge(answers: AnswerFile, loaded: tuple | None, image_folder: str | Path, **options) -> bool:
    """Answer what has no answer yet and bring it together. Returns True in the process that holds all answers.

    Args:
        loaded: (tokenizer, model, image processor); not looked at if nothing is left to do.
        options: as for `answer_questions`.
    """
    try:
        if answers.todo:
            tokenizer, model, image_processor = loaded
            answer_questions(model, tokenizer, image_processor, answers.todo, image_folder, answers, **options)
        return answers.finish()
    except (KeyboardInterrupt, torch.OutOfMemoryError):
        if answers.shard.index == 0:
            kept, asked = len(answers.read_all()), len(answers.questions)
            logger.warning("%d of %d answers are kept in %s.", kept, asked, answers.path)
        raise


def make_batches(questions: Sequence[Question], batch_size: int) -> Iterator[list[Question]]:
    """Batches of questions of similar length. Sorted only within a window: neighbours often share an image."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1.")
    window = SORT_WINDOW * batch_size
    for start in range(0, len(questions), window):
        near = sorted(questions[start : start + window], key=lambda question: len(question.text))
        for first in range(0, len(near), batch_size):
            yield near[first : first + batch_size]


def read_ahead(
    batches: Iterable[list[Question]], load: Callable[[str], Picture], workers: int
) -> Iterator[tuple[list[Question], dict[str, Future]]]:
    """Each batch with its images, by name, while threads already work on the next batches."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting: deque = deque()
    try:
        for batch in batches:
            names = dict.fromkeys(question.image for question in batch)
            waiting.append((batch, {name: pool.submit(load, name) for name in names}))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
