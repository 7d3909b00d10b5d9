"""Images and prompts on their way into the model: load, square or tile, to pixels; text around <image> to ids."""

import base64
import io
import math
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import overload
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.model.anyres import (
    KNOWN_ASPECTS,
    POSSIBLE_ASPECTS,
    get_anyres_image_grid_shape,
    is_anyres,
    parse_pinpoints,
    select_best_resolution,
)
from llava.utils.files import read_bytes

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "fetch_image",
    "find_pictures",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "to_rgb",
    "tokenizer_image_token",
    "upright",
]

LARGE = 2048  # pixels: the side of a square that is made as it is, in 12 MB
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_BYTES, PATIENCE = 64 * 2**20, 30  # of an image from the web; seconds that its server may be silent


def find_pictures(folder: str | Path, *, deep: bool = False) -> list[Path]:
    """List the image files in a folder, known by their names alone, sorted.

    Args:
        folder: where to look.
        deep: look into subfolders too.

    Raises:
        ValueError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures.")
    names = folder.rglob("*") if deep else folder.iterdir()
    found = sorted(path for path in names if path.suffix.lower() in IMAGE_TYPES and path.is_file())
    if not found:
        raise ValueError(f"{folder}: no pictures in this folder; looked for {', '.join(IMAGE_TYPES)}.")
    return found


def load_image(path: str | Path) -> Image.Image:
    """Open an image file, decode all of it and convert it to RGB; see `to_rgb` for how.

    Raises:
        ValueError: the file is missing, is no regular file, is no image, is cut off or damaged, or has more pixels than
            Pillow's `Image.MAX_IMAGE_PIXELS` (89 million by default): such a file may be made to exhaust the memory.
    """
    return decode_image(io.BytesIO(read_bytes(path)), str(path))


def fetch_image(name: str) -> Image.Image:
    """Open an RGB image of a file or a http(s) URL. Raises ValueError as `load_image` does, or if out of reach."""
    if not name.startswith(("http://", "https://")):
        return load_image(Path(name).expanduser())
    try:
        with urlopen(Request(name, headers={"User-Agent": "llava-visionzip"}), timeout=PATIENCE) as response:
            content = response.read(MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"{name}: cannot be fetched ({getattr(error, 'reason', error)}).") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name}: more than {MOST_BYTES >> 20} MiB. Fetch it by other means, and make it smaller.")
    return decode_image(io.BytesIO(content), name)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a base64 text to an RGB image. Raises ValueError as `load_image` does."""
    try:
        content = base64.b64decode(image)
    except ValueError as error:
        raise ValueError(f"The image is not base64 ({error}).") from None
    return decode_image(io.BytesIO(content), "base64 image")


def decode_image(file: io.BytesIO, name: str) -> Image.Image:
    """Decode an image as RGB. Raises ValueError, which begins with `name`, if there is none that can be used."""
    try:
        image = Image.open(file)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice the limit
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, the limit is {limit}")
        return to_rgb(image)
    except Image.UnidentifiedImageError:
        size = len(file.getbuffer())
        raise ValueError(f"{name}: not an image of a known format ({size} bytes).") from None
    except Exception as error:  # damaged files make the decoders raise anything: OSError, SyntaxError, zlib.error ...
        raise ValueError(f"{name}: cannot be decoded ({error}).") from error


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture the way the camera was held, by what EXIF says; return it as it is where EXIF is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader raises SyntaxError, struct.error ...
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB: palettes resolved, grey repeated, alpha dropped; not rotated as EXIF says, as in LLaVA.

    Grey of more than 8 bits, whole or floating-point, is scaled by its range: up to 1 (floats), 255 or 65535. Pillow
    would turn all but the darkest pixels white, and floats up to 1 black.

    Raises:
        ValueError: `image` is no PIL image, or its values are in none of these ranges or not numbers.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"An image is given as {type(image).__name__}; expected one of Pillow. Of an array of numbers from 0 to 1, "
            f"(height, width, 3), PIL.Image.fromarray((255 * array).round().astype('uint8')) makes one."
        )
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # an opened file is read only when its pixels are asked for
    return image


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values of any range that images have to 0 to 255. Raises ValueError as `to_rgb`."""
    if not np.isfinite(values).all():
        raise ValueError("The image has values that are not numbers, or not finite: replace them by numbers.")
    least, most = values.min(initial=0), values.max(initial=0)
    if least < 0 or most > 65535:
        raise ValueError(
            f"The image has values from {least:g} to {most:g}; expected 0 to 255, 0 to 65535, or with floating-point "
            f"numbers 0 to 1. Scale it to one of these."
        )
    if values.dtype.kind == "f" and most <= 1:
        values = (255 * values).round()
    elif most > 255:
        values = values.astype(np.int64) >> 8
    return values.astype(np.uint8)


def process_images(
    images: Image.Image | Sequence[Image.Image], image_processor, model_cfg
) -> torch.Tensor | list[torch.Tensor]:
    """Prepare pixels for the vision tower, as `model_cfg.image_aspect_ratio` says.

    Args:
        images: PIL images of any mode, or a single one.
        image_processor: the tower's; its PIL version gives the pixels that published numbers rest on.
        model_cfg: "pad" as aspect ratio fills each image up to a square with the mean colour; what starts with
            "anyres" makes a base crop and tiles, on a grid from `model_cfg.image_grid_pinpoints`; "square", and a
            config without the field, leaves all to the processor.

    Returns:
        (images, 3, S, S), or with anyres (images, crops, 3, S, S), the base crop first. A list with one tensor per
        image if their shapes differ.

    Raises:
        ValueError: no images, one so long and thin that preparing it would exhaust the memory, an unknown aspect ratio,
            or anyres without a grid to choose from.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if len(images) == 0:
        raise ValueError("process_images got no images. For a text-only prompt pass images=None to generate.")
    images = [to_rgb(image) for image in images]
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None) or "square"
    if not KNOWN_ASPECTS.fullmatch(aspect_ratio):
        raise ValueError(f"image_aspect_ratio={aspect_ratio!r} is unknown; choose {POSSIBLE_ASPECTS}.")
    if is_anyres(model_cfg):
        pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
        if not pinpoints:
            raise ValueError(
                f"image_aspect_ratio={aspect_ratio!r} needs image_grid_pinpoints, a list of (width, height) to choose "
                f"from, but the config has {pinpoints!r}. Set it to what the checkpoint was trained with, for "
                f"LLaVA-1.6 [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]."
            )
        crops = [process_anyres_image(image, image_processor, pinpoints) for image in images]
        return torch.stack(crops) if len({crop.shape for crop in crops}) == 1 else crops
    for image in images:
        require_preparable(image, image_processor, pad=aspect_ratio == "pad")
    if aspect_ratio == "pad":
        background = tuple(int(mean * 255) for mean in image_processor.image_mean)
        images = [fill_up(image, background, image_processor) for image in images]
    return image_processor(images, return_tensors="pt")["pixel_values"]


def require_preparable(image: Image.Image, processor, pad: bool) -> None:
    """Refuse an image that grows over Pillow's limit on the way to a square: one line of 50,000 pixels does.

    Raises:
        ValueError: with both numbers.
    """
    short, long = sorted(image.size)
    side = processor.size.get("shortest_edge")
    if not pad and side is None:
        return  # squeezed, whatever its shape
    pixels = long * long if pad else side * side * long // short
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"An image of {image.width}x{image.height} is too long and thin: made square it would have {pixels:,} "
            f"pixels, the limit is {Image.MAX_IMAGE_PIXELS:,}."
        )


def process_anyres_image(image: Image.Image, processor, grid_pinpoints: str | Sequence) -> torch.Tensor:
    """Prepare the base crop and the tiles of one RGB image: (1 + tiles, 3, S, S).

    The base crop is the whole image squeezed to a square; the tiles cut the image, scaled to the best resolution of
    `grid_pinpoints` and centred on black, row by row.
    """
    size = processor.size
    side = getattr(processor, "crop_size", None) or size  # SigLIP's processor does not crop
    base_side = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    pinpoints = parse_pinpoints(grid_pinpoints, side["height"])
    whole = resize_and_pad_image(image, select_best_resolution(image.size, pinpoints))
    crops = [image.resize((base_side, base_side)), *divide_to_patches(whole, side["height"])]
    return processor(crops, return_tensors="pt")["pixel_values"]


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Put an image in the middle of the smallest square that holds it, filled up with `background_color`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def fill_up(image: Image.Image, background: tuple[int, ...], processor) -> Image.Image:
    """Fill an image up to a square as `expand2square` does; a large one is made as small as the processor makes it.

    The pixels are the same, bit for bit: Pillow resizes rows first and then columns, with 8 bits in between. So rows
    can be resized a few at a time, and those of the background need not be.
    """
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    side = max(image.size)
    resizes = isinstance(processor, CLIPImageProcessorPil | SiglipImageProcessorPil) and processor.do_resize
    if not resizes or side <= LARGE:
        return expand2square(image, background)
    height, width = (processor.size.get("shortest_edge") or processor.size[name] for name in ("height", "width"))
    left, top, rows = (side - image.width) // 2, (side - image.height) // 2, max(1, LARGE**2 // 4 // side)
    narrow = Image.new(image.mode, (width, side), background)
    for first in range(0, image.height, rows):
        part = image.crop((0, first, image.width, min(first + rows, image.height)))
        strip = Image.new(image.mode, (side, part.height), background)
        strip.paste(part, (left, 0))
        narrow.paste(strip.resize((width, part.height), processor.resample), (0, top + first))
    return narrow.resize((width, height), processor.resample)


def resize_and_pad_image(image: Image.Image, target_resolution: tuple[int, int]) -> Image.Image:
    """Resize an image to fit into `target_resolution`, (width, height), its aspect ratio kept, centred on black."""
    width, height = image.size
    target_width, target_height = target_resolution
    # Rounding up what floats make of it, as LLaVA does: the bars' width is part of what checkpoints saw.
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        size = target_width, min(math.ceil(height * by_width), target_height)
    else:
        size = min(math.ceil(width * by_height), target_width), target_height
    padded = Image.new("RGB", (target_width, target_height))
    padded.paste(image.resize(size), ((target_width - size[0]) // 2, (target_height - size[1]) // 2))
    return padded


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into square tiles of `patch_size` pixels, row by row; beyond its border they are black."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


@overload
def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = ..., return_tensors: None = None
) -> list[int]: ...


@overload
def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = ..., return_tensors: str = ...
) -> torch.Tensor: ...


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Tokenize a prompt, with `image_token_index` where it says <image>.

    The text before, between and after the images is tokenized piece by piece. The whole has one BOS, at its head, where
    the tokenizer puts any or the template has written it.

    Returns:
        a list of ids, or with `return_tensors="pt"` an int64 tensor of one dimension.

    Raises:
        ValueError: another `return_tensors`.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors={return_tensors!r} is unknown; choose 'pt', or None for a list.")
    pieces = tokenizer(prompt.split(DEFAULT_IMAGE_TOKEN)).input_ids
    first, *others = (piece[surplus:] for piece, surplus in zip(pieces, surplus_bos(pieces, tokenizer), strict=True))
    ids = list(first)
    for piece in others:
        ids += [image_token_index, *piece]
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def surplus_bos(pieces: Sequence[Sequence[int]], tokenizer) -> list[int]:
    """Count the ids to drop from the head of each piece of a prompt, so that the whole has one BOS.

    A tokenizer that adds its BOS puts it before every piece; Llama-3's template has written it already.
    """
    bos = tokenizer.bos_token_id
    if bos is None or list(tokenizer("").input_ids[:1]) != [bos]:
        return [0] * len(pieces)
    return [int(list(pieces[0][1:2]) == [bos]), *[1] * (len(pieces) - 1)]


def get_model_name_from_path(model_path: str) -> str:
    """Return the last part of a path or hub id; for `.../name/checkpoint-N` both parts, as "name_checkpoint-N"."""
    *parents, last = model_path.strip("/").split("/")
    return f"{parents[-1]}_{last}" if parents and last.startswith("checkpoint-") else last


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each sample of a batch as soon as its answer ends with the ids of a keyword, or its last text holds one.

    Args:
        keywords: texts to stop at.
        tokenizer: the model's.
        input_ids: the prompt, (B, T). It is no part of the answer: generation from embeddings returns new ids only,
            other generation the prompt too; both are understood.
    """

    def __init__(self, keywords: Sequence[str], tokenizer, input_ids: torch.Tensor):
        self.keywords, self.tokenizer, self.prompt = list(keywords), tokenizer, input_ids
        self.keyword_ids = []
        for ids in map(tokenizer.encode, self.keywords):
            if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
                ids = ids[1:]
            self.keyword_ids.append(ids)
        # A byte takes one token at most; one more in front, as decoding drops the space a text begins with.
        self.window = 1 + max((len(keyword.encode()) for keyword in self.keywords), default=0)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # BoolTensor, which no function of torch returns
        self, output_ids: torch.Tensor, scores: object = None, **kwargs
    ) -> torch.Tensor:
        """Return which samples are done: (B, generated so far) -> (B,), bool."""
        length = self.prompt.shape[1]
        if output_ids.shape[1] >= length and torch.equal(output_ids[:, :length], self.prompt.to(output_ids.device)):
            output_ids = output_ids[:, length:]
        done = [self._ends(row) for row in output_ids.tolist()]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)

    def call_for_batch(self, output_ids: torch.Tensor, scores: object = None, **kwargs) -> bool:
        """Return whether all samples of a batch are done: upstream's way to ask, of one row at a time."""
        return bool(self(output_ids, scores, **kwargs).all())

    def _ends(self, answer: list[int]) -> bool:
        """Return whether an answer, its ids so far, ends with a keyword or holds one in its last text."""
        if any(answer[-len(ids) :] == ids for ids in self.keyword_ids if ids):
            return True
        text = self.tokenizer.decode(answer[-self.window :], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
