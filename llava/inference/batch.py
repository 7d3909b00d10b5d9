"""Ask a model many questions at once.

Shapes: B questions, T ids of the longest prompt, S pixels a side.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.decoding import Decoding
from llava.inference.preprocess import Picture
from llava.model.engine import Engine, configure
from llava.model.finite import NotFinite, explain
from llava.model.graphs import OFF
from llava.model.kv_cache import cache_bytes

SHARED_BYTES = 8 * 2**30  # of keys and values that are kept beside a batch for the questions to come


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
