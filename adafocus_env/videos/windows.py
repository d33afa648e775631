"""Decode windows of a video. Every window becomes a clip. Frames are sampled by their display time.

This module runs in worker processes and therefore imports only NumPy, as `adafocus_env.videos.readers` does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adafocus_env.videos.frame_sampling import ORDERS, segment_indices
from adafocus_env.videos.readers import DecodeError, open_reader
from classifiers.errors import refuse_if

ROUNDING = 1e-3  # seconds: containers store times as milliseconds
MAX_WINDOWS = 1_000_000  # of one video; the times in a hostile file may span centuries


@dataclass(frozen=True)
class WindowRequest:
    """A request that a worker process should decode some windows of a video.

    Attributes:
        path: the file or folder of frames.
        num_frames: T, number of the focuser's frames per window.
        short_side: shorter side of the decoded frames in pixels.
        glance_frames: number of separately sampled frames for the glancer; 0: the glancer sees the focuser's frames.
        window: length of a window in seconds; None: the whole video is one window.
        stride: seconds from the start of one window to the start of the next; None: the length of a window.
        first: index of the first window to decode, starting at 0. Starting with this window, as many windows are decoded as ``max_frames``
            allows.
        fps: frame rate in frames per second. ``fps`` is used only if the file or folder states no frame rate.
        order: order of the frames in a window, a name in `adafocus_env.videos.frame_sampling.ORDERS`.
        max_frames: maximum number of frames to decode for one request, counted over all windows. For comparison, 256 frames of 256 × 455
            pixels take 90 MB.
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
        """Maximum number of windows to decode for one request, at least one."""
        return max(1, self.max_frames // (self.num_frames + self.glance_frames))


@dataclass(frozen=True)
class DecodedWindows:
    """W decoded windows of a video. If the glancer's frames are sampled separately, they follow the T frames of the focuser.

    Attributes:
        frames: (W, T, height, width, 3) uint8.
        indices: (W, T), indices of the frames in the video, starting at 0.
        times: (W, T), display times in seconds from the first frame of the video.
        spans: (V, 2), start and end in seconds of all V windows of the video.
        duration: duration of the video in seconds.
        size: (height, width) of the video's frames in pixels, as displayed.
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
        DecodeError: if the video cannot be read, or has more than `MAX_WINDOWS` windows.
    """
    reader = open_reader(request.path)
    times = reader.times()
    if times is None or len(times) != len(reader):
        times = np.arange(len(reader)) / (reader.fps or request.fps)
    duration = duration_of(times, 1 / (reader.fps or request.fps))
    step = duration if request.window is None else request.stride or request.window
    refuse_if(
        duration > step * MAX_WINDOWS,
        DecodeError(request.path, f"it lasts {duration:g} s, which is more than {MAX_WINDOWS:,} windows at a distance of {step:g} s"),
    )
    spans = window_spans(duration, request.window, request.stride)
    chosen = spans[request.first : request.first + request.windows_at_once]
    counts = [request.num_frames, *([request.glance_frames] if request.glance_frames else [])]
    order = ORDERS[request.order]
    indices = np.stack([np.concatenate([frames_in(times, start, end, count)[order(count)] for count in counts]) for start, end in chosen])
    numbers, position = np.unique(indices, return_inverse=True)
    frames = reader.get_frames(numbers, request.short_side)[position.reshape(indices.shape)]
    return DecodedWindows(np.ascontiguousarray(frames), indices, times[indices], spans, duration, reader.size)


def duration_of(times: NDArray[np.float64], frame: float) -> float:
    """Return the duration of a video in seconds.

    The last frame is assumed to have the mean duration of the other frames. A single frame lasts ``frame`` seconds.
    """
    return float(times[-1] + (times[-1] / (len(times) - 1) if times[-1] > 0 else frame))


def window_spans(duration: float, window: float | None, stride: float | None) -> NDArray[np.float64]:
    """Return start and end of the windows (V, 2) in seconds.

    The last window ends at the end of the video. A video that is shorter than a window has one window.
    """
    if window is None or window >= duration - ROUNDING:
        return np.array([[0.0, duration]])
    step = window if stride is None else stride
    starts = np.arange(np.ceil((duration - window - ROUNDING) / step) + 1) * step
    starts[-1] = duration - window
    return np.stack([starts, starts + window], axis=1)


def frames_in(times: NDArray[np.float64], start: float, end: float, count: int) -> NDArray[np.int64]:
    """Divide a window into ``count`` equal segments, and return the indices (count,) of their middle frames.

    If the frame rate is constant, the selected frames are those of a test clip (`segment_indices`).
    """
    first, last = np.searchsorted(times, (start - 1e-6, end - 1e-6))
    if _constant_rate(times) and last > first:
        return first + segment_indices(int(last - first), count)
    middles = start + (np.arange(count) + 0.5) * (end - start) / count
    return np.maximum(np.searchsorted(times, middles + 1e-6, side="right") - 1, 0).astype(np.int64)


def _constant_rate(times: NDArray[np.float64]) -> bool:
    """Return whether the frame rate is constant.

    The rate is constant if every display time differs by at most half a frame from the time that a constant rate would give.
    """
    even = np.linspace(0, times[-1], len(times))
    return bool(np.abs(times - even).max() * 2 <= even[1] if len(times) > 1 else True)
