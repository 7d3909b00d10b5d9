"""Ask a model many questions at once, and compute what they share once.

Shapes: B questions, T ids of the longest prompt, n tokens of an image, C channels of the language model.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.decoding import Decoding
from llava.inference.preprocess import Picture
from llava.model.engine import Engine
from llava.model.finite import NotFinite, explain
from llava.model.graphs import OFF
from llava.model.kv_cache import cache_bytes
from llava.model.sampling import configure

SHARED_BYTES = 8 * 2**30  # of keys and values that are kept beside a batch for the questions to come


class Answers(NamedTuple):
    """What the model said to a batch."""

    texts: list[str]
    image_tokens: list[int]  # visual tokens the language model saw for each question, of all its images


class Prompts(NamedTuple):
    """Questions as the language model reads them, and the pictures they are about, each of these once."""

    ids: list[list[int]]  # of each question, with one IMAGE_TOKEN_INDEX per image
    pictures: list[Picture]
    images: list[list[int]]  # of each question: positions in `pictures`

    @classmethod
    def of(
        cls, questions: Sequence[str], pictures: Sequence[Sequence[Picture]], decoding: Decoding, tokenizer, config
    ) -> "Prompts":
        """Write out the prompt of each question about its own pictures; see `generate_batches`."""
        ids = [
            decoding.ids(question, tokenizer, config, images=len(own))
            for question, own in zip(questions, pictures, strict=True)
        ]
        distinct = {id(picture): picture for own in pictures for picture in own}
        place = {key: i for i, key in enumerate(distinct)}
        return cls(ids, list(distinct.values()), [[place[id(picture)] for picture in own] for own in pictures])

    def batches(self, batch_size: int) -> list[list[int]]:
        """Share the questions out, those of similar length together."""
        return even_batches(sorted(range(len(self.ids)), key=lambda i: len(self.ids[i])), batch_size)

    def pixels(self, batch: Sequence[int]) -> list[Tensor]:
        """Collect the pixels of the pictures that a batch is about, each once."""
        return [self.pictures[image].pixels for image in dict.fromkeys(j for i in batch for j in self.images[i])]


def generate_batch(
    model, tokenizer, questions: Sequence[str], pictures: Sequence[Sequence[Picture]], decoding: Decoding
) -> Answers:
    """Answer B questions at once, each about its own pictures.

    Args:
        model: from `load_pretrained_model`.
        tokenizer: likewise.
        questions: without a template.
        pictures: of each question; there may be none. One that several questions are about is computed once.
        decoding: how answers are drawn. Without `conv_mode` the checkpoint's template is taken.

    Raises:
        NotFinite: the model's numbers are NaN or infinite.
        ValueError: more or fewer lists of pictures than questions, or a prompt that cannot be used.
    """
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
    """Answer questions in batches, those of similar length together.

    A picture that several questions share goes once through the tower, and, where each question is about one, once
    through the language model too, with the system prompt before it. Greedy answers are those of `model.generate` one
    by one, in fp32.

    Args:
        model: from `load_pretrained_model`.
        tokenizer: likewise.
        questions: without a template.
        pictures: of each question; there may be none.
        decoding: how answers are drawn, with its template chosen.
        batch_size: most questions at a time.

    Yields:
        Which of the questions a batch held, and the answers to them.

    Raises:
        NotFinite: the model's numbers are NaN or infinite.
        ValueError: `decoding` is not settled.
    """
    prompts = Prompts.of(questions, pictures, decoding, tokenizer, model.config)
    options = {"use_cache": True, **decoding.options(model, tokenizer)}
    config, beyond = configure(model, options)
    can_be_fast = not beyond and model.config._attn_implementation == "sdpa" and model.fast != OFF
    engine = model.engine() if can_be_fast else None
    features = encode(engine or model, prompts.pictures)
    batches = prompts.batches(batch_size)

    if engine and len(prompts.pictures) < len(prompts.ids) and can_share(engine, prompts.ids, features):
        outputs = continue_from_images(engine, prompts, features, batches, config)
    else:
        outputs = generate_each(model, prompts, features, batches, fast=engine.mode if engine else OFF, **options)
    with closing(outputs):
        for batch, output in zip(batches, outputs, strict=True):
            texts = [decoding.cut(text) for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
            yield batch, Answers(texts, [sum(len(features[image]) for image in prompts.images[i]) for i in batch])


def continue_from_images(
    engine: Engine, prompts: Prompts, features: list[Tensor], batches: list[list[int]], config: GenerationConfig
) -> Generator[Tensor, None, None]:
    """Answer batches from caches of what their prompts begin with: the system's words and one image, computed once.

    Args:
        engine: of the model.
        prompts: all of them about one image, see `can_share`.
        features: of each picture, (n, C).
        batches: positions of questions.
        config: of the generation.

    Yields:
        New ids of each batch, (B, longest answer).
    """
    split = prompts.ids[0].index(IMAGE_TOKEN_INDEX)
    system = engine.embed(prompts.ids[0][:split])
    heads = [torch.cat([system, tokens.to(system)]) for tokens in features]
    with engine.open_cache(len(heads), max(map(len, heads))) as images:
        images.extend(*pad_right(heads))
        for batch in batches:
            tails = [engine.embed(prompts.ids[i][split + 1 :]) for i in batch]
            begins = [prompts.images[i][0] for i in batch]
            try:
                yield engine.generate(*pad_right(tails), config, begin_with=(images, begins))
            except NotFinite:
                rows = (torch.cat([heads[image], tail]) for image, tail in zip(begins, tails, strict=True))
                raise explain(engine.model, rows, prompts.pixels(batch)) from None


def generate_each(
    model, prompts: Prompts, features: list[Tensor], batches: list[list[int]], **options
) -> Generator[Tensor, None, None]:
    """Answer batches by `model.generate`, each prompt from its beginning.

    Args:
        model: a LLaVA.
        prompts: with any number of images each.
        features: of each picture, (n, C).
        batches: positions of questions.
        options: of `model.generate`.

    Yields:
        New ids of each batch, (B, longest answer).
    """
    for batch in batches:
        input_ids, mask = pad_left([prompts.ids[i] for i in batch], options["pad_token_id"])
        try:
            yield model.generate(
                input_ids.to(model.device),
                image_features=[features[image] for i in batch for image in prompts.images[i]],
                attention_mask=mask.to(model.device),
                **options,
            )
        except NotFinite as error:  # of a prompt; its pixels tell more
            raise explain(model, [], prompts.pixels(batch), known=error) from None


def can_share(engine: Engine, prompts: list[list[int]], features: list[Tensor]) -> bool:
    """Tell whether what prompts begin with can be computed once.

    It can where all have one image, what is kept fits next to a batch, and no prompt will be cut or refused.
    """
    if {ids.count(IMAGE_TOKEN_INDEX) for ids in prompts} != {1}:
        return False
    limit = getattr(engine.model.config, "tokenizer_model_max_length", None)
    longest = max(map(len, features))
    fits = limit is None or max(map(len, prompts)) - 1 + longest <= limit
    heads = cache_bytes(engine.decoder, len(features), prompts[0].index(IMAGE_TOKEN_INDEX) + longest)
    return fits and heads <= SHARED_BYTES


def encode(encoder, pictures: Sequence[Picture]) -> list[Tensor]:
    """Compute the tokens of each picture as the language model gets them, (n, C), by a model or its engine."""
    pixels = [picture.pixels for picture in pictures]
    if len({tensor.shape for tensor in pixels}) == 1:
        pixels = torch.stack(pixels)
    return encoder.image_features(pixels, [picture.size for picture in pictures])


def pad_right(rows: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Stack rows of (t, C), padded at their ends: (B, T, C), and the length of each."""
    return pad_sequence(list(rows), batch_first=True), [len(row) for row in rows]


def pad_left(prompts: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Stack prompts, padded at their beginnings: (B, T), and the mask of what is no padding, (B, T) bool."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) >= longest - lengths[:, None]


def even_batches(items: Sequence, batch_size: int) -> list[list]:
    """Split items into as few batches of at most `batch_size` as possible, all about equally large."""
    count = -(-len(items) // batch_size)
    cuts = [len(items) * i // count for i in range(count + 1)]
    return [list(items[a:b]) for a, b in pairwise(cuts)]
