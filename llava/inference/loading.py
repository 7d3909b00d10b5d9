"""Load what a program asks: a checkpoint that sees images, and its tokenizer alone."""

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import Checkpoint
from llava.model.description import find_base
from llava.model.tokenizer import load_tokenizer


def load(checkpoint: str, **options) -> tuple:
    """Load a checkpoint to ask it about images.

    Args:
        checkpoint: folder, or name on the hub.
        **options: of `load_pretrained_model`.

    Returns:
        (tokenizer, model, image processor)

    Raises:
        ValueError: the model sees no images, or what `load_pretrained_model` raises.
    """
    tokenizer, model, image_processor, _ = load_pretrained_model(checkpoint, **options)
    if image_processor is None:
        raise ValueError(f"{checkpoint} sees no images: there is no mm_vision_tower in its config.json.")
    return tokenizer, model, image_processor


def read_tokenizer(checkpoint: str, model_base: str | None):
    """Read the tokenizer that `load` will return, before any weights.

    Args:
        checkpoint: folder, or name on the hub.
        model_base: of an adapter or a projector, likewise.

    Raises:
        ValueError: there is no tokenizer, or no base.
    """
    found = Checkpoint.inspect(checkpoint)
    source = found if found.has_tokenizer() else find_base(found, model_base)
    return load_tokenizer(source.path, **source.hub)
