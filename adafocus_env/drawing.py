"""Drawing functions for all pictures: colours, fonts, enlarged frames, outlines of patches, and the focuser's input."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, PLOT, MUTED, TEXT = (18, 20, 26), (30, 33, 42), (134, 142, 158), (236, 239, 244)
PATCH, CONFIDENCE, GRID = (255, 190, 60), (86, 196, 255), (52, 57, 70)

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int] | str


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of ``size`` pixels.

    If Matplotlib is installed, the font is DejaVu Sans, which is part of Matplotlib and covers most alphabets. Without Matplotlib, the font
    is Pillow's default font.
    """
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations or []) if package else []:
        file = Path(folder, "mpl-data", "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def shorten(text: str, width: float, size: int, *, bold: bool = False) -> str:
    """Return the text, truncated with an ellipsis to ``width`` pixels."""
    measure = font(size, bold=bold).getlength
    while text and measure(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def enlarged(frame: Picture, least: int) -> tuple[Image.Image, int]:
    """Enlarge a frame (H, W, 3) by an integer factor, so that both sides have at least ``least`` pixels.

    Return the enlarged frame and the factor.
    """
    scale = max(1, -(-least // min(frame.shape[:2])))
    return Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST), scale


def outline(draw: ImageDraw.ImageDraw, box: Sequence[float], scale: tuple[float, float], colour: Colour, width: int) -> None:
    """Draw the outline of a box, with a dark rim, on an enlarged frame.

    The box is in pixels of the original frame, and ``scale`` (y, x) are the factors of the enlargement.
    """
    top, left, bottom, right = (round(side * scale[number % 2]) for number, side in enumerate(box))
    draw.rectangle((left - 1, top - 1, right, bottom), outline=(0, 0, 0), width=width + 2)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)


def focused(pixels: Picture, box: Sequence[float], patch_size: int, side: int) -> Image.Image:
    """Return the patch as the focuser receives it, resized to ``patch_size`` pixels, and then enlarged to ``side`` pixels for display."""
    top, left, bottom, right = box
    height, width = pixels.shape[:2]
    inside = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)  # rounding may cross the border
    patch = Image.fromarray(pixels).resize((patch_size, patch_size), Image.Resampling.BILINEAR, box=inside)
    return patch.resize((side, side), Image.Resampling.NEAREST if side >= 3 * patch_size else Image.Resampling.BICUBIC)
