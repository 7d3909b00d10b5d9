"""From command-line options to a model on a device."""

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import Checkpoint
from llava.model.description import find_base
from llava.model.tokenizer import load_tokenizer


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
