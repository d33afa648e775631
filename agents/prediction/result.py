"""The prediction for a video, as plain values. This module imports little, because worker processes load it to draw pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.decoding import Failure, run_in_workers
from classifiers.errors import InputError

TOP = 5  # number of classes in the JSON object


class Box(NamedTuple):
    """A rectangle in pixels of the video's frames, as decoded and rotated for display. The top left corner of the frame is (0, 0)."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class FramePrediction:
    """The prediction after one sampled frame.

    Attributes:
        index: Index of the frame in the video, starting at 0.
        time: Display time of the frame, in seconds from the first frame.
        window: Index of the window, starting at 0.
        box: The patch that the focuser saw; None if the frame was skipped or not processed.
        prediction: The class with the highest score after this frame.
        confidence: The softmax score of that class.
        macs: Multiply-adds spent on the frame.
        processed: False if the conditional exit ended the window before this frame. In frames after the exit, the prediction and the
            confidence are those at the exit.
    """

    index: int
    time: float
    window: int
    box: Box | None
    prediction: str
    confidence: float
    macs: int
    processed: bool = True

    @property
    def skipped(self) -> bool:
        """Whether the policy skipped the frame, so that the focuser did not see it."""
        return self.processed and self.box is None

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        box = None if self.box is None else [round(side, 2) for side in self.box]
        return {
            "frame": self.index, "time": round(self.time, 3), "window": self.window, "box": box, "skipped": self.skipped,
            "class": self.prediction, "confidence": round(self.confidence, 4), "macs": self.macs, "processed": self.processed,
        }  # fmt: skip


@dataclass(frozen=True)
class WindowPrediction:
    """The prediction for one window of a video.

    Attributes:
        start: Start of the window, in seconds from the first frame of the video.
        end: End of the window, in seconds from the first frame of the video.
        classes: All classes, the most probable first.
        probabilities: The softmax scores of the classes.
        processed: Number of sampled frames up to the conditional exit; all sampled frames if there was no exit.
    """

    start: float
    end: float
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    processed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "processed": self.processed, "top": _top(self)}


@dataclass(frozen=True)
class Prediction:
    """The prediction for one video.

    Attributes:
        file: The file or folder of frames, with the path that the caller gave.
        duration: Duration of the video in seconds.
        size: (height, width) of the frames in pixels, as decoded and rotated for display. Non-square pixels are not resampled.
        view: The region of a frame that the classifier sees.
        patch_size: P, the side of the focuser's input in pixels.
        classes: All classes, the most probable first.
        probabilities: Softmax scores of the classes after the last frame, averaged over the windows.
        windows: The windows in order. The whole video is one window unless the caller sets the length of the windows.
        frames: The sampled frames, window by window.
        full_macs: The multiply-adds that the video would cost with a patch in every sampled frame.
    """

    file: str
    duration: float
    size: tuple[int, int]
    view: Box
    patch_size: int
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    windows: tuple[WindowPrediction, ...]
    frames: tuple[FramePrediction, ...]
    full_macs: int

    @property
    def macs(self) -> int:
        """Total multiply-adds of all networks."""
        return sum(frame.macs for frame in self.frames)

    @property
    def times(self) -> NDArray[np.float64]:
        """Display times of the sampled frames (n,), in seconds."""
        return np.array([frame.time for frame in self.frames])

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The patches (n, 4) as (top, left, bottom, right) in pixels; NaN for frames that the focuser did not see."""
        return np.array([frame.box or [np.nan] * 4 for frame in self.frames])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, with the `TOP` most probable classes, all windows and all sampled frames."""
        return {
            "file": self.file, "duration": round(self.duration, 3), "height": self.size[0], "width": self.size[1], "top": _top(self),
            "macs": self.macs, "view": [round(side, 2) for side in self.view],
            "windows": [window.to_dict() for window in self.windows], "frames": [frame.to_dict() for frame in self.frames],
        }  # fmt: skip

    def save_video(self, path: Path | str) -> None:
        """Write an MP4 file that shows the video with the patch, the focuser's input, the confidence and the cost so far.

        Raises:
            InputError: If the video cannot be read, or the file cannot be written.
        """
        self._draw("agents.prediction.video:write_video", path)

    def save_sheet(self, path: Path | str) -> None:
        """Write a PNG picture of the sampled frames with their patches.

        Raises:
            InputError: If the video cannot be read, or the file cannot be written.
        """
        self._draw("agents.prediction.sheet:write_sheet", path)

    def _draw(self, function: str, path: Path | str) -> None:
        """Call a drawing function in a worker process, because it decodes the video again."""
        limit = 120 + 20 * self.duration
        for _, failure in run_in_workers(function, [(self, Path(path))], num_workers=1, time_limit=limit):
            if isinstance(failure, Failure):
                raise InputError(named(self.file, failure.reason))


def named(file: str, reason: str) -> str:
    """Return the reason why a video failed. If the reason does not contain the name of the file, put the name before it."""
    return reason if file in reason else f"{file}: {reason}"


def _top(scored: Prediction | WindowPrediction) -> list[dict[str, Any]]:
    pairs: Sequence[tuple[str, float]] = list(zip(scored.classes, scored.probabilities, strict=True))[:TOP]
    return [{"class": name, "probability": round(probability, 4)} for name, probability in pairs]
