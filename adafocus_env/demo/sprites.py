"""The components of demo videos: digits, discs, a background, and smooth paths."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image

OUTWARD = 0.25  # how much rarer positions in the middle are, since a patch in the middle overlaps more targets


def random_colour(hues: tuple[float, float], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a bright colour (3,), 0-255, with a hue in the range ``hues``, in fractions of the colour circle."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(*hues) % 1, rng.uniform(0.7, 0.9), rng.uniform(0.8, 1.0)))


def sprite(digit: npt.NDArray[np.uint8], side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the opacity (side, side), 0-1, of a digit that is rotated by a few degrees."""
    image = Image.fromarray((digit.astype(np.float32) * (255 / 16)).astype(np.uint8))
    image = image.resize((side, side), Image.Resampling.BICUBIC).rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def disc(side: int) -> npt.NDArray[np.float32]:
    """Return the opacity (side, side) of a disc, which marks a location without revealing the class."""
    axis = np.arange(side) - (side - 1) / 2
    return (np.hypot(*np.meshgrid(axis, axis)) <= side / 2).astype(np.float32)


def drift(length: int, span: int, speed: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a smooth path (length, 2) of top-left corners that changes direction slowly and bounces off the borders of [0, span]."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, length))
    steps = speed * rng.uniform(0.6, 1.4) * np.stack([np.sin(heading), np.cos(heading)], axis=1)
    free = rng.uniform(0, span, 2) + np.cumsum(steps, axis=0)
    even = 1 - np.abs(free / span % 2 - 1)
    return span * (even - OUTWARD * np.sin(2 * np.pi * even) / (2 * np.pi))


def background(size: int, length: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a dim smooth texture (length, size, size, 3) that moves behind the digits of one scene."""
    margin = 2 * length
    coarse = rng.integers(0, 90, (9, 9, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((size + margin, size + margin), Image.Resampling.BICUBIC))
    corners = drift(length, margin, 1.0, rng).astype(int)
    return np.stack([texture[y : y + size, x : x + size] for y, x in corners]).astype(np.float32)


def paste(
    frames: npt.NDArray[np.float32], opacity: npt.NDArray[np.float32], colour: npt.NDArray[np.float64], path: npt.NDArray[np.float64]
) -> None:
    """Blend a colour (3,) into the frames (n, height, width, 3), with an opacity (side, side) at top-left corners (n, 2)."""
    opacity = opacity[..., None]
    for frame, (top, left) in zip(frames, path.round().astype(int), strict=True):
        under = frame[top : top + len(opacity), left : left + len(opacity)]
        under += opacity * (colour.astype(np.float32) - under)
