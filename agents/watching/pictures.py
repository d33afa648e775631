"""Pictures of episodes side by side. For each episode, a picture shows the patch, the focuser's input, and the confidence so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from adafocus_env.drawing import (
    BACKGROUND,
    CONFIDENCE,
    GRID,
    MUTED,
    PATCH,
    PLOT,
    TEXT,
    Colour,
    Picture,
    enlarged,
    focused,
    font,
    outline,
    shorten,
)
from agents.watching.episodes import Episode

HIT, MISS = (98, 211, 140), (255, 107, 96)  # colours of predictions, and of patches if the target is known
GAP, HEADING = 12, 34  # distance between episodes, and height of the line above them, in pixels
STRIP, INSET, MARGIN = 112, 96, 8  # height of the area below a frame, and side of the focuser's input and margin in it, in pixels
ROW = 4  # maximum number of episodes side by side in one row


def moments(episodes: Sequence[Episode], title: str, *, at_once: int, side: int) -> Iterator[tuple[Picture, bool]]:
    """For every frame of the episodes, yield a picture (H, W, 3), and whether the frame is the last frame of its episode.

    Args:
        episodes: Episodes of equal length and frame size.
        title: Title of the pictures.
        at_once: Number of episodes that are shown side by side. The other episodes follow later.
        side: Minimum side of a frame in pixels. Smaller frames are enlarged.
    """
    for start in range(0, len(episodes), at_once):
        shown = episodes[start : start + at_once]
        for step in range(len(shown[0])):
            yield _together([_panel(each, step, side) for each in shown], title, min(at_once, len(episodes))), step == len(shown[0]) - 1


def _together(panels: Sequence[Image.Image], title: str, count: int) -> Picture:
    """Return a picture of the panels below a title, with space for ``count`` panels.

    The height and the width of the picture are even, because video encoders require this.
    """
    columns = count if count <= ROW else math.ceil(math.sqrt(count))
    width, height = panels[0].width + GAP, panels[0].height + GAP
    whole = width * columns + GAP, HEADING + height * -(-count // columns)
    picture = Image.new("RGB", (whole[0] + whole[0] % 2, whole[1] + whole[1] % 2), BACKGROUND)
    text = shorten(title, picture.width - 2 * GAP, 15, bold=True)
    ImageDraw.Draw(picture).text((GAP, HEADING / 2), text, fill=TEXT, font=font(15, bold=True), anchor="lm")
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        picture.paste(panel, (GAP + width * column, HEADING + height * row))
    return np.asarray(picture)


def _panel(episode: Episode, step: int, side: int) -> Image.Image:
    """Return the picture of one episode after a step."""
    frame, scale = enlarged(episode.frames[step], side)
    panel = Image.new("RGB", (frame.width, frame.height + STRIP), PLOT)
    panel.paste(frame)
    draw, box, colour = ImageDraw.Draw(panel), episode.boxes[step], _colour(episode.hits[step])
    corner = MARGIN, frame.height + MARGIN
    if np.isfinite(box).all():
        outline(draw, box.tolist(), (scale, scale), colour, 3)
        panel.paste(focused(episode.frames[step], box.tolist(), episode.patch_size, INSET), corner)
        draw.rectangle((corner[0] - 2, corner[1] - 2, corner[0] + INSET + 1, corner[1] + INSET + 1), outline=colour, width=2)
    else:
        middle = corner[0] + INSET / 2, corner[1] + INSET / 2
        draw.rectangle((*corner, corner[0] + INSET - 1, corner[1] + INSET - 1), fill=BACKGROUND)
        draw.text(middle, "skipped", fill=MUTED, font=font(13), anchor="mm")
    _words(draw, episode, step, (2 * MARGIN + INSET, frame.height + MARGIN, frame.width - MARGIN))
    _bars(draw, episode, step, (2 * MARGIN + INSET, frame.height + 50, frame.width - MARGIN, frame.height + STRIP - MARGIN))
    return panel


def _words(draw: ImageDraw.ImageDraw, episode: Episode, step: int, room: tuple[int, int, int]) -> None:
    """Write the true class, the prediction and the confidence as text. ``room`` is (left, top, right) in pixels."""
    left, top, right = room
    prediction, share = episode.predictions[step], f"{episode.confidence[step]:.0%}"
    draw.text((right, top - 2), share, fill=CONFIDENCE, font=font(17, bold=True), anchor="ra")
    width = right - left - font(17, bold=True).getlength("100%") - MARGIN
    draw.text((left, top - 2), shorten(f"class {episode.label}", width, 14), fill=MUTED, font=font(14))
    answer = shorten(f"says {prediction}", width, 15, bold=True)
    draw.text((left, top + 16), answer, fill=HIT if prediction == episode.label else MISS, font=font(15, bold=True))


def _bars(draw: ImageDraw.ImageDraw, episode: Episode, step: int, room: tuple[int, int, int, int]) -> None:
    """Draw bars of the confidence so far, and mark hits and misses below them. ``room`` is (left, top, right, bottom) in pixels."""
    left, top, right, bottom = room
    width, floor = (right - left) / len(episode), bottom - 9
    draw.rectangle((left, top, right, floor), fill=BACKGROUND)
    draw.line((left, (top + floor) / 2, right, (top + floor) / 2), fill=GRID)
    for number in range(len(episode)):
        start, end = round(left + number * width) + 1, round(left + (number + 1) * width) - 2
        if number <= step:
            height = max(1, round((floor - top) * episode.confidence[number]))
            draw.rectangle((start, floor - height, end, floor), fill=TEXT if number == step else CONFIDENCE)
        skipped = np.isnan(episode.boxes[number]).any()
        colour = GRID if number > step or skipped else _colour(episode.hits[number])
        draw.rectangle((start, bottom - 5, end, bottom), fill=colour)


def _colour(hit: bool | None) -> Colour:
    return PATCH if hit is None else HIT if hit else MISS
