"""Seeded pictures of coloured signs, each carrying a word or a two-digit number, and questions about them.

Everything is a pure function of an integer seed. The fonts are the DejaVu files inside matplotlib's own data folder and
text is set with Pillow's basic layout, so that no font or shaping library of the machine changes a pixel.

Shapes: S = 112 pixels a side, G = S / 14 = 8 patches a side.
"""

import random
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 112  # pixels a side
PATCH = 14  # pixels a side
GRID = SIZE // PATCH
ON_SIGN = 0.35  # a patch is on a sign if more than this share of it is covered

# fmt: off
WORDS = (
    "stop", "exit", "open", "sale", "fire", "taxi", "bus", "cafe", "bank", "park",
    "hotel", "pizza", "metro", "slow", "wait", "push", "pull", "free", "north", "south",
    "east", "west", "fish", "milk", "book", "shop", "food", "gift", "rice", "tour",
    "zoo", "gym", "bar", "spa", "ice", "tea", "map", "key", "car", "dog",
)
# fmt: on
COLOURS = {
    "red": (205, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (30, 140, 60),
    "blue": (30, 70, 200),
    "purple": (125, 40, 160),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf")
KINDS = ("word", "number", "color", "count", "exists")  # of questions
OPTIONS = 4  # of a question with choices, where so many are possible

# Training draws its seeds below this line and evaluation above it, so that no evaluation picture is ever trained on.
HELD_OUT = 1_000_000_000

_DARK_TEXT = ("orange", "yellow", "white")
_TEXT_SIZES = (14, 17)  # pixels, both included
_NUMBER_SHARE = 0.3
_DENSE_SIGNS = 8
_NOISE = 8  # grey levels either way


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are the first ones outside."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Sign:
    """One sign: its colour's name, its text in lower case (drawn in capitals) and the pixels it covers."""

    colour: str
    text: str
    box: Box
    characters: tuple[Box, ...] = ()  # where each character of `text` stands

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, (S, S, 3) uint8, and the signs in it."""

    image: np.ndarray
    signs: tuple[Sign, ...]


@dataclass(frozen=True)
class Question:
    kind: str  # one of KINDS
    text: str
    answer: str  # lower case, as TextVQA writes it


def make_scene(seed: int, *, dense: bool = False) -> Scene:
    """Draw the scene of `seed`: one or two signs of different colours and texts on a cluttered background.

    Args:
        seed: 0 or more; the same seed gives the same pixels.
        dense: instead fill the picture with up to eight signs whose colours and texts may repeat: reading lessons.
    """
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    picture = _background(rng, noise)
    pen = ImageDraw.Draw(picture)

    colours = rng.choices(list(COLOURS), k=_DENSE_SIGNS) if dense else rng.sample(list(COLOURS), rng.randint(1, 2))
    signs: list[Sign] = []
    for colour in colours:
        for _ in range(12 if dense else 40):  # tries to find a free place
            text = str(rng.randint(10, 99)) if rng.random() < _NUMBER_SHARE else rng.choice(WORDS)
            if not dense and any(other.text == text for other in signs):
                continue
            if sign := _place_and_draw(picture, pen, rng, colour, text, [other.box for other in signs]):
                signs.append(sign)
                break

    grain = noise.integers(-_NOISE, _NOISE + 1, (SIZE, SIZE, 1), dtype=np.int16)
    image = np.clip(np.asarray(picture, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    return Scene(image, tuple(signs))


def questions(signs: tuple[Sign, ...], seed: int) -> list[Question]:
    """List every question a scene answers: two per sign, the count, and two about existence (one "yes", one "no").

    Args:
        signs: of one scene; colours and texts must not repeat.
        seed: decides which colours the two existence questions name.
    """
    rng = random.Random(seed)
    asked = []
    for sign in signs:
        kind = "number" if sign.is_number else "word"
        asked.append(Question(kind, f"what {kind} is on the {sign.colour} sign?", sign.text))
        asked.append(Question("color", f"what color is the sign that says {sign.text}?", sign.colour))
    asked.append(Question("count", "how many signs are there?", str(len(signs))))
    present = [sign.colour for sign in signs]
    absent = [colour for colour in COLOURS if colour not in present]
    for answer, colour in (("yes", rng.choice(present)), ("no", rng.choice(absent))):
        article = "an" if colour[0] in "aeiou" else "a"
        asked.append(Question("exists", f"is there {article} {colour} sign in the image?", answer))
    return asked


def options(question: Question, rng: random.Random) -> list[str]:
    """List the answer of `question` among others of its kind, in random order: two for yes or no, else OPTIONS."""
    others = {
        "word": WORDS,
        "number": [str(number) for number in range(10, 100)],
        "color": list(COLOURS),
        "count": [str(number) for number in range(1, OPTIONS + 1)],
        "exists": ["yes", "no"],
    }[question.kind]
    wrong = [other for other in others if other != question.answer]
    drawn = [question.answer, *rng.sample(wrong, min(len(wrong), OPTIONS - 1))]
    rng.shuffle(drawn)
    return drawn


def overlap(box: Box) -> np.ndarray:
    """Compute the share of each patch's area inside `box`, (G, G) float32, 0 to 1."""
    edges = np.arange(GRID + 1, dtype=np.float32) * PATCH
    wide = np.clip(np.minimum(edges[1:], box.right) - np.maximum(edges[:-1], box.left), 0, None)  # (G,)
    high = np.clip(np.minimum(edges[1:], box.bottom) - np.maximum(edges[:-1], box.top), 0, None)  # (G,)
    return high[:, None] * wide / PATCH**2


def coverage(signs: tuple[Sign, ...]) -> np.ndarray:
    """Compute the share of each patch covered by signs, (G, G) float32, 0 to 1; signs never overlap."""
    return sum((overlap(sign.box) for sign in signs), np.zeros((GRID, GRID), np.float32))


def _background(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Draw a blurred checker of random colours under shapes, some in the colours of signs to mislead."""
    cells = rng.randint(2, 7)
    checker = noise.integers(30, 226, (cells, cells, 3), dtype=np.uint8)
    picture = Image.fromarray(checker).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(3, 9)):
        fill = rng.choice(list(COLOURS.values())) if rng.random() < 0.4 else tuple(rng.choices(range(256), k=3))
        fill = _vary(rng, fill, 25)
        left, top = rng.randint(-10, SIZE), rng.randint(-10, SIZE)
        wide, high = rng.randint(8, SIZE // 3), rng.randint(8, SIZE // 3)
        shape = rng.random()
        if shape < 0.35:
            pen.ellipse((left, top, left + wide, top + high), fill=fill)
        elif shape < 0.6:
            pen.rectangle((left, top, left + wide, top + high), fill=fill)
        elif shape < 0.75:
            tip = (left + rng.randint(0, wide), top + high)
            pen.polygon([(left, top), (left + wide, top + rng.randint(0, high)), tip], fill=fill)
        else:
            end = (left + rng.randint(-50, 50), top + rng.randint(-50, 50))
            pen.line([(left, top), end], fill=fill, width=rng.randint(1, 5))
    return picture


def _place_and_draw(
    picture: Image.Image, pen: ImageDraw.ImageDraw, rng: random.Random, colour: str, text: str, taken: list[Box]
) -> Sign | None:
    """Draw one sign at a random place; returns None, and draws nothing, where it would touch one of `taken`."""
    stencil, advances = _stencil(text.upper(), rng.choice(FONTS), rng.randint(*_TEXT_SIZES))
    pad_x, pad_y = rng.randint(4, 10), rng.randint(4, 9)
    wide, high = stencil.width + 2 * pad_x, stencil.height + 2 * pad_y
    if max(wide, high) > SIZE:
        return None
    left, top = rng.randint(0, SIZE - wide), rng.randint(0, SIZE - high)
    box = Box(left, top, left + wide, top + high)
    if any(_nearer_than(2, box, other) for other in taken):
        return None

    ink = (15, 15, 15) if colour in _DARK_TEXT else (245, 245, 245)
    outline = ink if rng.random() < 0.5 else None
    fill, radius = _vary(rng, COLOURS[colour], 15), rng.choice((0, 4, 7))
    pen.rounded_rectangle((left, top, left + wide - 1, top + high - 1), radius=radius, fill=fill, outline=outline)
    picture.paste(ink, (left + pad_x, top + pad_y), stencil)
    x, y = left + pad_x, top + pad_y
    characters = tuple(Box(x + start, y, x + end, y + stencil.height) for start, end in pairwise(advances))
    return Sign(colour, text, box, characters)


def _nearer_than(gap: int, one: Box, two: Box) -> bool:
    apart_x = one.left >= two.right + gap or two.left >= one.right + gap
    apart_y = one.top >= two.bottom + gap or two.top >= one.bottom + gap
    return not (apart_x or apart_y)


def _vary(rng: random.Random, rgb: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple(max(0, min(255, value + rng.randint(-by, by))) for value in rgb)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # heavy, and only its data folder is wanted

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _stencil(text: str, font_name: str, size: int) -> tuple[Image.Image, list[float]]:
    """Draw a text as a grey mask cropped to its ink; also returns the x where each character starts, and the end."""
    font = _font(font_name, size)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    return mask, [font.getlength(text[:count]) - left for count in range(len(text) + 1)]
