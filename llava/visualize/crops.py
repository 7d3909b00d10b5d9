"""Prepare the crops that a vision tower sees of an image, large enough to be shown."""

import copy

from PIL import Image
from torch import Tensor

from llava.mm_utils import process_images, to_rgb
from llava.model.anyres import get_anyres_image_grid_shape, is_anyres
from llava.visualize import View, look, make_view

SIDE = 480  # pixels of a crop that is shown alone


def view_of(model, image_processor, image: Image.Image, *, title: str = "", side: int = SIDE) -> View:
    """Compute what a zipped LLaVA sees and keeps of an image.

    Args:
        model, image_processor: as the loader returns them.
        image: any PIL image.
        title: what to call it.
        side: of each crop as it is shown, in pixels; it is rounded to whole patches.

    Raises:
        ValueError: the model is not zipped, or the image cannot be prepared.
    """
    tower = model.get_vision_tower()
    scores, selection = look(tower, crops_of(process_images([image], image_processor, model.config)))
    shown, cols = squares_of(model, image_processor, image, side)
    meaning = meaning_of(tower)
    return make_view(shown, scores, selection, has_cls=tower.has_cls, meaning=meaning, title=title, cols=cols)


def meaning_of(tower) -> str:
    """Say what the scores are shares of, for `make_view`."""
    return f"of the attention that {'CLS pays to patches' if tower.has_cls else 'patches receive'}"


def squares_of(model, image_processor, image: Image.Image, side: int) -> tuple[list[Image.Image], int]:
    """Return the crops of an image, about `side` pixels wide, and how many tiles are in a row, for `make_view`.

    The base crop is as large as the tiles together.
    """
    grid = model.get_vision_tower().num_patches_per_side
    side = grid * max(1, round(side / grid))
    shown, cols = shown_crops(model, image_processor, image, side)
    if (larger := min(cols, (len(shown) - 1) // cols)) > 1:
        shown[0] = shown_crops(model, image_processor, image, side * larger)[0][0]
    return shown, cols


def shown_crops(model, image_processor, image: Image.Image, side: int) -> tuple[list[Image.Image], int]:
    """Return the crops that the tower sees, each `side` pixels wide, and how many tiles are in a row.

    Prepared as for the tower, by a processor and a config that ask for larger squares.
    """
    large, config, cols = copy.copy(image_processor), copy.copy(model.config), 1
    large.size = {name: side for name, value in dict(large.size).items() if value}
    if getattr(large, "crop_size", None):
        large.crop_size = {"height": side, "width": side}
    large.do_normalize = False
    if is_anyres(config):
        crop = model.get_vision_tower().config.image_size
        cols, rows = get_anyres_image_grid_shape(image.size, config.image_grid_pinpoints, crop)
        config.image_grid_pinpoints = [(cols * side, rows * side)]
    pixels = crops_of(process_images([to_rgb(image)], large, config)).clamp(0, 1)
    return [Image.fromarray((crop * 255).round().byte().permute(1, 2, 0).numpy()) for crop in pixels], cols


def crops_of(pixels) -> Tensor:
    """Reshape what `process_images` makes of one image to (crops, 3, S, S)."""
    return pixels[0] if pixels[0].ndim == 4 else pixels
