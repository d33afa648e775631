"""Frame + patch + confidence → picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PATCH_COLOUR = (255, 255, 255)
MIN_SIDE = 288  # pixels; small frames are enlarged by a whole number to at least this
CAPTION = 36  # pixels under the frame


def draw_patch(frame: NDArray[np.uint8], box: Sequence[int] | None, *, scale: int = 1) -> Image.Image:
    """The frame (H, W, 3), enlarged ``scale`` times, with the outline of ``box`` (top, left, bottom, right), if any."""
    picture = Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)
    if box is not None:
        top, left, bottom, right = (int(side) * scale for side in box)
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=PATCH_COLOUR, width=max(1, scale // 2 + 1))
    return picture


def draw_step(frame: NDArray[np.uint8], box: Sequence[int] | None, lines: tuple[str, str]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) of one step: the frame, the patch, and two lines of text below them."""
    scale = max(1, -(-MIN_SIDE // min(frame.shape[:2])))
    picture = draw_patch(frame, box, scale=scale)
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), "black")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((6, picture.height + 2 + 16 * number), line, fill="white", font=ImageFont.load_default(12))
    return np.asarray(canvas)
