"""Weights by name: copied into a model, or refused with their names."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from torch import Tensor, nn

from llava.model.checkpoint import TOWER_KEYS
from llava.model.typed import CausalLM
from llava.model.weight_files import load_tensors

WHOLE = (  # advice where a whole checkpoint is at fault
    "Its config.json does not describe these weights: check that the download is complete, and mm_projector_type, "
    "mm_vision_tower and unfreeze_mm_vision_tower."
)
PROJECTOR_PART = "mm_projector."  # of a name, behind what depends on who is asked


def without_peft_prefix(key: str) -> str:
    """Return a weight's name in our classes: without peft's `base_model.model.`, or a tower's old `vision_model.`."""
    key = re.sub(r"^(?:base_model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", key)
    return key.replace(f"{TOWER_KEYS}vision_model.", TOWER_KEYS)


def copy_weights(model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Copy tensors into a model by name.

    Args:
        model: whose parameters are filled in.
        tensors: by the names of parameters.
        path: where they are from, for errors.

    Raises:
        ValueError: a name that the model lacks, another shape, or a weight that is offloaded.
    """
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
    refuse(
        {own[name][0] for name in own.keys() - given.keys()},
        "missing from",
        file,
        "It belongs to another model, or is no mm_projector.bin.",
    )
    copy_weights(model, {own.get(name, given[name])[0]: value for name, (_, value) in given.items()}, file)


def claim_tower(model: CausalLM, names: Iterable[str]) -> None:
    """Note in a model's config that the tower is its own, if weights of it are among `names`, which training wrote.

    It is no longer that of `mm_vision_tower` then, and has to be saved with the model.
    """
    if any(name.startswith(TOWER_KEYS) for name in names):
        model.config.unfreeze_mm_vision_tower = True


def refuse(names: Collection[str], fault: str, path: str, advice: str = WHOLE) -> None:
    """Raise ValueError if there are `names`, of weights that have a `fault`, with what the user may do about it."""
    if names:
        some = ", ".join(sorted(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise ValueError(f"{len(names)} weights are {fault} {path}: {some}. {advice}")
