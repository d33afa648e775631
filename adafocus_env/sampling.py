"""Which frames of a video make a clip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import InputError


def segment_indices(num_frames: int, num_segments: int, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """One frame of each of ``num_segments`` equal parts of a video, in order.

    With ``rng`` (training) a uniformly random frame of each part, without it (testing) the middle one. A video with no more frames
    than parts gives all its frames, then its last one repeated.

    Args:
        num_frames: length of the video in frames, n.
        num_segments: number of frames wanted, T.
        rng: where the random frames are drawn from; exactly T draws, or none.

    Returns:
        Frame numbers (T,) from 0, never decreasing.

    Raises:
        InputError: the video has no frame, or no frame is wanted.
    """
    if num_frames < 1:
        raise InputError(f"a video needs at least 1 frame to sample from, this one has {num_frames}; replace or remove it")
    if num_segments < 1:
        raise InputError(f"num_frames: a clip needs at least 1 frame, got {num_segments}")
    segments = np.arange(num_segments)
    if num_frames <= num_segments:
        return np.minimum(segments, num_frames - 1).astype(np.int64)
    if rng is None:
        part = num_frames / num_segments  # in floating point, as the published frames were chosen
        return (part / 2 + part * segments).astype(np.int64)
    # Part x holds the frames f with n·x/T <= f < n·(x+1)/T, which is never empty as n > T; integers keep its ends exact.
    starts = -(-num_frames * np.arange(num_segments + 1) // num_segments)
    return rng.integers(starts[:-1], starts[1:], dtype=np.int64)
