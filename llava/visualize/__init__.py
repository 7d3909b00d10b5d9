"""Draw what VisionZip sees and keeps over the picture: with Pillow and numpy, from scores and a selection."""

from llava.visualize.draw import overlay
from llava.visualize.figure import average_figure, figure
from llava.visualize.page import GENERATOR, page
from llava.visualize.view import (
    DROPPED,
    KEPT,
    Crop,
    Patch,
    View,
    look,
    make_view,
    map_view,
    on_one_scale,
    patch_at,
)

__all__ = [
    "DROPPED",
    "GENERATOR",
    "KEPT",
    "Crop",
    "Patch",
    "View",
    "average_figure",
    "figure",
    "look",
    "make_view",
    "map_view",
    "on_one_scale",
    "overlay",
    "page",
    "patch_at",
]
