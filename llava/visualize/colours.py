"""Choose colours in OKLCH, where equal steps of lightness, chroma and hue look equally large.

Source: B. Ottosson, "A perceptual color space for image processing", 2020.
"""

import numpy as np
from numpy.typing import ArrayLike

TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.707614701],
    ]
)
GOLDEN_ANGLE = 137.508  # degrees: however many hues are taken, neighbours in number are far apart
LIGHTNESSES = (0.74, 0.62, 0.83)  # in turn, so that colours differ where hues look the same to someone


def oklch(lightness: ArrayLike, chroma: ArrayLike, hue: ArrayLike) -> np.ndarray:
    """Convert OKLCH to sRGB, 0 to 1, in a new last axis; `hue` is in degrees. What a screen cannot show is clipped."""
    angle = np.radians(hue)
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(angle), chroma * np.sin(angle)), axis=-1)
    linear = ((lab @ TO_CONES.T) ** 3 @ TO_LINEAR.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def heat(share: ArrayLike) -> np.ndarray:
    """Map 0 to 1 from night blue over crimson to pale yellow; lightness rises evenly, so hues are optional."""
    share = np.asarray(share, dtype=float)
    chroma = 0.07 + 0.13 * np.sin(np.pi * share**0.8)
    return oklch(0.27 + 0.68 * share, chroma, 278 + 185 * share)


def cluster(number: ArrayLike) -> np.ndarray:
    """Return the colour of contextual token 0, 1, 2, ..."""
    number = np.asarray(number)
    return oklch(np.take(LIGHTNESSES, number % len(LIGHTNESSES)), 0.13, 235 + GOLDEN_ANGLE * number)


def to_hex(colours: np.ndarray) -> list[str]:
    """Write colours, (n, 3) from 0 to 1, as "#rrggbb"."""
    return ["#" + bytes(row.tolist()).hex() for row in (colours * 255).round().astype(np.uint8)]
