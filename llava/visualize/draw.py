"""Paint scores, kept patches and clusters over a picture.

Shapes: S x S pixels of a crop, G x G patches.
"""

from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.visualize import colours
from llava.visualize.view import KEPT, Crop, View

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
RELIEF = 0.42  # how strongly the picture shows through colours
SMOOTH = 4  # times as large as shown, to smooth round shapes
INK = "#16181d"


def overlay(view: View, *, heat: bool = True, kept: bool = True, clusters: bool = True) -> Image.Image:
    """Paint what is asked for over the picture of `view`: RGBA, of the same size.

    Args:
        heat: the scores in colours, the picture's light and shade in grey beneath.
        kept: outline the dominant patches; without `heat` they keep the picture's colours, and others lose theirs.
        clusters: tint the patches that are merged in the colour of their token (with `heat`: outline the clusters), and
            mark each token's target with its number.

    Of a view that is not zipped only the scores can be shown.
    """
    kept, clusters = kept and view.is_zipped, clusters and view.is_zipped
    canvas = np.asarray(view.picture).copy()  # (height, width, 4)
    for crop in view.crops:
        place = slice(crop.top, crop.top + crop.side), slice(crop.left, crop.left + crop.side), slice(3)
        painted = paint(canvas[place] / 255, crop, view.scale if heat else None, kept, clusters)
        canvas[place] = (painted * 255).round()
    image = Image.fromarray(canvas)
    if clusters:
        for crop in view.crops:
            for target in crop.targets.tolist():
                stamp(image, crop, target)
    return image


def paint(pixels: np.ndarray, crop: Crop, scale: tuple[float, float] | None, kept: bool, clusters: bool) -> np.ndarray:
    """Paint over the pixels of a crop, (S, S, 3) from 0 to 1; `scale` None paints no scores."""
    if not (scale or kept or clusters):
        return pixels
    shade = RELIEF * ((pixels @ LUMA)[..., None] - 0.5)  # (S, S, 1), the picture as light and shade
    if scale:
        painted = colours.heat(enlarge(heights(crop.score, scale), crop)) + shade
    else:
        painted = np.full_like(pixels, 0.36) + shade
    if not (kept or clusters):
        return painted.clip(0, 1)
    assert crop.token is not None, "only scores are drawn of a view that is not zipped"
    token, line = enlarge(crop.token, crop), max(1, crop.cell // 20)
    colour, merged, stays = colours.cluster(token), token >= 0, token == KEPT
    edge = borders(token, line, mode="edge") & merged
    if clusters and scale:
        painted[edge] = colour[edge]
    elif clusters:
        painted[merged] = (colour + shade)[merged]
        painted[edge] *= 0.5
    if not scale:
        painted[stays] = pixels[stays]
    if kept:
        painted[borders(stays, line) & ~stays] = 0.08
        painted[borders(stays, line + 1) & stays] = 1
    return painted.clip(0, 1)


def heights(score: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Place scores on the colour ramp, 0 to 1, by their square root: a few scores tower above all others."""
    low, high = scale
    return np.sqrt(((score - low) / max(high - low, 1e-12)).clip(0, 1))


def enlarge(values: np.ndarray, crop: Crop) -> np.ndarray:
    """Repeat a value of each patch over its pixels: (P,) -> (S, S)."""
    return values.reshape(crop.grid, crop.grid).repeat(crop.cell, 0).repeat(crop.cell, 1)


def borders(labels: np.ndarray, width: int, mode: Literal["constant", "edge"] = "constant") -> np.ndarray:
    """Mark the pixels that have another label at most `width` pixels away: (S, S) -> (S, S), bool.

    Beyond the crop all is 0, or with "edge" as at its edge.
    """
    side = len(labels)
    padded = np.pad(labels, width, mode)
    shifts = [(y, x) for y in (0, width, 2 * width) for x in (0, width, 2 * width)]
    return np.any([padded[y : y + side, x : x + side] != labels for y, x in shifts], axis=0)


def stamp(image: Image.Image, crop: Crop, target: int) -> None:
    """Mark the target of a contextual token: a disc in its colour with its number."""
    assert crop.token is not None, "a view that is not zipped has no targets"
    size = min(34, max(20, round(crop.cell * 0.86)))  # legible, even where it hides more than its patch
    corner = zip(crop.corner(target), image.size, strict=True)
    place = tuple(min(max(0, start + (crop.cell - size) // 2), end - size) for start, end in corner)
    image.alpha_composite(badge(int(crop.token[target]), size), place)


def badge(number: int, size: int) -> Image.Image:
    """Draw a disc of `size` pixels for contextual token `number`, counted from 0, shown from 1."""
    side = size * SMOOTH
    disc = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(disc)
    pen.ellipse((0, 0, side - 1, side - 1), fill=INK)
    pen.ellipse([side * 0.05] * 2 + [side * 0.95 - 1] * 2, fill="white")
    (fill,) = colours.to_hex(colours.cluster([number]))
    pen.ellipse([side * 0.14] * 2 + [side * 0.86 - 1] * 2, fill=fill)
    text = str(number + 1)
    font = ImageFont.load_default(side * (0.56, 0.46, 0.36)[min(len(text), 3) - 1])
    pen.text((side / 2, side / 2), text, INK, font, anchor="mm", stroke_width=side / 90, stroke_fill=INK)
    return disc.resize((size, size), Image.Resampling.LANCZOS)
