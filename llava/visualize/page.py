"""Write an interactive HTML page: one file, no request to anywhere, light and dark, for mouse, touch and keys.

Its parts are page.html, page.css and page.js in this folder.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

from llava.visualize import colours
from llava.visualize.draw import heights
from llava.visualize.view import Crop, View

SHADES = 64  # steps of the colour ramp
GENERATOR = '<meta name="generator" content="visionzip_patch">'  # by which a page of this command is recognized


def page(views: Sequence[View], title: str, subtitle: str) -> str:
    """Write a page with a picture per view, where a patch shows its score and fate, and a token its patches."""
    data = {
        "ramp": colours.to_hex(colours.heat(np.linspace(0, 1, SHADES))),
        "colours": colours.to_hex(colours.cluster(np.arange(max(view.contextual for view in views)))),
        "views": [describe_view(view) for view in views],
    }
    parts = {
        "GENERATOR": GENERATOR,
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(subtitle),
        "STYLE": part("page.css"),
        "SCRIPT": part("page.js"),
        "DATA": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
    }
    return re.sub("%([A-Z]+)%", lambda place: parts[place[1]], part("page.html"))


def part(name: str) -> str:
    """Read a file of this folder."""
    return files("llava.visualize").joinpath(name).read_text(encoding="utf-8")


def describe_view(view: View) -> dict:
    """Turn a view into what page.js reads."""
    width, height = view.picture.size
    return {
        "title": view.title,
        "size": [width, height],
        "meaning": view.meaning,
        "scale": view.scale,
        "cls": view.has_cls,
        "crops": [describe_crop(view, crop) for crop in view.crops],
    }


def describe_crop(view: View, crop: Crop) -> dict:
    """Turn a crop into what page.js reads."""
    box = crop.left, crop.top, crop.left + crop.side, crop.top + crop.side
    return {
        "corner": box[:2],
        "grid": crop.grid,
        "cell": crop.cell,
        "image": data_uri(view.picture.crop(box)) if view.is_zipped else None,
        "score": [float(f"{score:.3g}") for score in crop.score],
        "shade": ((SHADES - 1) * heights(crop.score, view.scale)).round().astype(int).tolist(),
        "token": None if crop.token is None else crop.token.tolist(),
        "targets": crop.targets.tolist(),
    }


def data_uri(image: Image.Image) -> str:
    """Encode a picture as a JPEG inside a data: address."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
