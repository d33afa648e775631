"""Windows of a video, each of which becomes a clip: their frames are sampled by the time at which they are shown.

As `adafocus_env.videos.readers`, this runs in worker processes: only NumPy is imported.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.frame_sampling import ORDERS, segment_indices
from adafocus_env.videos.readers import open_reader

ROUNDING = 1e-3  # seconds: containers store times as milliseconds


@dataclass(frozen=True)
class WindowRequest:
    """What a worker needs to decode some windows of a video.

    Attributes:
        path: the file or folder of frames.
        num_frames: T, the focuser's frames in a window.
        short_side: of the decoded frames, in pixels.
        glance_frames: frames sampled separately for the glancer; 0: those of the focuser.
        window: length of a window in seconds; None: one window, the whole video.
        stride: seconds from one window to the next; None: the length of a window.
        first: number of the first window that is decoded, from 0; as many follow as ``max_frames`` allows.
        fps: frames per second of a folder of frames.
        order: of the frames in a window, a name in `adafocus_env.videos.frame_sampling.ORDERS`.
        max_frames: decoded frames of all these windows together, at most: 256 are 90 MB at 256 × 455 pixels.
    """

    path: Path
    num_frames: int
    short_side: int
    glance_frames: int = 0
    window: float | None = None
    stride: float | None = None
    first: int = 0
    fps: float = 25.0
    order: str = "time"
    max_frames: int = 256

    @property
    def windows_at_once(self) -> int:
        """The most windows that are decoded, at least one."""
        return max(1, self.max_frames // (self.num_frames + self.glance_frames))


@dataclass(frozen=True)
class DecodedWindows:
    """W decoded windows of a video. Where the glancer's frames are sampled separately, they come after the T frames of the focuser.

    Attributes:
        frames: (W, T, H, W, 3) uint8.
        indices: (W, T), numbers of the frames in the video, from 0.
        times: (W, T), seconds from the first frame of the video.
        spans: (V, 2), first and last second of all V windows of the video.
        duration: of the video in seconds.
        size: (height, width) of the video's frames in pixels, as shown.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    times: NDArray[np.float64]
    spans: NDArray[np.float64]
    duration: float
    size: tuple[int, int]


def decode_windows(request: WindowRequest) -> DecodedWindows:
    """Open the video and decode the frames of some windows.

    Raises:
        DecodeError: the video cannot be read.
    """
    reader = open_reader(request.path)
    times = reader.times()
    if times is None or len(times) != len(reader):
        times = np.arange(len(reader)) / (reader.fps or request.fps)
    duration = duration_of(times, 1 / (reader.fps or request.fps))
    spans = window_spans(duration, request.window, request.stride)
    chosen = spans[request.first : request.first + request.windows_at_once]
    counts = [request.num_frames, *([request.glance_frames] if request.glance_frames else [])]
    order = ORDERS[request.order]
    indices = np.stack([np.concatenate([frames_in(times, start, end, count)[order(count)] for count in counts]) for start, end in chosen])
    numbers, position = np.unique(indices, return_inverse=True)
    frames = reader.get_frames(numbers, request.short_side)[position.reshape(indices.shape)]
    return DecodedWindows(np.ascontiguousarray(frames), indices, times[indices], spans, duration, reader.size)


def duration_of(times: NDArray[np.float64], frame: float) -> float:
    """Return the seconds that a video lasts; its last frame is shown for the mean time of the others, or ``frame`` if it is alone."""
    return float(times[-1] + (times[-1] / (len(times) - 1) if times[-1] > 0 else frame))


def window_spans(duration: float, window: float | None, stride: float | None) -> NDArray[np.float64]:
    """Return first and last second of the windows (V, 2). The last one ends with the video; a shorter video is one window."""
    if window is None or window >= duration - ROUNDING:
        return np.array([[0.0, duration]])
    step = window if stride is None else stride
    starts = np.arange(np.ceil((duration - window - ROUNDING) / step) + 1) * step
    starts[-1] = duration - window
    return np.stack([starts, starts + window], axis=1)


def frames_in(times: NDArray[np.float64], start: float, end: float, count: int) -> NDArray[np.int64]:
    """Return the numbers (count,) of the frames that are shown in the middle of ``count`` equal segments of a window.

    At a constant frame rate they are the frames that a test clip has (`segment_indices`).
    """
    first, last = np.searchsorted(times, (start - 1e-6, end - 1e-6))
    if _constant_rate(times) and last > first:
        return first + segment_indices(int(last - first), count)
    middles = start + (np.arange(count) + 0.5) * (end - start) / count
    return np.maximum(np.searchsorted(times, middles + 1e-6, side="right") - 1, 0).astype(np.int64)


def _constant_rate(times: NDArray[np.float64]) -> bool:
    """Return whether each frame is shown within half a frame of the time that a constant rate would give it."""
    even = np.linspace(0, times[-1], len(times))
    return bool(np.abs(times - even).max() * 2 <= even[1] if len(times) > 1 else True)
