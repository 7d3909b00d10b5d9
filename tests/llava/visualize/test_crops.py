"""Views show what the tower saw, anyres tiles included."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava.mm_utils import process_images
from llava.visualize import patch_at
from llava.visualize.crops import shown_crops, view_of
from visionzip_patch import visionzip


@pytest.fixture(scope="module")
def model(tiny_llava):
    grid = [[56, 112], [112, 56], [112, 112], [168, 56]]
    return visionzip(tiny_llava(image_aspect_ratio="anyres", image_grid_pinpoints=grid), 5, 2)


@pytest.mark.parametrize(("size", "tiles", "larger"), [((200, 60), 3, 1), ((90, 100), 4, 2), ((50, 100), 2, 1)])
def test_anyres_crops_are_those_of_the_tower(model, size, tiles, larger):
    processor = model.get_vision_tower().image_processor
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size)
    seen = process_images([image], processor, model.config)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    shown, cols = shown_crops(model, processor, image, 56)
    assert len(shown) == len(seen) == 1 + tiles
    for picture, pixels in zip(shown, seen, strict=True):
        expected = (255 * (pixels * std + mean)).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1

    view = view_of(model, processor, image, side=56)
    assert view.crops[0].side == 56 * larger
    assert view.crops[1 + cols - 1].top == view.crops[1].top
    assert view.tokens == 7 * (1 + tiles)
    last = view.crops[-1]
    assert patch_at(view, *last.corner(15)) == (tiles, 15)
    assert model.config.image_grid_pinpoints[0] == [56, 112]  # as they were
    assert processor.size["shortest_edge"] == 56


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("aspect", ["pad", None])
def test_the_picture_is_what_the_tower_saw(tiny_llava, tower, aspect):
    model = visionzip(tiny_llava(tower=tower, image_aspect_ratio=aspect), 5, 2)
    processor = model.get_vision_tower().image_processor
    image = Image.new("RGB", (120, 60), "red")
    view = view_of(model, processor, image, side=112)
    assert view.picture.size == (112, 112)
    bars = view.picture.getpixel((56, 5))[:3] != (255, 0, 0)
    assert bars == (aspect == "pad")
    assert view.picture.getpixel((56, 56))[:3] == (255, 0, 0)
    assert view.meaning.endswith("CLS pays to patches" if tower == "clip" else "patches receive")
