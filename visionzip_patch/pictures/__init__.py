"""What VisionZip sees and keeps, drawn over the picture. Pillow and numpy; knows no model and no file."""

from visionzip_patch.pictures.draw import overlay
from visionzip_patch.pictures.figure import average_figure, figure
from visionzip_patch.pictures.page import GENERATOR, page
from visionzip_patch.pictures.view import (
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
