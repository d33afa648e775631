"""The pictures of the page: heat maps of the patches, and looping animations of clips with their patches."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adafocus_env.drawing import enlarged, outline

Boxes = NDArray[np.float64]

PATCHES = {"random": "#d7dde1", "learned": "#ff4d3d"}
"""Colours of the outlines of patches, in drawing order. The style sheet contains the same colours."""
MIN_SIDE = 192  # pixels; smaller frames are enlarged by an integer factor
FRAME_MS, LAST_FRAME_MS = 450, 1200
BAR = 4  # height in pixels of the progress bar below a frame
MAP = "magma"


def coverage(boxes: Boxes, size: int) -> NDArray[np.float64]:
    """Return, for each pixel of a frame (size, size), the share of the boxes (M, 4) that cover it. Boxes that are NaN are ignored."""
    sides = boxes[np.isfinite(boxes).all(-1)].round().clip(0, size).astype(int)
    changes = np.zeros((size + 1, size + 1))
    for rows, sign in ((sides[:, 0], 1), (sides[:, 2], -1)):
        np.add.at(changes, (rows, sides[:, 1]), sign)
        np.add.at(changes, (rows, sides[:, 3]), -sign)
    return changes.cumsum(0).cumsum(1)[:size, :size] / max(1, len(sides))


def heat_map(shares: NDArray[np.float64], highest: float) -> str:
    """Draw shares (size, size) as a picture and return its data URL. The brightest colour stands for the share ``highest``."""
    colours = mpl.colormaps[MAP](shares / (highest or 1), bytes=True)[..., :3]
    return _data_url(Image.fromarray(np.ascontiguousarray(colours)).quantize(64), "png", optimize=True)


def peak_in_words(shares: NDArray[np.float64]) -> str:
    """Return the location of the highest share in words, which name the vertical and the horizontal third of the frame."""
    row, column = (3 * index // len(shares) for index in np.unravel_index(shares.argmax(), shares.shape))
    names = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))
    return names[row][column]


def animation(frames: NDArray[np.uint8], boxes: dict[str, Boxes]) -> tuple[str, str]:
    """Return two data URLs: one of a looping animation of a clip, and one of the last picture of this animation.

    Args:
        frames: (T, H, W, 3) uint8.
        boxes: Maps the name of each policy in `PATCHES` to its patches (T, 4), as (top, left, bottom, right). The patches are NaN in frames
            without a patch.
    """
    pictures = [
        _frame(frame, {name: boxes[name][number] for name in PATCHES if name in boxes}, (number + 1) / len(frames))
        for number, frame in enumerate(frames)
    ]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    moving = _data_url(pictures[0], "webp", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=70, method=4)
    return moving, _data_url(pictures[-1], "webp", quality=70)


def _frame(frame: NDArray[np.uint8], boxes: dict[str, Boxes], done: float) -> Image.Image:
    large, scale = enlarged(frame, MIN_SIDE)
    picture = Image.new("RGB", (large.width, large.height + BAR), "#202428")
    picture.paste(large)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, large.height, round(done * large.width) - 1, picture.height), fill="#d7dde1")
    for name, box in boxes.items():
        if np.isfinite(box).all():
            outline(draw, box.tolist(), (scale, scale), PATCHES[name], 3)
    return picture


def _data_url(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def stacked(boxes: Sequence[Boxes]) -> Boxes:
    """Return the boxes (N, D, 4) of several runs as one array (M, 4)."""
    return np.concatenate([each.reshape(-1, 4) for each in boxes])
