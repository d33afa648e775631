"""Ground truth: the location of a clip's target, and the frames in which the target is visible."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adafocus_env.clips.transforms import Crop, map_points, rescale_points
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.readers import DecodedClip
from classifiers.errors import InputError

Size = tuple[int, int]


class Targets(NamedTuple):
    """The target's boxes (T, 4) as (top, left, bottom, right) in pixels, and its visibility (T,). The boxes may lie outside the frame."""

    boxes: NDArray[np.float32]
    visible: NDArray[np.bool_]


@dataclass(frozen=True)
class Track:
    """The location and visibility of the target in T decoded frames, as plain Python values.

    Attributes:
        centres: (T, 2) as (y, x) in pixels; (0, 0) is the centre of the top left pixel.
        sides: height and width of the target's box in pixels; None if unknown.
        visible: (T,), whether each frame shows the target; None if unknown.
    """

    centres: Sequence[Sequence[float]]
    sides: Sequence[float] | None = None
    visible: Sequence[bool] | None = None

    def truth(self, crop: Crop, size: int) -> NDArray[np.float32]:
        """Return the centres (T, 2) in the frames that `apply_crop` returns."""
        return map_points(np.array(self.centres), crop, size)

    def targets(self, crop: Crop, size: int) -> Targets | None:
        """Return the boxes in the frames that `apply_crop` returns. A target whose centre is outside the crop counts as not visible.

        Returns:
            The boxes and the visibility, or None if the track does not contain them.
        """
        if self.sides is None or self.visible is None:
            return None
        half = np.array(self.sides) / 2
        edges = map_points(np.stack([np.array(self.centres) - half, np.array(self.centres) + half]), crop, size) + np.float32(0.5)
        inside = ((edges.mean(0) >= 0) & (edges.mean(0) <= size)).all(-1)
        return Targets(np.concatenate([edges.min(0), edges.max(0)], axis=-1), np.array(self.visible, bool) & inside)


def read_track(video: Video, clip: DecodedClip, num_frames: int) -> Track | None:
    """Return the target's track in the decoded frames; None for a video without a track.

    Args:
        video: the video.
        clip: the decoded clip of the video.
        num_frames: T, the number of the focuser's frames. The first T frames of the clip are the focuser's.

    Raises:
        InputError: if the track cannot be read, or does not match the video.
    """
    if video.track is None:
        return None
    try:
        content = json.loads(video.track.read_text(encoding="utf-8"))
        points = np.array(content["centre"], np.float64)
        side, visible = content.get("side"), content.get("visible")
        side = None if side is None else float(side)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise InputError(f"its track {video.track} cannot be read: {problem}") from problem
    if points.shape != (clip.num_frames, 2):
        raise InputError(
            f"its track {video.track} must hold one point (y, x) for each of the {clip.num_frames} frames, got {points.shape}"
        )
    _check_visible(video, visible, clip.num_frames)
    old, new, frames = clip.size, clip.frames.shape[1:3], clip.indices[:num_frames]
    return Track(
        rescale_points(points[frames], old, new).tolist(),
        None if side is None else [side * after / before for before, after in zip(old, new, strict=True)],
        None if visible is None else [visible[frame] for frame in frames],
    )


def _check_visible(video: Video, visible: Any, num_frames: int) -> None:
    if visible is not None and not (
        isinstance(visible, list) and len(visible) == num_frames and all(isinstance(each, bool) for each in visible)
    ):
        raise InputError(f"its track {video.track} must hold true or false in visible for each of the {num_frames} frames")
