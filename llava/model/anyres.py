"""Images of any resolution, as in LLaVA-1.6: choose a grid of tiles, put the tokens of the encoded tiles in order.

Pure functions. An image is its base crop (the whole picture, resized) followed by the tiles of a grid in raster order.

Shapes: T tiles, side x side patches in a crop, N tokens of a crop, C channels, (rows, cols) of tiles in the grid.
"""

import ast
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from visionzip_patch.token_order import order_by_position


class VisionFeatures(NamedTuple):
    """What a vision tower makes of the crops of one image."""

    tokens: Tensor  # (crops, N, C)
    position: Tensor | None  # (crops, N) of each token, see visionzip_patch.token_order; None: the whole grid, in order
    side: int  # patches in a row of a crop


Pinpoints = str | Sequence[tuple[int, int]]
MOST_GRIDS = 10_000  # a longer range is a slip of the pen
GRID_RANGE = re.compile(r"\s*\((\d+)x(\d+)\)\s*,\s*\.\.\.\s*,\s*\((\d+)x(\d+)\)\s*")
KNOWN_ASPECTS = re.compile(r"square|pad|anyres(_max_[1-9]\d*)?")
MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
POSSIBLE_ASPECTS = "square, pad, anyres or anyres_max_N (N tiles)"


def is_anyres(config) -> bool:
    """Return whether a model's images are cut into tiles, as `config.image_aspect_ratio` says."""
    return (getattr(config, "image_aspect_ratio", None) or "").startswith("anyres")


def merge_type(config) -> str:
    """Return how the crops of an image are joined, as `config.mm_patch_merge_type` says: "flat" without it."""
    return getattr(config, "mm_patch_merge_type", None) or "flat"


def most_tiles(config) -> int | None:
    """Return N where `config.image_aspect_ratio` is `anyres_max_N`, the tiles whose tokens are kept; None without."""
    limit = re.fullmatch(r"anyres_max_(\d+)", getattr(config, "image_aspect_ratio", None) or "")
    return int(limit[1]) if limit else None


def parse_pinpoints(pinpoints: Pinpoints | None, side: int | None = None) -> list[tuple[int, int]]:
    """Read the resolutions, (width, height) in pixels, that a config lets an image be scaled to.

    Args:
        pinpoints: a list of pairs; its text; or a range of grids, `"(1x1),...,(6x6)"`, which stands for every number
            of columns and of rows between the two, counted in tiles.
        side: pixels a side of a tile; needed by a range alone.

    Raises:
        ValueError: anything else.
    """
    if isinstance(pinpoints, str) and (ends := GRID_RANGE.fullmatch(pinpoints)):
        least_cols, least_rows, most_cols, most_rows = map(int, ends.groups())
        columns, rows = range(least_cols, most_cols + 1), range(least_rows, most_rows + 1)
        if side is None or min(least_cols, least_rows) < 1 or not 0 < len(columns) * len(rows) <= MOST_GRIDS:
            raise ValueError(wrong_pinpoints(pinpoints))
        return [(side * col, side * row) for col in columns for row in rows]
    try:
        values = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints or []
        pairs = [(width, height) for width, height in values]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(wrong_pinpoints(pinpoints)) from error
    if not pairs or not all(type(size) is int and size > 0 for pair in pairs for size in pair):
        raise ValueError(wrong_pinpoints(pinpoints))
    return pairs


def wrong_pinpoints(pinpoints) -> str:
    """Describe what is expected in place of `pinpoints`, for an error."""
    found = repr(pinpoints)
    return (
        f"image_grid_pinpoints={found if len(found) < 100 else found[:100] + ' …'} are no resolutions: expected a list "
        f"of (width, height) in pixels, for LLaVA-1.6 [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], "
        f'or a range of grids such as "(1x1),...,(6x6)".'
    )


def select_best_resolution(original_size: tuple[int, int], possible_resolutions: Pinpoints) -> tuple[int, int]:
    """Choose the resolution that keeps most of an image's pixels and, among those, wastes the least.

    Args:
        original_size: (width, height) of the image in pixels.
        possible_resolutions: (width, height) in pixels, see `parse_pinpoints`.

    Returns:
        (width, height) in pixels; of equally good ones, the first.
    """
    width, height = original_size

    def quality(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - resolution[0] * resolution[1]

    return max(parse_pinpoints(possible_resolutions), key=quality)


def get_anyres_image_grid_shape(
    image_size: tuple[int, int], grid_pinpoints: Pinpoints, patch_size: int
) -> tuple[int, int]:
    """Choose the grid of tiles for an image.

    Args:
        image_size: (width, height) of the image in pixels.
        grid_pinpoints: the resolutions to choose from, see `parse_pinpoints`.
        patch_size: pixels a side of a tile.

    Returns:
        (columns, rows) of the grid.
    """
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def unpad_slices(original_size: tuple[int, int], rows: int, cols: int) -> tuple[slice, slice]:
    """Return the rows and columns of a feature grid that show the image and not the black bars around it.

    The arithmetic is upstream's, float rounding included: an odd bar keeps one row or column too many, and a very long
    image can keep none.
    """
    width, height = original_size
    if width / height > cols / rows:
        bar = (rows - int(height * (cols / width))) // 2
        return slice(bar, rows - bar), slice(None)
    bar = (cols - int(width * (rows / height))) // 2
    return slice(None), slice(bar, cols - bar)


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Cut the bars off the features of a padded image: (C, rows, cols) -> (C, fewer rows or fewer cols).

    Args:
        tensor: features of a grid, (C, rows, cols).
        original_size: (width, height) of the image before it was padded.
    """
    rows, cols = unpad_slices(original_size, *tensor.shape[1:])
    return tensor[:, rows, cols]


def pack(
    features: VisionFeatures,
    *,
    merge_type: str,
    grid: tuple[int, int] | None = None,
    image_size: tuple[int, int] | None = None,
    newline: Tensor | None = None,
    max_tiles: int | None = None,
) -> Tensor:
    """Join all crops of one image into one run of tokens: (crops, N, C) -> (tokens, C).

    Args:
        features: the image's crops, base first, already projected.
        merge_type: "flat" joins the crops one after the other; "spatial" orders the tiles' tokens by where they are in
            the whole image; "spatial_unpad" also cuts the black bars off and ends each row with `newline`.
        grid: (columns, rows) of the tiles; needed by the spatial types if there are tiles.
        image_size: (width, height) of the original image in pixels; needed to unpad.
        newline: (C,), the learned end of a row.
        max_tiles: a whole grid with clearly more tokens than this many tiles is scaled down (`anyres_max_N`).

    A whole grid of tokens has rows, so it can be unpadded and its rows ended. A selection has none: its tokens follow
    one another by position, then every tile's CLS, then every tile's merged tokens, as the published VisionZip does it.

    Raises:
        ValueError: an unknown merge type, no grid or newline where one is needed, or a grid that does not have as many
            tiles as there are.
    """
    tokens, position, side = features
    if merge_type == "flat":
        return tokens.flatten(0, 1)
    if merge_type not in MERGE_TYPES:
        raise ValueError(f"mm_patch_merge_type={merge_type!r} is unknown; choose one of {', '.join(MERGE_TYPES)}.")
    unpad = merge_type == "spatial_unpad"
    if len(tokens) == 1:
        return torch.cat([tokens[0], require_newline(newline)[None].to(tokens)]) if unpad else tokens[0]
    if grid is None or (unpad and image_size is None):
        raise ValueError(f"{len(tokens)} crops with mm_patch_merge_type={merge_type!r} need a grid: pass image_sizes.")
    cols, rows = grid
    if cols * rows != len(tokens) - 1:
        raise ValueError(
            f"An image of size {image_size} makes a {cols}x{rows} grid = {cols * rows} tiles and a base crop, but "
            f"{len(tokens)} crops came. Preprocess with process_images and pass each image's original (width, height)."
        )
    base, tiles = tokens[0], tokens[1:]
    if position is not None:
        return torch.cat([base, order_by_position(tiles, position[1:], cols, side)])
    whole = tiles.unflatten(0, (rows, cols)).unflatten(2, (side, side))  # (rows, cols, side, side, C)
    whole = whole.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # (rows * side, cols * side, C)
    if unpad and image_size is not None:
        by_row, by_col = unpad_slices(image_size, rows * side, cols * side)
        whole = limit(whole[by_row, by_col], max_tiles, side)
        whole = torch.cat([whole, require_newline(newline).to(whole).expand(len(whole), 1, -1)], dim=1)
    return torch.cat([base, whole.flatten(0, 1)])


def require_newline(newline: Tensor | None) -> Tensor:
    """Return the learned end of a row, (C,).

    Raises:
        ValueError: there is none.
    """
    if newline is None:
        raise ValueError(
            "mm_patch_merge_type='spatial_unpad' ends each row with image_newline, but this model has none. Use "
            "'spatial', or a checkpoint that was trained with it."
        )
    return newline


def limit(whole: Tensor, max_tiles: int | None, side: int) -> Tensor:
    """Scale a grid (rows, cols, C) down to about `max_tiles` tiles if it has over 1.1 ** 2 times as many patches."""
    rows, cols, _ = whole.shape
    excess = math.sqrt(rows * cols / (max_tiles * side * side)) if max_tiles else 0
    if excess <= 1.1:
        return whole
    small = F.interpolate(whole.permute(2, 0, 1)[None], (int(rows // excess), int(cols // excess)), mode="bilinear")
    return small[0].permute(1, 2, 0)
