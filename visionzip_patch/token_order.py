"""Where selected tokens come from, and their order when an image was cut into tiles.

Shapes: T tiles of side x side patches, N = D + M tokens of each, C channels.
"""

import torch
from torch import Tensor

from visionzip_patch.selection import Selection

CLS, MERGED = -1, -2  # positions of tokens that stand for no patch of the grid


def positions(selection: Selection, has_cls: bool) -> Tensor:
    """Find the raster index of the patch that each token of a selection is, or CLS, or MERGED: (B, N)."""
    merged = torch.full_like(selection.targets, MERGED)
    return torch.cat([selection.kept - int(has_cls), merged], dim=1)  # CLS, token 0, becomes -1


def order_by_position(tiles: Tensor, position: Tensor, cols: int, side: int) -> Tensor:
    """Put tokens of T tiles in raster order of the whole image, as the published VisionZip hands them to LLaVA-NeXT.

    Tokens without a position follow, tile by tile: first every CLS, then every MERGED.

    Args:
        tiles: (T, N, C), tiles in raster order.
        position: (T, N), as `positions` gives it.
        cols: tiles in a row of the image.
        side: patches in a row of a tile.

    Returns:
        (T * N, C)
    """
    tile = torch.arange(len(tiles), device=tiles.device).unsqueeze(1)  # (T, 1)
    row = tile // cols * side + position // side
    col = tile % cols * side + position % side
    place = row * cols * side + col  # (T, N) raster index in the whole image
    place = torch.where(position < 0, len(tiles) * side * side - position, place)  # CLS = -1 before MERGED = -2
    return tiles.flatten(0, 1)[place.flatten().argsort(stable=True)]
