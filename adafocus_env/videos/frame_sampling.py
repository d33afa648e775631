"""Frame sampling: which frames of a video a clip has, and in which order."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import lookup, refuse_if


def segment_indices(
    num_frames: int, num_segments: int, rng: np.random.Generator | None = None, sampling: str = "segments"
) -> NDArray[np.int64]:
    """Select one frame from each of ``num_segments`` equal segments of a video, and return the indices in order.

    With ``rng`` (training), a random frame of each segment is selected. Without ``rng`` (testing), the middle frame is selected. If the
    video has at most as many frames as segments, all frames are selected, and the last frame is repeated.

    The code released by AdaFocus's authors differs in two ways for videos that are shorter than T. This function supports neither of them.
    The released Something-Something sampler repeats the first frame (also if n = T). The released ActivityNet test mode spreads the n
    frames over the T positions.

    Args:
        num_frames: length of the video in frames, n.
        num_segments: number of sampled frames, T.
        rng: source of random numbers. A call uses either exactly T random numbers or none.
        sampling: how random frames are sampled. "segments" samples from every whole segment. "released" samples as in the released code,
            which never selects the last n mod T frames of a video.

    Returns:
        Frame indices (T,) in ascending order. Index 0 is the first frame of the video.

    Raises:
        InputError: if the video has no frames, if ``num_segments`` is below 1, or if ``sampling`` is unknown.
    """
    refuse_if(num_frames < 1, f"a video needs at least 1 frame to sample from, this one has {num_frames}; replace or remove it")
    refuse_if(num_segments < 1, f"num_frames: a clip needs at least 1 frame, got {num_segments}")
    sample = lookup("sampling", sampling, SAMPLING)
    segments = np.arange(num_segments)
    if num_frames <= num_segments:
        return np.minimum(segments, num_frames - 1).astype(np.int64)
    if rng is None:
        length = num_frames / num_segments  # in floating point, as in the published code
        return (length / 2 + length * segments).astype(np.int64)
    return sample(num_frames, num_segments, rng)


def _from_segments(num_frames: int, num_segments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sample one frame per segment. Segment x has the frames f with n·x/T <= f < n·(x+1)/T, computed exactly in integers."""
    starts = -(-num_frames * np.arange(num_segments + 1) // num_segments)
    return rng.integers(starts[:-1], starts[1:])


def _as_released(num_frames: int, num_segments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sample from segments of n // T frames, as in the released code.

    The last n mod T frames are never selected. The frames that are never selected may be half of the video: with 31 frames and T = 16, the
    first 16 frames are always selected.
    """
    length = num_frames // num_segments
    return length * np.arange(num_segments) + rng.integers(length, size=num_segments)


SAMPLING: dict[str, Callable[[int, int, np.random.Generator], NDArray[np.int64]]] = {"segments": _from_segments, "released": _as_released}


def coarse_to_fine(num_frames: int) -> NDArray[np.int64]:
    """Return the order of frames in AdaFocusV2.

    The order starts with the middle frame, the first frame and the last frame. Each of the remaining frames is a midpoint between frames
    that come earlier in the order, at smaller and smaller distances.

    For T = 16, the order is 7, 0, 15, 3, 11, 1, 5, 9, 13, 2, 4, 6, 8, 10, 12, 14.

    Args:
        num_frames: T, frames per clip.

    Returns:
        A permutation (T,) of the frame indices 0 … T − 1.
    """
    order = dict.fromkeys([(num_frames - 1) // 2, 0, num_frames - 1])
    parts = 1
    while len(order) < num_frames:
        parts *= 2
        ends = np.floor(np.linspace(0, num_frames - 1, parts + 1)).astype(np.int64)
        order |= dict.fromkeys(((ends[:-1] + ends[1:]) // 2).tolist())
    return np.array(list(order), np.int64)


ORDERS: dict[str, Callable[[int], NDArray[np.int64]]] = {"time": lambda num_frames: np.arange(num_frames), "coarse_to_fine": coarse_to_fine}
"""Orders in which the networks see the frames of a clip. Each order is a function that takes T and returns the indices (T,) of the first,
second, … frame."""
