"""Ask a model many questions about images: batched, images prepared ahead of the model, answers saved as they come.

Shapes: B questions, T ids of the longest prompt, S pixels a side.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from llava.eval.answers import AnswerFile
from llava.eval.questions import Question, by_image
from llava.inference.batch import generate_batches
from llava.inference.decoding import GREEDY, Decoding
from llava.inference.preprocess import Picture, free_workers, lost_workers, read_pictures

logger = logging.getLogger(__name__)

SORT_WINDOW = 8  # batches whose images are sorted by the length of their questions together: little padding
CHUNK = 4  # batches about the same images: few small last ones


class Chunk(NamedTuple):
    """Images that are dealt with together, and all questions about them."""

    images: list[str]
    questions: list[Question]


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

    Questions about the same images are asked together: these are decoded and encoded once, and where each question is
    about one image, the language model reads it once too. Greedy answers depend neither on that nor on `batch_size` in
    fp32. Memory does not grow with their number. A question with an image that cannot be used is refused in `answers`,
    with the reason; the others go on.

    Args:
        model: from `load_pretrained_model`.
        tokenizer: of the model.
        image_processor: of the model.
        questions: those still to be answered, usually `answers.todo`.
        image_folder: what the questions' `images` are relative to.
        answers: where answers go.
        decoding: how they are drawn; greedy, in the checkpoint's template, by default.
        prompt_suffix: put after every question.
        batch_size: questions, and images, that the model works on at a time.
        num_workers: processes that prepare images; by default `free_workers`.
        progress: what to call the progress bar on stderr; None for no bar.
    """
    decoding = (decoding or GREEDY).settled(model.config, tokenizer)
    chunks = make_chunks(questions, batch_size)
    names = [name for chunk in chunks for name in chunk.images]
    workers = free_workers(model.device, len(names)) if num_workers is None else num_workers
    pictures = read_pictures(names, image_folder, image_processor, model.config, workers, batch_size)
    with (
        lost_workers(),
        closing(pictures),  # at an error too: workers end now
        tqdm(total=len(questions), desc=progress, unit="question", disable=progress is None, dynamic_ncols=True) as bar,
    ):
        for chunk in chunks:
            found = {name: next(pictures) for name in chunk.images}
            asked = keep_answerable(chunk.questions, found, answers)
            bar.update(len(chunk.questions) - len(asked))
            if not asked:
                continue
            texts = [question.text + prompt_suffix for question in asked]
            images = [[found[name] for name in question.images] for question in asked]
            for batch, said in generate_batches(model, tokenizer, texts, images, decoding, batch_size):
                answers.append([asked[i] for i in batch], *said)
                bar.update(len(batch))


def keep_answerable(
    questions: Sequence[Question], found: Mapping[str, Picture | str], answers: AnswerFile
) -> list[Question]:
    """Keep the questions whose images can all be used, and refuse the others in `answers`.

    Args:
        questions: to choose from.
        found: name of an image -> the image, or the reason why it cannot be used.
        answers: of these questions.
    """
    kept = []
    for question in questions:
        if reasons := [reason for name in question.images if isinstance(reason := found[name], str)]:
            answers.refuse(question, reasons[0])
        else:
            kept.append(question)
    return kept


def answer_and_merge(answers: AnswerFile, loaded: tuple | None, image_folder: str | Path, **options) -> bool:
    """Answer what has no answer yet and bring it together; returns True in the process that holds all answers.

    Args:
        answers: the questions, and where answers go.
        loaded: (tokenizer, model, image processor); not looked at if nothing is left to do.
        image_folder: what the questions' `images` are relative to.
        options: as for `answer_questions`.
    """
    try:
        if answers.todo:
            answers.begin()
            tokenizer, model, image_processor = loaded
            answer_questions(model, tokenizer, image_processor, answers.todo, image_folder, answers, **options)
        return answers.finish()
    except (KeyboardInterrupt, torch.OutOfMemoryError):
        if answers.shard.index == 0:
            kept, asked = len(answers.read_all()), len(answers.questions)
            logger.warning("%d of %d answers are kept in %s.", kept, asked, answers.path)
        raise


def make_chunks(questions: Sequence[Question], batch_size: int) -> list[Chunk]:
    """Share questions out into chunks, each with all questions about its images.

    A chunk has at most `batch_size` images, unless one question has more, and enough questions for several batches
    where images have many. Questions about several images come first, as they take the most memory, those about none
    last; neither shares a chunk with those about one. They are sorted by length only within a window, so that a run
    goes through the questions of a kind roughly in order.

    Raises:
        ValueError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1.")
    chunks: list[Chunk] = []
    for _, groups in groupby(sorted(by_image(questions), key=kind, reverse=True), kind):
        for window in windows(groups, SORT_WINDOW * batch_size):
            window.sort(key=lambda group: max(len(question.text) for question in group))
            chunks.extend(fill_chunks(window, batch_size))
    return chunks


def kind(group: Sequence[Question]) -> int:
    """Tell whether questions about the same images are about none, one or several: 0, 1 or 2."""
    return min(len(group[0].images), 2)


def fill_chunks(groups: Iterable[Sequence[Question]], batch_size: int) -> Iterator[Chunk]:
    """Put groups about the same images into chunks, in order, each as full as `make_chunks` says."""
    images, questions = {}, []  # a dict holds each name once, in order
    for group in groups:
        names = dict.fromkeys(group[0].images)
        if questions and (len(images | names) > batch_size or len(questions) >= CHUNK * batch_size):
            yield Chunk(list(images), questions)
            images, questions = {}, []
        images |= names
        questions += group
    yield Chunk(list(images), questions)


def windows(groups: Iterable[list[Question]], size: int) -> Iterator[list[list[Question]]]:
    """Yield groups in order, as many at a time as together hold `size` questions."""
    window, held = [], 0
    for group in groups:
        window.append(group)
        held += len(group)
        if held >= size:
            yield window
            window, held = [], 0
    if window:
        yield window
