"""The annotated video, which shows the patch, the focuser's input, the confidence over time and the cost so far."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from adafocus_env.drawing import BACKGROUND, CONFIDENCE, GRID, MUTED, PATCH, PLOT, TEXT, Picture, focused, font, outline, shorten
from agents.prediction.drawing import dim_outside, shown_frames
from agents.prediction.result import FramePrediction, Prediction
from classifiers.atomic_files import replacing
from classifiers.errors import refuse_if

CODECS = ("libx264", "libopenh264", "mpeg4")
"""Encoders in order of preference. The first encoder that PyAV supports is used."""
MIN_WIDTH, MAX_SIDE, SMALL_SIDE = 480, 1280, 360  # pixels; small videos are enlarged by an integer factor
PANEL = 136  # height of the panel below the video, in pixels
MARGIN = 12
FRESH = 0.25  # seconds during which the outline of a new patch is thicker
CLOCK = 90_000  # time units of the MP4 file per second


def write_video(task: tuple[Prediction, Path]) -> None:
    """Write the annotated MP4 file of a prediction. This function is called in a worker process.

    Raises:
        InputError: If PyAV has no encoder, the video cannot be read, or the file cannot be written.
    """
    prediction, path = task
    with closing(_pictures(prediction)) as pictures:
        encode(pictures, path, "use save=[json,sheet]")


def encode(pictures: Iterable[tuple[float, Picture]], path: Path, instead: str) -> None:
    """Write an MP4 file.

    Args:
        pictures: The time in seconds and the picture (H, W, 3) of every frame. H and W are even.
        path: The path of the file. An existing file is replaced atomically.
        instead: Advice that the error message gives if there is no encoder.

    Raises:
        InputError: If PyAV has no encoder, or the file cannot be written.
    """
    codec = next((name for name in CODECS if name in av.codecs_available), "")
    refuse_if(not codec, f"PyAV has no encoder for MP4 files ({', '.join(CODECS)}); install the wheels of av, or {instead}")
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = None
        last = -1
        for time, picture in pictures:
            if stream is None:
                options = {"crf": "20", "preset": "superfast"} if codec == "libx264" else {}
                stream = container.add_stream(codec, rate=30, options=options)
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
                stream.codec_context.time_base = Fraction(1, CLOCK)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            last = max(last + 1, round(time * CLOCK))
            frame.pts, frame.time_base = last, Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))


def _pictures(prediction: Prediction) -> Generator[tuple[float, Picture], None, None]:
    """Yield the time and the picture of every frame."""
    steps = sorted(prediction.frames, key=lambda frame: frame.time)
    layout: _Layout | None = None
    reached, inset, panel = -1, None, None
    for time, pixels, aspect in shown_frames(prediction):
        layout = layout or _Layout(prediction, steps, aspect)
        while reached + 1 < len(steps) and steps[reached + 1].time <= time + 1e-3:
            reached += 1
            if (box := steps[reached].box) is not None:
                inset = focused(pixels, box, prediction.patch_size, layout.inset_side)
            panel = None
        panel = panel or layout.panel(reached, inset)
        yield time, layout.frame(pixels, time, reached, panel)


class _Layout:
    """The layout of the picture.

    Args:
        prediction: The prediction to draw.
        steps: The frames of the prediction, sorted by time.
        aspect: Pixel aspect ratio of the video (width / height).
    """

    def __init__(self, prediction: Prediction, steps: list[FramePrediction], aspect: float) -> None:
        self.prediction, self.steps = prediction, steps
        height, width = prediction.size[0], prediction.size[1] * aspect
        if (shorter := min(height, width)) < SMALL_SIDE / 1.5:
            factor = float(max(1, round(SMALL_SIDE / shorter)))
        else:
            factor = min(1.0, MAX_SIDE / max(height, width))
        self.video = round(height * factor), round(width * factor)
        self.scale = self.video[0] / prediction.size[0], self.video[1] / prediction.size[1]
        self.width = max(MIN_WIDTH, self.video[1] + self.video[1] % 2)
        self.height = self.video[0] + PANEL + (self.video[0] + PANEL) % 2
        self.left = (self.width - self.video[1]) // 2
        self.inset_side = PANEL - 2 * MARGIN
        left = 2 * MARGIN + self.inset_side
        self.plot = left, MARGIN + 26, self.width - MARGIN, self.height - self.video[0] - MARGIN - 22  # left, top, right, bottom
        self.spent = np.cumsum([step.macs for step in steps])

    def frame(self, pixels: Picture, time: float, reached: int, panel: Image.Image) -> Picture:
        """Return the picture (H, W, 3) of a frame."""
        height, width = self.video
        picture = Image.fromarray(dim_outside(pixels, self.prediction.view))
        if picture.size != (width, height):
            enlarged = width > picture.width and width % picture.width == 0
            picture = picture.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR)
        draw = ImageDraw.Draw(picture)
        if reached >= 0 and (box := self.steps[reached].box) is not None:
            outline(draw, box, self.scale, PATCH, 5 if time - self.steps[reached].time <= FRESH else 3)
        canvas = Image.new("RGB", (self.width, self.height), BACKGROUND)
        canvas.paste(picture, (self.left, 0))
        canvas.paste(panel, (0, self.video[0]))
        draw, x, (_, top, _, bottom) = ImageDraw.Draw(canvas), self._x(time), self.plot
        if reached >= 0:
            y = self.video[0] + self._y(self.steps[reached].confidence)
            draw.line((self._x(self.steps[reached].time), y, x, y), fill=CONFIDENCE, width=2)
        draw.line((x, self.video[0] + top - 2, x, self.video[0] + bottom + 2), fill=TEXT, width=2)
        return np.asarray(canvas)

    def panel(self, reached: int, inset: Image.Image | None) -> Image.Image:
        """Return the panel after the step with index ``reached`` (-1: before the first step), without the line at the current time."""
        panel = Image.new("RGB", (self.width, self.height - self.video[0]), BACKGROUND)
        draw = ImageDraw.Draw(panel)
        corner, side = (MARGIN, MARGIN), self.inset_side
        draw.rectangle((corner[0], corner[1], corner[0] + side - 1, corner[1] + side - 1), fill=PLOT)
        if inset is None:
            draw.text((corner[0] + side / 2, corner[1] + side / 2), "no patch\nyet", fill=MUTED, font=font(13), anchor="mm", align="center")
        else:
            panel.paste(inset, corner)
        unseen = reached >= 0 and self.steps[reached].box is None
        if unseen:
            note = "skipped" if self.steps[reached].processed else "after the exit"
            draw.rectangle((corner[0], corner[1] + side - 20, corner[0] + side - 1, corner[1] + side - 1), fill=BACKGROUND)
            draw.text((corner[0] + side / 2, corner[1] + side - 10), note, fill=TEXT, font=font(12), anchor="mm")
        colour = MUTED if unseen else PATCH
        draw.rectangle((corner[0] - 2, corner[1] - 2, corner[0] + side + 1, corner[1] + side + 1), outline=colour, width=2)
        self._headline(draw, reached)
        self._plot(draw, reached)
        self._cost(draw, reached)
        return panel

    def _headline(self, draw: ImageDraw.ImageDraw, reached: int) -> None:
        left, _, right, _ = self.plot
        if reached < 0:
            draw.text((left, MARGIN - 3), "no frame yet", fill=MUTED, font=font(18))
            return
        step = self.steps[reached]
        share = f"{step.confidence:.0%}"
        draw.text((right, MARGIN - 3), share, fill=CONFIDENCE, font=font(18, bold=True), anchor="ra")
        room = right - left - font(18, bold=True).getlength(share) - MARGIN
        draw.text((left, MARGIN - 3), shorten(step.prediction, room, 18, bold=True), fill=TEXT, font=font(18, bold=True))

    def _plot(self, draw: ImageDraw.ImageDraw, reached: int) -> None:
        """Draw the confidence over time, with a mark for every sampled frame.

        The mark is filled if the frame has a patch, and hollow if the frame was skipped. Frames after an exit have no mark.
        """
        left, top, right, bottom = self.plot
        draw.rectangle((left, top, right, bottom), fill=PLOT)
        for share in (0.5, 1.0):
            draw.line((left, self._y(share), right, self._y(share)), fill=GRID)
            draw.text((left + 4, self._y(share) + 1), f"{share:.0%}", fill=MUTED, font=font(10))
        for window in self.prediction.windows[1:]:
            draw.line((self._x(window.start), top, self._x(window.start), bottom), fill=GRID)
        known = self.steps[: reached + 1]
        by_window: dict[int, list[FramePrediction]] = {}
        for step in known:
            by_window.setdefault(step.window, []).append(step)
        for line in by_window.values():
            points = [(self._x(step.time), self._y(step.confidence)) for step in line]
            for (before, y), (after, next_y) in pairwise(points):  # the confidence stays constant until the next frame
                draw.line([(before, y), (after, y), (after, next_y)], fill=CONFIDENCE, width=2)
        for number, step in [(number, step) for number, step in enumerate(self.steps) if step.processed]:
            x, y = self._x(step.time), self._y(step.confidence) if number <= reached else bottom
            colour = MUTED if number > reached or step.skipped else PATCH
            radius = 4 if number == reached else 3
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PLOT if step.skipped else colour, outline=colour, width=2)

    def _cost(self, draw: ImageDraw.ImageDraw, reached: int) -> None:
        """Draw a bar that shows the multiply-adds so far. The bar is full at the cost of a video with a patch in every sampled frame."""
        left, _, right, bottom = self.plot
        spent, full = int(self.spent[reached]) if reached >= 0 else 0, self.prediction.full_macs
        text = f"{spent / 1e9:.3g} of {full / 1e9:.3g} GFLOPs"
        top, room = bottom + 8, font(12).getlength(text) + MARGIN
        draw.text((right, top + 5), text, fill=MUTED, font=font(12), anchor="rm")
        draw.rectangle((left, top + 1, right - room, top + 9), fill=PLOT)
        if spent:
            draw.rectangle((left, top + 1, left + max(2, (right - room - left) * spent / full), top + 9), fill=PATCH)

    def _x(self, time: float) -> float:
        left, _, right, _ = self.plot
        return left + 4 + (right - left - 8) * min(time / self.prediction.duration, 1.0)

    def _y(self, share: float) -> float:
        _, top, _, bottom = self.plot
        return bottom - 4 - (bottom - top - 8) * share
