"""From command-line options to a model on a device."""

import os

import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import Checkpoint
from llava.model.description import find_base
from llava.shard import Shard
from llava.tokenizer import load_tokenizer


def load(checkpoint: str, **options) -> tuple:
    """(tokenizer, model, image processor). Raises ValueError if the model sees no images.

    Args:
        options: as for `load_pretrained_model`.
    """
    tokenizer, model, image_processor, _ = load_pretrained_model(checkpoint, **options)
    if image_processor is None:
        raise ValueError(f"{checkpoint} sees no images: there is no mm_vision_tower in its config.json.")
    return tokenizer, model, image_processor


def read_tokenizer(checkpoint: str, model_base: str | None):
    """The tokenizer that `load` will give, before any weights. Raises ValueError if it, or a base, is missing."""
    found = Checkpoint.inspect(checkpoint)
    source = found if found.has_tokenizer() else find_base(found, model_base)
    return load_tokenizer(source.path, **source.hub)


def device_of(device: str, shard: Shard) -> str:
    """The torch device of a process, for "auto", "cpu" or "cuda". Raises ValueError if there is no GPU for "cuda"."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here. Use --device cpu, or leave it out.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', shard.index)}" if shard.count > 1 else "cuda"


def describe_device(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else f"CPU, torch threads: {torch.get_num_threads()}"


def use_one_thread() -> None:
    """One CPU thread, for the embedded model, unless OMP_NUM_THREADS says otherwise.

    It is too small to gain from more, and on a busy machine threads that wait for each other make it ten times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
