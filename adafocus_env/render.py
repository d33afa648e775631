"""Draw pictures of a step, which show its frame, patch and confidence."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adafocus_env.drawing import enlarged, font
from adafocus_env.dynamics import Dynamics
from adafocus_env.outcome import Outcome

PATCH_COLOUR = (255, 255, 255)
MIN_SIDE = 288  # pixels; smaller frames are enlarged by an integer factor to at least this size
CAPTION = 36  # height in pixels of the text below the frame


def draw_patch(frame: NDArray[np.uint8], box: Sequence[int] | None, least: int = MIN_SIDE) -> Image.Image:
    """Enlarge the frame (H, W, 3) to at least ``least`` pixels per side.

    If ``box`` (top, left, bottom, right) is given, draw its outline.
    """
    picture, scale = enlarged(frame, least)
    if box is not None:
        top, left, bottom, right = (int(side) * scale for side in box)
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=PATCH_COLOUR, width=max(1, scale // 2 + 1))
    return picture


def draw_step(frame: NDArray[np.uint8], box: Sequence[int] | None, lines: tuple[str, str]) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) of one step: the frame with the outline of the patch, and two lines of text below the frame."""
    picture = draw_patch(frame, box)
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), "black")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((6, picture.height + 2 + 16 * number), line, fill="white", font=font(12))
    return np.asarray(canvas)


def picture(dynamics: Dynamics, outcome: Outcome | None, row: int) -> NDArray[np.uint8]:
    """Return the picture (h, w, 3) of one row. The picture shows the frame of the last step or, after a reset, the first frame."""
    clips, classes = dynamics.features.clips, dynamics.features.classifier.classes
    clip, step = int(dynamics.clip[row]), int(dynamics.step_number[row])
    frames = clips.num_frames // dynamics.num_steps
    images = clips.frames(clip).permute(0, 2, 3, 1).numpy()
    if outcome is None or (step == 0 and dynamics.running[row]):  # the row's episode has just begun
        return draw_step(images[0], None, (clips.names[clip], f"frame 1 of {clips.num_frames}: no patch yet"))
    seen = step - int(dynamics.running[row])  # every step except the last increases the step number
    right = "right" if outcome.correct[row] else f"true: {classes[clips.labels[clip]]}"
    unit = "frame" if frames == 1 else "decision"
    box = outcome.boxes[row].tolist() if outcome.boxes[row].any() else None
    lines = (
        f"{unit} {seen + 1} of {dynamics.num_steps}: {classes[outcome.prediction[row]]} ({right})",
        f"confidence in the true class {outcome.confidence[row]:.0%}" + ("" if box else ", skipped"),
    )
    return draw_step(images[seen * frames + frames // 2], box, lines)
