"""Lay out figures: panels side by side, a colour bar and a legend beneath."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.visualize import colours
from llava.visualize.draw import INK, badge, heights, overlay
from llava.visualize.view import View

PALE = "#6b7280"
MARGIN, SPACE = 36, 20  # pixels around the figure, between panels
TITLE, TEXT = 27, 18  # pixels of a line's letters
BAR = 230, 14  # width and height of a colour bar
KINDS = (
    ("picture", "what the tower sees", {"heat": False, "kept": False, "clusters": False}),
    ("scores", "scores; kept patches outlined", {"heat": True, "kept": True, "clusters": False}),
    ("tokens", "kept patches and clusters", {"heat": False, "kept": True, "clusters": True}),
)


def figure(views: Sequence[View], title: str, subtitle: str) -> Image.Image:
    """Draw picture, scores and tokens of one image, or of several on one scale side by side, as one RGB picture."""
    rows = [[overlay(view, **options) for view in views] for _, _, options in KINDS]
    if len(views) > 1:
        titles = [text_line(view.title, TEXT, INK, view.picture.width) for view in views]
        columns = [stack([*images, title]) for *images, title in zip(*rows, titles, strict=True)]
        names = stack([sideways(name, images[0].height) for (name, _, _), images in zip(KINDS, rows, strict=True)])
        panels = [[names, *columns]]
    else:
        panels = [labelled(image, name) for (image,), (_, name, _) in zip(rows, KINDS, strict=True)]
        is_wide = views[0].picture.width > 1.5 * views[0].picture.height
        panels = [[panel] for panel in panels] if is_wide else [panels]
    return on_page(panels, [colour_bar(views[0]), legend(views)], title, subtitle)


def average_figure(maps: Sequence[View], title: str, subtitle: str) -> Image.Image:
    """Draw maps side by side, each with a colour bar of its own."""
    panels = [stack([labelled(overlay(view), view.title), colour_bar(view)]) for view in maps]
    return on_page([panels], [], title, subtitle)


def on_page(
    panels: Sequence[Sequence[Image.Image]], footer: Sequence[Image.Image], title: str, subtitle: str
) -> Image.Image:
    """Put rows of panels on white, under a heading."""
    body = stack([side_by_side(row, top=True) for row in panels])
    if footer:
        legend_line = side_by_side(footer, 2 * MARGIN)
        body = stack([body, legend_line if legend_line.width <= body.width else stack(footer)])
    head = stack([text_line(title, TITLE, INK), text_line(subtitle, TEXT, PALE)], 10)
    content = stack([head, body], SPACE + 4)
    page = Image.new("RGBA", (content.width + 2 * MARGIN, content.height + 2 * MARGIN), "white")
    page.alpha_composite(content, (MARGIN, MARGIN))
    return page.convert("RGB")


def colour_bar(view: View) -> Image.Image:
    """Draw the colours of the scores, with their lowest, middle and highest value."""
    low, high = view.scale
    width, height = BAR
    line = (colours.heat(np.linspace(0, 1, width)) * 255).round().astype(np.uint8)
    bar = Image.fromarray(np.broadcast_to(line, (height, width, 3)).copy()).convert("RGBA")
    values = low, low + (high - low) / 4, high  # a quarter of the way is the middle of a square-root scale
    labels = [text_line(f"{value:.2g}", TEXT - 3, PALE) for value in values]
    ticks = Image.new("RGBA", (width, labels[0].height))
    for label, place in zip(labels, heights(np.array(values), view.scale), strict=True):
        ticks.alpha_composite(label, (round((width - label.width) * float(place)), 0))
    return stack([text_line(f"% {view.meaning}", TEXT - 3, INK), bar, ticks], 5)


def legend(views: Sequence[View]) -> Image.Image:
    """Draw what outlines, discs and tints mean."""
    side = 22
    kept = Image.new("RGBA", (side, side), INK)
    kept.paste("white", (2, 2, side - 2, side - 2))
    kept.paste("#9aa1ad", (5, 5, side - 5, side - 5))
    entries = [(kept, "kept (dominant)")]
    if views[0].contextual:
        (tint,) = colours.to_hex(colours.cluster([0]))
        entries += [
            (badge(0, side), "contextual token 1, at its target"),
            (Image.new("RGBA", (side, side), tint), "merged into it"),
        ]
    else:
        entries += [(Image.new("RGBA", (side, side), "#6f6f6f"), "dropped")]
    return side_by_side([side_by_side([icon, text_line(text, TEXT - 3, INK)], 8) for icon, text in entries], SPACE)


def labelled(image: Image.Image, text: str) -> Image.Image:
    """Write a line of text below a picture."""
    return stack([image, text_line(text, TEXT, INK, image.width)], 8)


def sideways(text: str, height: int) -> Image.Image:
    """Draw a line of text that runs upwards, in the middle of `height` pixels."""
    line = text_line(text, TEXT, INK).rotate(90, expand=True)
    place = Image.new("RGBA", (line.width, max(height, line.height)))
    place.alpha_composite(line, (0, (place.height - line.height) // 2))
    return place


def text_line(text: str, size: int, colour: str, limit: int | None = None) -> Image.Image:
    """Draw one line of text, shortened to `limit` pixels."""
    font = ImageFont.load_default(size)
    while limit is not None and len(text) > 1 and font.getlength(text) > limit:
        text = text[:-2] + "…"
    line = Image.new("RGBA", (max(1, round(font.getlength(text)) + 1), round(size * 1.25)))
    ImageDraw.Draw(line).text((0, line.height / 2), text, colour, font, anchor="lm")
    return line


def side_by_side(images: Sequence[Image.Image], space: int = SPACE, *, top: bool = False) -> Image.Image:
    """Put pictures in a row, their middles on one line, or with `top` their upper edges."""
    height = max(image.height for image in images)
    row = Image.new("RGBA", (sum(image.width for image in images) + space * (len(images) - 1), height))
    left = 0
    for image in images:
        row.alpha_composite(image, (left, 0 if top else (height - image.height) // 2))
        left += image.width + space
    return row


def stack(images: Sequence[Image.Image], space: int = SPACE) -> Image.Image:
    """Put pictures in a column, their left edges on one line."""
    column = Image.new(
        "RGBA",
        (max(image.width for image in images), sum(image.height for image in images) + space * (len(images) - 1)),
    )
    top = 0
    for image in images:
        column.alpha_composite(image, (0, top))
        top += image.height + space
    return column
