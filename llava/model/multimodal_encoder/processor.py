"""The image processor of a vision tower: read, and tried on a picture before the first question is."""

import torch
from PIL import Image

from llava.model.checkpoint import PROCESSOR
from llava.model.hub import find
from llava.model.library_errors import blaming
from llava.model.values import check_small_file


def read_processor(processor_class: type, source: str, side: int):
    """Read the image processor in a folder or hub id, for a tower that takes `side` x `side` pixels.

    Raises:
        ValueError: there is none, it does not work, or it makes pixels of another size.
    """
    file = next((file for name in PROCESSOR if (file := find(source, name, {}))), None)
    if file is None:
        raise ValueError(
            f"mm_vision_tower={source!r} has no preprocessor_config.json: how images become pixels is not known. "
            f"Fetch that file too."
        )
    check_small_file(file)
    with blaming(f"{file} makes no image processor"):
        processor = processor_class.from_pretrained(source)
        pixels = processor(Image.new("RGB", (side, side), "red"), return_tensors="pt")["pixel_values"][0]
    found = " x ".join(map(str, pixels.shape))
    if pixels.shape != (3, side, side):
        raise ValueError(
            f"{file} makes pixels of shape {found}, but the vision tower of that folder takes 3 x {side} x {side}: one "
            f"of its two files belongs to another tower."
        )
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{file} makes pixels that are not finite: look at image_std and rescale_factor.")
    return processor
