"""Saving: upstream's key names, and files that are whole or not there at all."""

import copy
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from llava.model.checkpoint import TOWER_KEYS

WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def upstream_keys(state: dict[str, Tensor], with_tower: bool) -> dict[str, Tensor]:
    """Rename a state dict to the names that upstream and serving engines read, with the `vision_model.` of old.

    Args:
        state: weights by our names.
        with_tower: keep the vision tower's weights.
    """
    named = {}
    for key, value in state.items():
        if key.startswith(TOWER_KEYS):
            if not with_tower:
                continue
            key = f"{TOWER_KEYS}vision_model.{key.removeprefix(TOWER_KEYS).removeprefix('vision_model.')}"
        named[key] = value
    return named


@contextmanager
def without_idle_sampling(model) -> Iterator[None]:
    """Leave `temperature` and `top_p` out of what is saved where `do_sample=False` makes them idle."""
    settings = model.generation_config
    if not settings.do_sample:
        model.generation_config = copy.deepcopy(settings)
        model.generation_config.temperature = model.generation_config.top_p = None
    try:
        yield
    finally:
        model.generation_config = settings


@contextmanager
def all_or_nothing(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a folder whose files then replace those in `target`, which stays as it was if the block fails.

    Weights are moved before what names them, and weights of an earlier save that are left over are removed.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as work:
        folder = Path(work, target.resolve().name)  # the last part names the repository of `push_to_hub=True`
        yield folder
        new = {file.name for file in folder.iterdir()}
        for name in sorted(new, key=lambda name: name.endswith(".json")):
            os.replace(folder / name, target / name)
        if any(map(WEIGHT_FILE.fullmatch, new)):
            for file in target.iterdir():
                if WEIGHT_FILE.fullmatch(file.name) and file.name not in new:
                    file.unlink()
