"""Frames for the pictures of a prediction, darkened outside the region that the classifier sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from adafocus_env.drawing import Picture
from adafocus_env.videos.readers import DecodeError, open_reader
from agents.prediction.result import Box, Prediction

OUTSIDE = 0.55  # brightness outside the region that the classifier sees


def shown_frames(prediction: Prediction) -> Iterator[tuple[float, Picture, float]]:
    """Yield every frame of the video: its time in seconds, its pixels rotated for display, and its pixel aspect ratio (width / height).

    Raises:
        DecodeError: If the video cannot be read.
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
    """Return the frame with the region outside of ``view`` darkened."""
    top, left, bottom, right = (round(side) for side in view)
    dimmed = (pixels * OUTSIDE).astype(np.uint8)
    dimmed[top:bottom, left:right] = pixels[top:bottom, left:right]
    return dimmed
