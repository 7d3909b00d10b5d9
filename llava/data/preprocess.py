"""One conversation of LLaVA's JSON -> ids and labels: what a model reads, and which of it it learns.

The conversation is written down once, with the template that later asks the model, and each answer is known by its
place in that text. A token is learnt if it begins inside an answer, so no tokenizer or template needs code of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llava.constants import (
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, image_marker
from llava.data.records import turn_texts
from llava.mm_utils import surplus_bos


class Example(NamedTuple):
    """Ids of a conversation, and labels on its answers."""

    input_ids: Tensor  # (T,) int64, IMAGE_TOKEN_INDEX where an image goes
    labels: Tensor  # (T,) int64, the ids of the answers, elsewhere IGNORE_INDEX


def preprocess(
    turns: Sequence[Mapping],
    tokenizer,
    conversation: Conversation,
    *,
    has_image: bool,
    use_start_end: bool = False,
    max_length: int | None = None,
) -> Example:
    """Tokenize a whole conversation, with labels on its answers and what closes them.

    The ids are those that LLaVA trains on, but for the "###" templates (SeparatorStyle.SINGLE): LLaVA trains these on a
    text that it never asks with; here both are `conversation.get_prompt()`.

    Args:
        turns: `{"from": "human" | "gpt", "value": text}` in turn. If gpt begins, that turn is left out, as in LLaVA.
        tokenizer: one of the fast ones: they report which characters a token stands for.
        conversation: the template; messages that it holds are left out.
        has_image: whether <image> in a text stands for an image. These move to the front of their message.
        use_start_end: put <im_start> and <im_end> around each image (`config.mm_use_im_start_end`).
        max_length: cut a text without images to so many ids. The length of one with images is known after the vision
            tower, so the model cuts it (`config.tokenizer_model_max_length`).

    Raises:
        ValueError: no turns, an unknown role, two turns in a row of the same one, a value that is no text, no answer,
            or for a plain template anything but one question with <image> and one answer.
    """
    texts = turn_texts(turns)
    if not any(text.strip() for text in texts[1::2]):
        raise ValueError(f"{len(turns)} turns, but after a question gpt says nothing in them that could be learnt")
    if has_image:
        texts = [images_first(text, conversation, use_start_end) for text in texts]
    return make_example(texts, tokenizer, conversation, has_image=has_image, max_length=max_length)


def make_example(
    texts: Sequence[str], tokenizer, conversation: Conversation, *, has_image: bool, max_length: int | None = None
) -> Example:
    """Tokenize the texts of user and assistant in turn, as the model is to read them; labels as in `preprocess`."""
    is_plain = conversation.sep_style is SeparatorStyle.PLAIN
    prompt, answers = caption(texts, conversation) if is_plain else write_down(texts, conversation)

    ids, begins = tokenize(prompt, tokenizer, has_image)
    is_learnt = torch.zeros(len(ids), dtype=torch.bool)
    for start, end in answers:
        is_learnt |= (begins >= start) & (begins < end)
    labels = ids.where(is_learnt, IGNORE_INDEX)
    end = None if has_image else max_length
    return Example(ids[:end], labels[:end])


def images_first(text: str, conversation: Conversation, use_start_end: bool) -> str:
    """Move the images of a text to its front, each marked as the template wants it and followed by a line break."""
    count = text.count(DEFAULT_IMAGE_TOKEN)
    if not count:
        return text
    image = image_marker(use_start_end)
    if "mmtag" in conversation.version:
        image = f"<Image>{image}</Image>"
    return (f"{image}\n" * count + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()).strip()


def write_down(texts: Sequence[str], conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation as one text, and note where in it each answer starts and ends, in characters.

    An answer is what the text gains over the prompt that asks for it, so it includes the space before it and the
    separator after it: all that the model has to write itself.
    """
    messages = [(conversation.roles[i % 2], text) for i, text in enumerate(texts)]
    asking = (conversation.roles[1], None)
    whole = replace(conversation, messages=messages).get_prompt()
    answers = []
    for i in range(1, len(messages), 2):
        asked = replace(conversation, messages=[*messages[:i], asking]).get_prompt()
        answered = replace(conversation, messages=messages[: i + 1]).get_prompt()
        assert answered.startswith(asked), conversation.sep_style
        assert whole.startswith(answered), conversation.sep_style
        answers.append((len(asked), len(answered)))
    return whole, answers


def caption(texts: Sequence[str], conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation by the plain template, which keeps only the images of the question; see `write_down`."""
    count = texts[0].count(DEFAULT_IMAGE_TOKEN)
    if len(texts) != 2 or not count:
        raise ValueError(
            f"the plain template takes one question with <image> and one answer, got {len(texts)} turns with {count} "
            f"images in the first: choose another template for conversations, such as v1"
        )
    question = DEFAULT_IMAGE_TOKEN * count
    prompt = question + texts[1] + conversation.sep
    return prompt, [(len(question), len(prompt))]


def tokenize(prompt: str, tokenizer, has_image: bool) -> tuple[Tensor, Tensor]:
    """Tokenize a prompt, and find the character of it that each id begins at: (T,) and (T,), int64."""
    chunks = prompt.split(DEFAULT_IMAGE_TOKEN) if has_image else [prompt]
    encoded = tokenizer(chunks, return_offsets_mapping=True)
    drops = surplus_bos(encoded.input_ids, tokenizer)
    ids, begins, position = [], [], 0
    pieces = zip(chunks, encoded.input_ids, encoded.offset_mapping, drops, strict=True)
    for i, (chunk, chunk_ids, spans, drop) in enumerate(pieces):
        if i:
            ids.append(IMAGE_TOKEN_INDEX)
            begins.append(-1)  # begins nowhere, so an image in an answer is not learnt either
            position += len(DEFAULT_IMAGE_TOKEN)
        ids += chunk_ids[drop:]
        begins += [position + begin for begin, _ in spans[drop:]]
        position += len(chunk)
    return torch.tensor(ids), torch.tensor(begins)
