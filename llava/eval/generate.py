"""Ask a model many questions about images: batched, images prepared ahead of the model, answers saved as they come.

Shapes: B questions, T ids of the longest prompt, S pixels a side.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, choose_template, conv_templates, token_id
from llava.eval.answers import AnswerFile
from llava.eval.pictures import Picture, free_workers, lost_workers, read_pictures
from llava.eval.questions import Question, by_image
from llava.mm_utils import tokenizer_image_token
from llava.model.engine import Engine
from llava.model.finite import NotFinite, explain
from llava.model.graphs import OFF
from llava.model.kv_cache import cache_bytes
from llava.model.sampling import configure, end_tokens

logger = logging.getLogger(__name__)

SORT_WINDOW = 8  # batches whose images are sorted by the length of their questions together: little padding
CHUNK = 4  # batches about the same images: few small last ones
SHARED_BYTES = 8 * 2**30  # of keys and values that are kept beside a batch for the questions to come


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn.

    Args:
        conv_mode: key of `llava.conversation.conv_templates`. None is the template of the checkpoint that is asked:
            `settled` finds it, and until then there is none.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy; above, answers are sampled.
        top_p: sample only from the most likely tokens that hold this share of the probability.
        num_beams: beams of beam search; 1 is none.

    Raises:
        ValueError: a value out of range; what is possible is named.
    """

    conv_mode: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self):
        if self.conv_mode is not None and self.conv_mode not in conv_templates:
            raise ValueError(
                f"conv_mode={self.conv_mode!r} is unknown; choose one of {', '.join(sorted(conv_templates))}."
            )
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        if not 0 <= self.temperature < float("inf"):  # nor nan
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more, and finite.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1.")

    def settled(self, config, tokenizer) -> "Decoding":
        """The same with its template chosen: that of a checkpoint, by its config and tokenizer, if none was named."""
        return replace(self, conv_mode=choose_template(self.conv_mode, config, tokenizer))

    @property
    def template(self) -> Conversation:
        """The prompt template. Raises ValueError if none was named and no checkpoint was looked at."""
        if self.conv_mode is None:
            raise ValueError(
                "This Decoding has no prompt template yet: name one (conv_mode=), or take the checkpoint's own with "
                ".settled(config, tokenizer)."
            )
        return conv_templates[self.conv_mode]

    def prompt(self, question: str, use_start_end: bool = False, images: int = 1) -> str:
        """The whole prompt for a question about so many images; `use_start_end` is `mm_use_im_start_end`.

        They stand where the question says <image>, else before it, side by side with blanks between, as lmms-eval shows
        several to LLaVA (generate_until of its model).
        """
        image = DEFAULT_IMAGE_TOKEN
        if use_start_end:
            image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
        if images and DEFAULT_IMAGE_TOKEN not in question:
            question = " ".join([DEFAULT_IMAGE_TOKEN] * images) + f"\n{question}"
        conversation = self.template.copy()
        conversation.append_message(conversation.roles[0], question.replace(DEFAULT_IMAGE_TOKEN, image))
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def ids(self, question: str, tokenizer, config, images: int = 1) -> list[int]:
        """The same as ids, with one IMAGE_TOKEN_INDEX for each image."""
        prompt = self.prompt(question, getattr(config, "mm_use_im_start_end", False), images)
        return tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX)

    @property
    def stop(self) -> str:
        """What the template puts behind an answer; may be empty."""
        conversation = self.template
        two_seps = conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
        return conversation.sep2 if two_seps else conversation.sep

    def cut(self, text: str) -> str:
        """The answer without what a model wrote past its own turn."""
        return text.split(self.stop)[0].strip() if self.stop else text.strip()

    def ends(self, model, tokenizer) -> list[int] | None:
        """Ids that end an answer: the checkpoint's own, and the template's `stop` where that is one token."""
        ids = end_tokens(model.generation_config)
        stop = token_id(tokenizer, self.stop)
        return [*ids, *([stop] if stop is not None and stop not in ids else [])] or None

    def options(self, model, tokenizer) -> dict:
        """Arguments for `model.generate`; None overrides what a checkpoint's generation_config suggests."""
        sampled = self.temperature > 0
        return {
            "do_sample": sampled,
            "temperature": self.temperature if sampled else None,
            "top_p": self.top_p if sampled else None,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "eos_token_id": self.ends(model, tokenizer),
            "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        }


GREEDY = Decoding()


class Chunk(NamedTuple):
    """Images that are dealt with together, and all questions about them."""

    images: list[str]
    questions: list[Question]


class Answers(NamedTuple):
    """What the model said to a batch."""

    texts: list[str]
    image_tokens: list[int]  # visual tokens the language model saw for each question, of all its images


def generate_batch(
    model, tokenizer, questions: Sequence[str], pictures: Sequence[Sequence[Picture]], decoding: Decoding
) -> Answers:
    """Answer B questions, each about its own pictures, of which there may be none. One that several of them are about
    is read once. Without `decoding.conv_mode` the checkpoint's template is taken."""
    if not questions:
        return Answers([], [])
    decoding = decoding.settled(model.config, tokenizer)
    ((batch, answers),) = generate_batches(model, tokenizer, questions, pictures, decoding, len(questions))
    _, texts, tokens = zip(*sorted(zip(batch, *answers, strict=True)), strict=True)  # in the order of the questions
    return Answers(list(texts), list(tokens))


@torch.inference_mode()
def generate_batches(
    model,
    tokenizer,
    questions: Sequence[str],
    pictures: Sequence[Sequence[Picture]],
    decoding: Decoding,
    batch_size: int,
) -> Iterator[tuple[list[int], Answers]]:
    """Answer questions, each about its own pictures, of which there may be none; at most `batch_size` at a time, those
    of similar length together.

    A picture that several questions share goes once through the tower, and, where each question is about one, once
    through the language model too, with the system prompt before it. Greedy answers are those of `model.generate` one
    by one, in fp32.

    Yields:
        Which of the questions a batch held, and the answers to them.

    Raises:
        NotFinite: the model's numbers are NaN or infinite.
        ValueError: `decoding` is not settled.
    """
    prompts = [
        decoding.ids(question, tokenizer, model.config, images=len(own))
        for question, own in zip(questions, pictures, strict=True)
    ]
    distinct = {id(picture): picture for own in pictures for picture in own}
    place = {key: i for i, key in enumerate(distinct)}
    images_of = [[place[id(picture)] for picture in own] for own in pictures]
    options = {"use_cache": True, **decoding.options(model, tokenizer)}
    config, beyond = configure(model, options)
    can_be_fast = not beyond and model.config._attn_implementation == "sdpa" and model.fast != OFF
    engine = model.engine() if can_be_fast else None
    features = encode(engine or model, list(distinct.values()))  # of (tokens, C)

    def answers(batch: list[int], output: Tensor) -> tuple[list[int], Answers]:
        texts = [decoding.cut(text) for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
        return batch, Answers(texts, [sum(len(features[image]) for image in images_of[i]) for i in batch])

    def pixels(batch: list[int]) -> list[Tensor]:
        return list({id(picture): picture.pixels for i in batch for picture in pictures[i]}.values())

    batches = even_batches(sorted(range(len(prompts)), key=lambda i: len(prompts[i])), batch_size)
    if engine and len(distinct) < len(prompts) and can_share(engine, prompts, features):
        split = prompts[0].index(IMAGE_TOKEN_INDEX)
        system = engine.embed(prompts[0][:split])
        heads = [torch.cat([system, tokens.to(system)]) for tokens in features]
        with engine.open_cache(len(heads), max(map(len, heads))) as images:
            images.extend(*pad_right(heads))
            for batch in batches:
                tails = [engine.embed(prompts[i][split + 1 :]) for i in batch]
                begins = [images_of[i][0] for i in batch]
                try:
                    output = engine.generate(*pad_right(tails), config, begin_with=(images, begins))
                except NotFinite:
                    rows = (torch.cat([heads[image], tail]) for image, tail in zip(begins, tails, strict=True))
                    raise explain(model, rows, pixels(batch)) from None
                yield answers(batch, output)
        return
    for batch in batches:
        input_ids, mask = pad_left([prompts[i] for i in batch], options["pad_token_id"])
        try:
            output = model.generate(
                input_ids.to(model.device),
                image_features=[features[image] for i in batch for image in images_of[i]],
                attention_mask=mask.to(model.device),
                fast=engine.mode if engine else OFF,
                **options,
            )
        except NotFinite as error:  # of a prompt; its pixels tell more
            raise explain(model, [], pixels(batch), known=error) from None
        yield answers(batch, output)


def can_share(engine: Engine, prompts: list[list[int]], features: list[Tensor]) -> bool:
    """Whether what prompts begin with can be computed once: all have one image, what is kept fits beside a batch, and
    no prompt will be cut or refused."""
    if {ids.count(IMAGE_TOKEN_INDEX) for ids in prompts} != {1}:
        return False
    limit = getattr(engine.model.config, "tokenizer_model_max_length", None)
    longest = max(map(len, features))
    fits = limit is None or max(map(len, prompts)) - 1 + longest <= limit
    heads = cache_bytes(engine.decoder, len(features), prompts[0].index(IMAGE_TOKEN_INDEX) + longest)
    return fits and heads <= SHARED_BYTES


def encode(encoder, pictures: Sequence[Picture]) -> list[Tensor]:
    """The tokens of each picture as the language model gets them, a list of (tokens, C), by a model or its engine."""
    pixels = [picture.pixels for picture in pictures]
    if len({tensor.shape for tensor in pixels}) == 1:
        pixels = torch.stack(pixels)
    return encoder.image_features(pixels, [picture.size for picture in pictures])


def pad_right(rows: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Rows of (t, C) side by side, (B, T, C), and the length of each."""
    return pad_sequence(list(rows), batch_first=True), [len(row) for row in rows]


def even_batches(items: Sequence, batch_size: int) -> list[list]:
    """As few batches as possible, none larger than `batch_size`, and all about equally large."""
    count = -(-len(items) // batch_size)
    cuts = [len(items) * i // count for i in range(count + 1)]
    return [list(items[a:b]) for a, b in pairwise(cuts)]


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

    Questions about the same images are asked together: these are decoded and encoded once, and where each question is
    about one image, the language model reads it once too. Greedy answers depend neither on that nor on `batch_size` in
    fp32. Memory does not grow with their number. A question with an image that cannot be used is refused in `answers`,
    with the reason; the others go on.

    Args:
        model, tokenizer, image_processor: from `load_pretrained_model`.
        questions: those still to be answered, usually `answers.todo`.
        image_folder: what the questions' `images` are relative to.
        answers: where answers go.
        decoding: how they are drawn; greedy, in the checkpoint's template, by default.
        prompt_suffix: put after every question.
        batch_size: questions, and images, that the model works on at a time.
        num_workers: processes that prepare images; by default `pictures.free_workers`.
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
            asked = []
            for question in chunk.questions:
                if reasons := [found[name] for name in question.images if isinstance(found[name], str)]:
                    answers.refuse(question, reasons[0])
                else:
                    asked.append(question)
            bar.update(len(chunk.questions) - len(asked))
            if not asked:
                continue
            texts = [question.text + prompt_suffix for question in asked]
            images = [[found[name] for name in question.images] for question in asked]
            for batch, said in generate_batches(model, tokenizer, texts, images, decoding, batch_size):
                answers.append([asked[i] for i in batch], *said)
                bar.update(len(batch))


def answer_and_merge(answers: AnswerFile, loaded: tuple | None, image_folder: str | Path, **options) -> bool:
    """Answer what has no answer yet and bring it together. Returns True in the process that holds all answers.

    Args:
        loaded: (tokenizer, model, image processor); not looked at if nothing is left to do.
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
    """Share questions out into chunks with all that are about the same images: at most `batch_size` images, unless one
    question has more, and enough questions for several batches where images have many. Questions about several images
    come first, as they take the most memory, those about none last; neither shares a chunk with those about one.

    Sorted by length only within a window, so that a run goes through the questions of a kind roughly in order.
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
    """Whether questions about the same images are about none, one or several: 0, 1 or 2."""
    return min(len(group[0].images), 2)


def fill_chunks(groups: Iterable[Sequence[Question]], batch_size: int) -> Iterator[Chunk]:
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
    """Groups in order, as many at a time as together hold `size` questions."""
    window, held = [], 0
    for group in groups:
        window.append(group)
        held += len(group)
        if held >= size:
            yield window
            window, held = [], 0
    if window:
        yield window
