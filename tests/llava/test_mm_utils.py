import base64
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava import mm_utils
from llava.eval.model_vqa_loader import get_chunk, split_list
from llava.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
RESOLUTIONS = json.loads((GOLDEN / "json/resolutions.json").read_text())
NAMES = json.loads((GOLDEN / "json/names_and_chunks.json").read_text())
GRID = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]  # the shape of LLaVA-1.6's, for 28 pixel crops


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "models/llava-v1.5-tiny")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image, processor) -> torch.Tensor:
    """Normalized, not resized."""
    array = torch.tensor(np.array(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (array - mean) / std


# Grids


def test_grids_equal_the_golden_table():
    assert len(RESOLUTIONS["table"]) > 40
    for row in RESOLUTIONS["table"]:
        for name, pinpoints in RESOLUTIONS["pinpoints"].items():
            side, golden = RESOLUTIONS["patch_size"][name], row[name]
            assert list(mm_utils.select_best_resolution(row["size"], pinpoints)) == golden["best"], row["size"]
            for given, key in ((pinpoints, "grid"), (str(pinpoints), "grid_from_string")):
                assert list(mm_utils.get_anyres_image_grid_shape(row["size"], given, side)) == golden[key], row["size"]


# Images


def test_without_aspect_ratio_the_processor_does_it_all(processor):
    images = [noise(50, 30), noise(28, 90)]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    for config in (
        SimpleNamespace(),
        SimpleNamespace(image_aspect_ratio=None),
        SimpleNamespace(image_aspect_ratio="square"),
        None,
    ):
        assert torch.equal(mm_utils.process_images(images, processor, config), expected)


def test_pad_puts_the_image_in_the_middle_of_the_mean_colour(processor):
    image = noise(28, 20)
    (padded,) = mm_utils.process_images([image], processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert padded.shape == (3, 28, 28)
    torch.testing.assert_close(padded[:, 4:24], pixels(image, processor))
    grey = torch.cat([padded[:, :4], padded[:, 24:]], dim=1)
    assert grey.abs().max() < 1 / 255 / min(processor.image_std)  # the mean, to less than one step of a colour


def test_anyres_gives_the_whole_image_and_its_tiles(processor):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=GRID)
    image = noise(56, 56)
    crops = mm_utils.process_images([image], processor, config)[0]
    assert crops.shape == (5, 3, 28, 28)
    torch.testing.assert_close(crops[0], pixels(image.resize((28, 28)), processor))
    whole = pixels(image, processor)
    for i in range(4):
        top, left = i // 2 * 28, i % 2 * 28
        torch.testing.assert_close(crops[i + 1], whole[:, top : top + 28, left : left + 28])


def test_anyres_stacks_equal_shapes_and_lists_others(processor):
    for aspect_ratio in ("anyres", "anyres_max_9"):
        config = SimpleNamespace(image_aspect_ratio=aspect_ratio, image_grid_pinpoints=str(GRID))
        same = mm_utils.process_images([noise(56, 56), noise(100, 90)], processor, config)
        assert same.shape == (2, 5, 3, 28, 28)
        mixed = mm_utils.process_images([noise(56, 56), noise(90, 30)], processor, config)
        assert [crops.shape for crops in mixed] == [(5, 3, 28, 28), (4, 3, 28, 28)]
        assert torch.equal(mixed[0], same[0])


def test_siglips_processor_has_no_crop_size():
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=GRID)
    assert mm_utils.process_images([noise(56, 56)], processor, config).shape == (1, 5, 3, 28, 28)


def test_errors_of_process_images_say_what_is_missing(processor):
    with pytest.raises(ValueError, match="no images"):
        mm_utils.process_images([], processor, SimpleNamespace())
    with pytest.raises(ValueError, match="needs image_grid_pinpoints"):
        mm_utils.process_images([noise(9, 9)], processor, SimpleNamespace(image_aspect_ratio="anyres"))


@pytest.mark.parametrize("aspect_ratio", [None, "pad", "anyres"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "I;16", "I;16B", "F"])
def test_every_mode_is_processed_as_rgb(processor, mode, aspect_ratio):
    image = noise(40, 30).convert("L")
    image = Image.new(mode, image.size, 200) if mode.startswith("I;") else image.convert(mode)
    config = SimpleNamespace(image_aspect_ratio=aspect_ratio, image_grid_pinpoints=GRID)
    given, rgb = (mm_utils.process_images([x], processor, config) for x in (image, image.convert("RGB")))
    assert given.isfinite().all()
    assert torch.equal(given, rgb)


def test_16_bit_grey_keeps_its_upper_bits():
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    assert image.mode == "I;16"
    assert np.array(mm_utils.to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


GREYS = {  # values -> what they are in 8 bits
    "floats up to 1": (np.array([[0, 0.25, 0.5, 1]], dtype=np.float32), [0, 64, 128, 255]),
    "floats up to 255": (np.array([[0, 1, 200.7, 255]], dtype=np.float32), [0, 1, 200, 255]),
    "floats up to 65535": (np.array([[0, 256, 32768, 65535]], dtype=np.float32), [0, 1, 128, 255]),
    "integers up to 65535": (np.array([[0, 256, 32768, 65535]], dtype=np.int32), [0, 1, 128, 255]),
    "black floats": (np.zeros((1, 4), dtype=np.float32), [0, 0, 0, 0]),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_any_range_is_scaled(kind):
    values, expected = GREYS[kind]
    assert np.array(mm_utils.to_rgb(Image.fromarray(values)))[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, np.nan], "values that are not numbers"),
        ([0, np.inf], "values that are not numbers, or not finite"),
        ([-1.0, 1.0], "values from -1 to 1; expected 0 to 255, 0 to 65535, or with floating-point numbers 0 to 1"),
        ([0.0, 1e6], r"values from 0 to 1e\+06"),
    ],
)
def test_grey_of_no_known_range_is_refused(values, message, tmp_path):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(ValueError, match=message):
        mm_utils.to_rgb(image)
    image.save(tmp_path / "grey.tiff")
    with pytest.raises(ValueError, match=f"grey.tiff: cannot be decoded .*{message}"):
        mm_utils.load_image(tmp_path / "grey.tiff")


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), "a.png"])
def test_what_is_no_image_is_refused_by_its_kind(processor, image):
    with pytest.raises(ValueError, match=rf"given as {type(image).__name__}; expected one of Pillow"):
        mm_utils.process_images([image], processor, SimpleNamespace())


def test_expand2square_leaves_a_square_alone():
    image = noise(9, 9)
    assert mm_utils.expand2square(image, (0, 0, 0)) is image
    wide = mm_utils.expand2square(noise(8, 4), (1, 2, 3))
    assert wide.size == (8, 8)
    assert np.array(wide)[0, 0].tolist() == np.array(wide)[7, 7].tolist() == [1, 2, 3]
    assert np.array_equal(np.array(wide)[2:6], np.array(noise(8, 4)))


@pytest.mark.parametrize(
    ("size", "bars"), [((100, 50), (0, 14)), ((50, 100), (14, 0)), ((3000, 1), (0, 27)), ((1, 3000), (27, 0))]
)
def test_resize_and_pad_keeps_the_aspect_ratio(size, bars):
    padded = np.array(mm_utils.resize_and_pad_image(Image.new("RGB", size, "white"), (56, 56)))
    columns, rows = (np.flatnonzero(padded.any(axis=(axis, 2))) for axis in (0, 1))
    found = [columns[0], rows[0], 55 - columns[-1], 55 - rows[-1]]
    assert found == pytest.approx([*bars, *bars], abs=1)
    assert min(found) == 0  # one direction is filled


def test_load_image_converts_to_rgb(tmp_path):
    path = tmp_path / "picture.png"
    noise(6, 4).convert("P").save(path)
    image = mm_utils.load_image(path)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.array_equal(
        np.array(mm_utils.load_image_from_base64(base64.b64encode(path.read_bytes()))), np.array(image)
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's, up to twice the limit
def test_load_image_names_the_file_and_the_reason(tmp_path, monkeypatch):
    good = io.BytesIO()
    noise(64, 64).save(good, "PNG")
    (tmp_path / "cut.png").write_bytes(good.getvalue()[:2000])
    (tmp_path / "text.jpg").write_text("404: not found")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(good.getvalue())
    for name, reason in {
        "missing.png": "cannot be read.*No such file",
        "text.jpg": r"not an image of a known format \(14 bytes\)",
        "empty.jpg": r"\(0 bytes\)",
        "cut.png": "cannot be decoded.*truncated",
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            mm_utils.load_image(tmp_path / name)
    assert mm_utils.load_image(tmp_path / "large.png").size == (64, 64)
    for limit in (4095, 1000):  # over the limit, and over twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"large.png: cannot be decoded.*(64x64|4096) pixels"):
            mm_utils.load_image(tmp_path / "large.png")
    with pytest.raises(ValueError, match="not base64"):
        mm_utils.load_image_from_base64("abc")


# Text


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_prompt_has_the_bos_that_tokenizer_or_template_gives_it_once(ascii_tokenizer, adds_bos):
    tokenizer = ascii_tokenizer(bos="<bos>", adds_bos=adds_bos)
    letters = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    written = mm_utils.tokenizer_image_token("<bos>a<image>b<image>c", tokenizer, -200)
    assert written == [tokenizer.bos_token_id, letters[0], -200, letters[1], -200, letters[2]]
    bare = mm_utils.tokenizer_image_token("a<image>b<image>c", tokenizer, -200)
    assert bare == (written if adds_bos else written[1:])
    assert mm_utils.tokenizer_image_token("<image>", tokenizer, -200) == [tokenizer.bos_token_id] * adds_bos + [-200]


def test_tokenizer_image_token_returns_lists_and_tensors(tokenizer):
    ids = mm_utils.tokenizer_image_token("hello <image> world", tokenizer)
    tensor = mm_utils.tokenizer_image_token("hello <image> world", tokenizer, -7, return_tensors="pt")
    assert ids.count(-200) == 1
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [-7 if i == -200 else i for i in ids]
    with pytest.raises(ValueError, match="'np' is unknown"):
        mm_utils.tokenizer_image_token("hello", tokenizer, return_tensors="np")


@pytest.mark.parametrize("with_prompt", [False, True])
def test_keywords_stop_each_sample_by_itself(tokenizer, with_prompt):
    prompt = torch.tensor([tokenizer("Who ### are you?").input_ids] * 3)
    criteria = mm_utils.KeywordsStoppingCriteria(["###", "</s>"], tokenizer, prompt)
    answers = [tokenizer(text).input_ids[1:] for text in ("I am a dog. ###", "I am a big red dog.", "No </s>")]
    length = min(map(len, answers[:1]))
    answers = [([5] * length + answer)[-length:] for answer in answers]
    output = torch.tensor(answers)
    output = torch.cat([prompt, output], dim=1) if with_prompt else output
    done = criteria(output, None)
    assert done.dtype == torch.bool
    assert done.tolist() == [True, False, True]


def test_keyword_is_found_in_other_tokens_than_its_own(tokenizer):
    one_by_one = [i for character in "###" for i in tokenizer("a" + character).input_ids[2:]]
    assert len(one_by_one) == 3
    criteria = mm_utils.KeywordsStoppingCriteria(["###"], tokenizer, torch.tensor([[1, -200, 5]]))
    start = tokenizer("a dog").input_ids[1:]
    assert criteria(torch.tensor([start + one_by_one[:2]])).tolist() == [False]
    assert criteria(torch.tensor([start + one_by_one])).tolist() == [True]


# Names and shards


def test_model_names_equal_the_golden_table():
    assert len(NAMES["model_names"]) >= 12
    for case in NAMES["model_names"]:
        if case["name"] is not None:
            assert mm_utils.get_model_name_from_path(case["path"]) == case["name"]
    assert mm_utils.get_model_name_from_path("checkpoint-7") == "checkpoint-7"  # IndexError in LLaVA 1.x


def test_chunks_equal_the_golden_table():
    assert len(NAMES["split_list"]) >= 5
    for case in NAMES["split_list"]:
        assert split_list(list(range(case["n"])), case["chunks"]) == case["parts"]
        for k, part in enumerate(case["parts"]):
            assert get_chunk(list(range(case["n"])), case["chunks"], k) == part


def test_chunks_cover_everything_once():
    for length in range(9):
        for n in range(1, 12):
            parts = [get_chunk(list(range(length)), n, k) for k in range(n)]
            assert [item for part in parts for item in part] == list(range(length))
    for n, k in ((0, 0), (3, 3), (3, -1)):
        with pytest.raises(ValueError, match="chunk"):
            get_chunk([1, 2], n, k)


@pytest.mark.parametrize(("aspect_ratio", "size"), [("pad", (1, 50_000)), (None, (200_000, 1))])
def test_a_long_thin_image_does_not_exhaust_the_memory(processor, aspect_ratio, size):
    config = SimpleNamespace(image_aspect_ratio=aspect_ratio)
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} is too long and thin.*pixels, the limit is"):
        mm_utils.process_images([Image.new("RGB", size)], processor, config)
    pixels = mm_utils.process_images([Image.new("RGB", (1, 500))], processor, config)
    assert pixels.shape[0] == 1


@pytest.mark.parametrize("kind", [CLIPImageProcessorPil, SiglipImageProcessorPil])
@pytest.mark.parametrize("size", [(300, 1), (1, 300), (299, 40), (41, 300), (150, 149), (128, 128), (2, 129)])
def test_a_large_square_need_not_be_made_to_have_its_pixels(monkeypatch, kind, size):
    sides = {"height": 28, "width": 28}
    processor = kind(size={"shortest_edge": 28}, crop_size=sides) if kind is CLIPImageProcessorPil else kind(size=sides)
    config, image = SimpleNamespace(image_aspect_ratio="pad"), noise(*size)
    whole = mm_utils.process_images([image], processor, config)
    monkeypatch.setattr(mm_utils, "LARGE", 64)
    assert torch.equal(mm_utils.process_images([image], processor, config), whole)


@pytest.mark.parametrize("size", [(6000, 1), (1, 6000), (6000, 20)])
def test_a_thin_image_costs_little_memory(monkeypatch, processor, size):
    made, seen = [], []
    new, prepare = Image.new, processor.preprocess
    monkeypatch.setattr(Image, "new", lambda mode, size, *color: made.append(size) or new(mode, size, *color))
    monkeypatch.setattr(processor, "preprocess", lambda images, **how: seen.extend(images) or prepare(images, **how))
    image = noise(*size)
    mm_utils.process_images([image], processor, SimpleNamespace(image_aspect_ratio="pad"))
    assert [image.size for image in seen] == [(28, 28)]
    assert max(width * height for width, height in made) < 2e6  # pixels; the square has 36e6


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # to read it would wait forever
    with pytest.raises(ValueError, match=r"pipe\.png: no regular file"):
        mm_utils.load_image(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="cannot be read"):
        mm_utils.load_image(tmp_path / ("x" * 300))
