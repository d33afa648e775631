"""What the pictures of a prediction have in common: colours, fonts, frames with their patch, and what the focuser sees."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from adafocus_env.videos.readers import DecodeError, open_reader
from agents.prediction.result import Box, Prediction

BACKGROUND, PLOT, MUTED, TEXT = (18, 20, 26), (30, 33, 42), (134, 142, 158), (236, 239, 244)
PATCH, CONFIDENCE, GRID = (255, 190, 60), (86, 196, 255), (52, 57, 70)
OUTSIDE = 0.55  # brightness of what the classifier does not see

Picture = NDArray[np.uint8]


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of that size in pixels: DejaVu Sans, which comes with Matplotlib and has most alphabets, or else Pillow's own."""
    package = importlib.util.find_spec("matplotlib")
    for folder in (package.submodule_search_locations or []) if package else []:
        file = Path(folder, "mpl-data", "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def shorten(text: str, width: float, size: int, *, bold: bool = False) -> str:
    """Return the text, cut with an ellipsis to ``width`` pixels."""
    measure = font(size, bold=bold).getlength
    while text and measure(text) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def shown_frames(prediction: Prediction) -> Iterator[tuple[float, Picture, float]]:
    """Yield every frame of the video: its time in seconds, its pixels turned for display, and the width of a pixel by its height.

    Raises:
        DecodeError: The video cannot be read.
    """
    path = Path(prediction.file)
    if path.is_dir():
        reader = open_reader(path)
        for number in range(len(reader)):
            yield number * prediction.duration / len(reader), reader.get_frames([number])[0], 1.0
        return
    try:
        with av.open(str(path)) as container:
            stream, first = container.streams.video[0], None
            stream.thread_type = "AUTO"
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            for number, frame in enumerate(container.decode(stream)):
                time = number / rate if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
                first = time if first is None else first
                turns = round(getattr(frame, "rotation", 0) / 90)
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                yield time - first, np.ascontiguousarray(pixels), 1 / aspect if turns % 2 else aspect
    except (OSError, ValueError, IndexError) as problem:
        raise DecodeError(path, f"its frames cannot be read (PyAV: {problem})") from problem


def dim_outside(pixels: Picture, view: Box) -> Picture:
    """Return the frame with everything darker that the classifier does not see."""
    top, left, bottom, right = (round(side) for side in view)
    dimmed = (pixels * OUTSIDE).astype(np.uint8)
    dimmed[top:bottom, left:right] = pixels[top:bottom, left:right]
    return dimmed


def focused(pixels: Picture, box: Box, patch_size: int, side: int) -> Image.Image:
    """Return what the focuser sees: the patch at its resolution, enlarged to ``side`` pixels."""
    top, left, bottom, right = box
    patch = Image.fromarray(pixels).resize(
        (patch_size, patch_size), Image.Resampling.BILINEAR, box=_inside(pixels, (left, top, right, bottom))
    )
    return patch.resize((side, side), Image.Resampling.NEAREST if side >= 3 * patch_size else Image.Resampling.BICUBIC)


def outline(draw: ImageDraw.ImageDraw, box: Box, scale: tuple[float, float], colour: tuple[int, int, int], width: int) -> None:
    """Draw a box of the video on a picture whose sides are ``scale`` (y, x) times as long, with a dark rim to set it off."""
    top, left, bottom, right = (round(side * scale[number % 2]) for number, side in enumerate(box))
    draw.rectangle((left - 1, top - 1, right, bottom), outline=(0, 0, 0), width=width + 2)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)


def _inside(pixels: Picture, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) without the rounding that may leave the frame."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
