"""Which frames of a video make a clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import InputError, lookup


def segment_indices(
    num_frames: int, num_segments: int, rng: np.random.Generator | None = None, sampling: str = "segments"
) -> NDArray[np.int64]:
    """One frame of each of ``num_segments`` equal parts of a video, in order.

    With ``rng`` (training) a random frame of each part, without it (testing) the middle one. A video with no more frames than parts
    gives all its frames, then its last one repeated.

    The released code differs for videos that are shorter than T, and neither difference is followed: its Something-Something sampler
    repeats the first frame (so does it where n = T), and its ActivityNet test mode spreads the n frames over the T places.

    Args:
        num_frames: length of the video in frames, n.
        num_segments: number of frames wanted, T.
        rng: where the random frames are drawn from; exactly T draws, or none.
        sampling: how random frames are drawn: "segments" from all of each part, or "released" as in the published recipe, which never
            sees the last n mod T frames of a video.

    Returns:
        Frame numbers (T,) from 0, never decreasing.

    Raises:
        InputError: the video has no frame, no frame is wanted, or the way of drawing is not known.
    """
    if num_frames < 1:
        raise InputError(f"a video needs at least 1 frame to sample from, this one has {num_frames}; replace or remove it")
    if num_segments < 1:
        raise InputError(f"num_frames: a clip needs at least 1 frame, got {num_segments}")
    draw = lookup("sampling", sampling, SAMPLING)
    segments = np.arange(num_segments)
    if num_frames <= num_segments:
        return np.minimum(segments, num_frames - 1).astype(np.int64)
    if rng is None:
        part = num_frames / num_segments  # in floating point, as the published frames were chosen
        return (part / 2 + part * segments).astype(np.int64)
    return draw(num_frames, num_segments, rng)


def _from_segments(num_frames: int, num_segments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Part x holds the frames f with n·x/T <= f < n·(x+1)/T, which is never empty as n > T; integers keep its ends exact."""
    starts = -(-num_frames * np.arange(num_segments + 1) // num_segments)
    return rng.integers(starts[:-1], starts[1:])


def _as_released(num_frames: int, num_segments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Parts of n // T frames each, as the released code draws them.

    The last n mod T frames are never seen, which is up to half of the video: of 31 frames and T = 16 only the first 16, none drawn.
    """
    length = num_frames // num_segments
    return length * np.arange(num_segments) + rng.integers(length, size=num_segments)


SAMPLING: dict[str, Callable[[int, int, np.random.Generator], NDArray[np.int64]]] = {"segments": _from_segments, "released": _as_released}
