"""Weights by name: copied into a model, or refused with their names."""

import re
from pathlib import Path

from torch import Tensor, nn

from llava.model.checkpoint import TOWER_KEYS, load_tensors

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
PROJECTOR_PART = "mm_projector."  # of a name, behind what depends on who is asked


def without_peft_prefix(key: str) -> str:
    """peft's `base_model.model.model.x` -> `model.x`; a tower's keys without the `vision_model.` of old."""
    key = re.sub(r"^(?:base_model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", key)
    return key.replace(f"{TOWER_KEYS}vision_model.", TOWER_KEYS)


def fit_vocabulary(model: nn.Module, tensors: dict[str, Tensor], *, least: int) -> None:
    """Give a model as many tokens as the embeddings among `tensors` have rows: training may have added some.

    Tables of fewer rows than `least`, the tokens of the tokenizer, are no whole embeddings: nothing is changed.
    """
    size = max((len(tensors[name]) for name in EMBEDDINGS if name in tensors), default=0)
    if size >= max(1, least) and size != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)


def untie(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Part the two embedding tables if they share their weights and training has parted them."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    given = [tensors.get(name) for name in EMBEDDINGS]
    if inputs.weight is not outputs.weight or all(table is None for table in given):
        return
    if any(table is None for table in given) or not given[0].equal(given[1]):
        outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def copy_weights(model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Copy tensors into a model by name; a name that it lacks, or another shape, is an error."""
    own = dict(model.named_parameters(remove_duplicate=False))
    refuse(tensors.keys() - own.keys(), "not expected in", path)
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key} in {path} has shape {tuple(value.shape)}, but the model built from config.json has "
                f"{tuple(own[key].shape)}: this base model and this checkpoint do not belong together."
            )
        if own[key].is_meta:
            raise ValueError(f"{key} was offloaded to CPU or disk, and cannot be filled in: choose another device_map.")
        own[key].data.copy_(value)


def load_projector(model: nn.Module, file: str) -> None:
    """Fill the projector of a model from an `mm_projector.bin`, whatever stands before `mm_projector.` in its keys.

    Raises:
        ValueError: no such file, weights missing, unexpected or of a wrong shape (named).
    """
    if not Path(file).is_file():
        raise ValueError(f"pretrain_mm_mlp_adapter {file}: no such file. It is the mm_projector.bin of an earlier run.")
    own, given = (
        {key[key.index(PROJECTOR_PART) :]: (key, value) for key, value in tensors if PROJECTOR_PART in key}
        for tensors in (model.named_parameters(), load_tensors(file).items())
    )
    refuse({own[name][0] for name in own.keys() - given.keys()}, "missing from", file)
    copy_weights(model, {own.get(name, given[name])[0]: value for name, (_, value) in given.items()}, file)


def refuse(keys: set[str], fault: str, path: str) -> None:
    if keys:
        some = ", ".join(sorted(keys)[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        raise ValueError(
            f"{len(keys)} weights are {fault} {path}: {some}. Its config.json does not describe these weights: check "
            f"that the download is complete, and mm_projector_type, mm_vision_tower and unfreeze_mm_vision_tower."
        )
