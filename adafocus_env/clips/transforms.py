"""Sample the crop and flip of a clip, and apply them to all of its frames and to its track.

The track of a clip is its ground truth: the location of the target, and the frames in which the target is visible.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.videos.dataset import Video
from adafocus_env.videos.readers import DecodedClip
from classifiers.errors import InputError, refuse_if

SCALES = (1.0, 0.875, 0.75, 0.66)
_SNAP = 3  # pixels; a side that differs from the final size by less than this is set to the final size, which avoids resampling


@dataclass(frozen=True)
class Crop:
    """A rectangle to cut out of the frames, in pixels, and whether the result is mirrored horizontally."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def centre_crop(height: int, width: int, size: int) -> Crop:
    """Return the square with sides of ``size`` pixels in the middle of frames of (height, width).

    Raises:
        InputError: if the frames are smaller than the square.
    """
    refuse_if(
        min(height, width) < size,
        f"size: a crop of {size} pixels does not fit in frames of {height}×{width}; no side may be shorter than {size}",
    )
    return Crop((height - size) // 2, (width - size) // 2, size, size)


def sample_crop(
    height: int, width: int, size: int, rng: np.random.Generator, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> Crop:
    """Sample a multi-scale crop at a random position. With ``flip``, the crop is mirrored with probability ½.

    The height and the width of the crop are each the shorter side of the frames times one of ``scales``. The two scales are equal or
    neighbours in ``scales``. Every position at which the crop fits is possible, including the last row and the last column.

    Args:
        height: height of the frames in pixels.
        width: width of the frames in pixels.
        size: side of the resized crop in pixels. A side of the crop that is nearly ``size`` is set to ``size``.
        rng: source of random numbers. The number of random numbers used depends only on ``flip``.
        scales: fractions of the shorter side, largest first.
        flip: whether the crop may be mirrored.
    """
    shorter = min(height, width)
    sides = [_side(shorter, scale, size) for scale in scales]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= 1]
    i, j = pairs[rng.integers(len(pairs))]
    top = int(rng.integers(height - sides[i] + 1))
    left = int(rng.integers(width - sides[j] + 1))
    return Crop(top, left, sides[i], sides[j], flip=flip and bool(rng.integers(2)))


def _side(shorter: int, scale: float, size: int) -> int:
    side = int(shorter * scale)
    return size if abs(side - size) < _SNAP and size <= shorter else max(side, 1)


def apply_crop(frames: Tensor, crop: Crop, size: int) -> Tensor:
    """Cut ``crop`` out of all frames and resize it to ``size``.

    A crop that already has the size ``size`` is copied without resampling. Crops of other sizes are resized bilinearly with antialiasing.

    Args:
        frames: (T, 3, H, W) uint8.
        crop: the rectangle to cut out.
        size: side of the result in pixels.

    Returns:
        A new tensor (T, 3, size, size) uint8.
    """
    cut = frames[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) != (size, size):
        from torchvision.transforms.v2.functional import resize  # imports PyTorch's compiler, which takes seconds

        cut = resize(cut, [size, size], antialias=True)
    if cut.device.type == "cpu":  # torch uses threads even for small copies, which can be 100× slower on a busy machine
        pixels = cut.numpy()
        return torch.from_numpy((pixels[..., ::-1] if crop.flip else pixels).copy())
    return cut.flip(-1) if crop.flip else cut.clone(memory_format=torch.contiguous_format)


def map_points(points: NDArray[np.floating], crop: Crop, size: int) -> NDArray[np.float32]:
    """Convert points in the stored frames to points in the frames that `apply_crop` returns.

    Points outside the crop lie outside the frames of the result.

    Args:
        points: (..., 2) as (y, x) in pixels; (0, 0) is the centre of the top left pixel.
        crop: the crop applied to the frames.
        size: side of the result in pixels.

    Returns:
        Points (..., 2) float32 as (y, x), in pixels of the result.
    """
    mapped = rescale_points(np.asarray(points) - (crop.top, crop.left), (crop.height, crop.width), (size, size))
    if crop.flip:
        mapped = np.stack([mapped[..., 0], size - 1 - mapped[..., 1]], axis=-1)
    return mapped.astype(np.float32)


def rescale_points(points: NDArray[np.floating], old: tuple[int, int], new: tuple[int, int]) -> NDArray[np.float64]:
    """Convert points (..., 2), as (y, x) in pixels, from frames of size ``old`` (height, width) to the same frames resized to ``new``."""
    return (np.asarray(points, np.float64) + 0.5) * (np.array(new) / np.array(old)) - 0.5


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
