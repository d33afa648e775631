"""What a classifier and its policy say about a video, as plain values. Nothing slow is imported: worker processes draw these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.decoding import Failure, run_in_workers
from classifiers.errors import InputError

TOP = 5  # classes in the JSON object


class Box(NamedTuple):
    """A rectangle in pixels of the video's frames as they are decoded and turned for display; (0, 0) is the corner of the top left one."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class FramePrediction:
    """One sampled frame.

    Attributes:
        index: Its number in the video, from 0.
        time: When it is shown, in seconds from the first frame.
        window: Number of its window, from 0.
        box: The patch that the focuser saw; None: the frame was skipped, or not processed.
        prediction: The class with the highest score after this frame.
        confidence: The softmax score of that class.
        macs: Multiply-adds that were spent on it.
        processed: False: the window had ended before by its conditional exit; class and confidence are those at the exit.
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
        """Whether the policy skipped it, so that the focuser did not see it."""
        return self.processed and self.box is None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        box = None if self.box is None else [round(side, 2) for side in self.box]
        return {
            "frame": self.index, "time": round(self.time, 3), "window": self.window, "box": box, "skipped": self.skipped,
            "class": self.prediction, "confidence": round(self.confidence, 4), "macs": self.macs, "processed": self.processed,
        }  # fmt: skip


@dataclass(frozen=True)
class WindowPrediction:
    """One window of a video.

    Attributes:
        start: In seconds from the first frame of the video.
        end: Likewise.
        classes: All classes, the most probable first.
        probabilities: Their softmax scores.
        processed: Number of sampled frames before its conditional exit; all of them where it had none.
    """

    start: float
    end: float
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    processed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "processed": self.processed, "top": _top(self)}


@dataclass(frozen=True)
class Prediction:
    """The prediction for one video.

    Attributes:
        file: The file or folder of frames, as it was given.
        duration: In seconds.
        size: (height, width) in pixels of the frames as they are decoded and turned for display. Pixels that are not square stay so.
        view: The part of a frame that the classifier sees.
        patch_size: P, side in pixels of a patch as the focuser sees it.
        classes: All classes, the most probable first.
        probabilities: Of these classes: softmax scores after the last frame, the mean over the windows.
        windows: The windows, in order: one, or several where a length was given.
        frames: The sampled frames, window by window.
        full_macs: Multiply-adds with a patch in every sampled frame.
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
        """Multiply-adds of all networks together."""
        return sum(frame.macs for frame in self.frames)

    @property
    def times(self) -> NDArray[np.float64]:
        """When the sampled frames are shown (n,), in seconds."""
        return np.array([frame.time for frame in self.frames])

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The patches (n, 4) as (top, left, bottom, right); NaN where the focuser did not see the frame."""
        return np.array([frame.box or [np.nan] * 4 for frame in self.frames])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: `TOP` classes, all windows and all sampled frames."""
        return {
            "file": self.file, "duration": round(self.duration, 3), "height": self.size[0], "width": self.size[1], "top": _top(self),
            "macs": self.macs, "view": [round(side, 2) for side in self.view],
            "windows": [window.to_dict() for window in self.windows], "frames": [frame.to_dict() for frame in self.frames],
        }  # fmt: skip

    def save_video(self, path: Path | str) -> None:
        """Write an MP4 file: the video with the patch, what the focuser sees of it, the confidence and the cost so far.

        Raises:
            InputError: The video cannot be read, or the file cannot be written.
        """
        self._draw("agents.prediction.video:write_video", path)

    def save_sheet(self, path: Path | str) -> None:
        """Write a PNG picture of the sampled frames with their patches.

        Raises:
            InputError: The video cannot be read, or the file cannot be written.
        """
        self._draw("agents.prediction.sheet:write_sheet", path)

    def _draw(self, function: str, path: Path | str) -> None:
        """Call a function in a worker process, since it decodes the video once more."""
        limit = 120 + 20 * self.duration
        for _, failure in run_in_workers(function, [(self, Path(path))], num_workers=1, time_limit=limit):
            if isinstance(failure, Failure):
                raise InputError(named(self.file, failure.reason))


def named(file: str, reason: str) -> str:
    """Return the reason why a video failed, with its name; that a worker process was stopped does not say it."""
    return reason if file in reason else f"{file}: {reason}"


def _top(scored: Prediction | WindowPrediction) -> list[dict[str, Any]]:
    pairs: Sequence[tuple[str, float]] = list(zip(scored.classes, scored.probabilities, strict=True))[:TOP]
    return [{"class": name, "probability": round(probability, 4)} for name, probability in pairs]
