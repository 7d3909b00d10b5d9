"""Tokens that a model knows: rows of its embeddings, which training, adapters and tokenizers may have added to."""

import logging
from typing import cast

import torch
from torch import Tensor, nn

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.typed import CausalLM
from visionzip_patch.once import warn_once

logger = logging.getLogger(__name__)

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def embedding_tables(model: CausalLM) -> tuple[nn.Embedding, nn.Linear]:
    """Return a language model's two tables, (V, C) each: of tokens that it reads, and of tokens that it writes."""
    return cast(nn.Embedding, model.get_input_embeddings()), cast(nn.Linear, model.get_output_embeddings())


def fit_vocabulary(model: CausalLM, tensors: dict[str, Tensor], *, least: int) -> None:
    """Give a model as many tokens as the embeddings among `tensors` have rows: training may have added some.

    Tables of fewer rows than `least`, the tokens of the tokenizer, are no whole embeddings: nothing is changed.
    """
    size = max((len(tensors[name]) for name in EMBEDDINGS if name in tensors), default=0)
    if size >= max(1, least) and size != embedding_tables(model)[0].num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)


def untie(model: CausalLM, tensors: dict[str, Tensor]) -> None:
    """Give the two embedding tables weights of their own if they share them and training has not kept them equal."""
    inputs, outputs = embedding_tables(model)
    given = [tensors[name] for name in EMBEDDINGS if name in tensors]
    if inputs.weight is not outputs.weight or not given:
        return
    if len(given) == 1 or not given[0].equal(given[1]):
        outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def add_image_tokens(model: CausalLM, tokenizer) -> None:
    """Add the tokens that the config says the model was trained with, and rows for them if there are none.

    New rows begin as the mean of the others.
    """
    config = model.config
    if getattr(config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    make_room(model, len(tokenizer))


@torch.no_grad()
def make_room(model: CausalLM, vocabulary: int) -> None:
    """Add rows to both embedding tables, up to `vocabulary` tokens; new rows are the mean of the others."""
    inputs, _ = embedding_tables(model)
    before = inputs.num_embeddings
    if vocabulary <= before:
        return
    is_cut_up = hasattr(inputs.weight, "ds_id")  # by ZeRO-3, where transformers has to do it
    model.resize_token_embeddings(vocabulary, mean_resizing=is_cut_up)
    if not is_cut_up:
        for table in embedding_tables(model):
            table.weight[before:] = table.weight[:before].mean(0)


def require_rows(model: CausalLM, tokenizer) -> None:
    """Refuse a tokenizer that gives ids beyond the model's embeddings, but for tokens that were added to it.

    Raises:
        ValueError: its own vocabulary is larger, or a token that every prompt may hold is.
    """
    rows = embedding_tables(model)[0].num_embeddings
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "unk_token")}
    beyond = [f"{name} {getattr(tokenizer, name)!r} = {i}" for name, i in ids.items() if i is not None and i >= rows]
    if tokenizer.vocab_size > rows:
        beyond.insert(0, f"a vocabulary of {tokenizer.vocab_size} tokens")
    if beyond:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} has {', '.join(beyond)}, but the model's embeddings have "
            f"{rows} rows: the tokenizer files of another model may have been used."
        )


def warn_of_untrained_tokens(model: CausalLM, tokenizer) -> None:
    """Warn of tokens that were added to a tokenizer and have no row in the model's embeddings."""
    rows = embedding_tables(model)[0].num_embeddings
    known = (DEFAULT_IMAGE_PATCH_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN)
    added = [token for token, index in tokenizer.get_added_vocab().items() if index >= rows and token not in known]
    if added:
        warn_once(
            logger,
            "The tokenizer of %s has %d added tokens that no weights were saved for, %s among them: they mean nothing "
            "to the model.",
            tokenizer.name_or_path,
            len(added),
            min(added),
        )
