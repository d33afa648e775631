"""Read a clip from a video, in the format that a classifier expects, and map boxes in the clip back to the video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.clips.transforms import Crop, apply_crop, centre_crop
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.windows import DecodedWindows, WindowRequest
from agents.prediction.result import named
from classifiers.classifier import Classifier
from classifiers.errors import InputError

TIME_LIMIT = 60.0  # seconds that a worker process may spend on one request


@dataclass(frozen=True)
class ClipOrigin:
    """The origin of a clip: which frames of the video it contains, and which region of these frames it shows.

    Attributes:
        indices: (T,), indices of the focuser's frames in the video, starting at 0.
        times: (T,), display times of these frames, in seconds from the first frame of the video.
        span: Start and end of the window in seconds.
        duration: Duration of the video in seconds.
        size: (height, width) of the video's frames in pixels, as decoded and rotated for display.
        decoded_size: (height, width) of the frames from which the clip was cropped.
        crop: The region of the decoded frames that the clip shows.
    """

    indices: NDArray[np.int64]
    times: NDArray[np.float64]
    span: tuple[float, float]
    duration: float
    size: tuple[int, int]
    decoded_size: tuple[int, int]
    crop: Crop

    def boxes_in_video(self, boxes: Tensor | NDArray[np.int64]) -> NDArray[np.float64]:
        """Map boxes (…, 4) from pixels of the clip's frames to pixels of the video's frames, as (top, left, bottom, right)."""
        scale = np.array(self.size) / np.array(self.decoded_size)
        return (np.asarray(boxes) + np.tile([self.crop.top, self.crop.left], 2)) * np.tile(scale, 2)


@dataclass(frozen=True)
class Clip:
    """The frames of one window of a video, as the input of `Classifier.normalise`.

    Attributes:
        frames: (T, 3, size, size) uint8.
        glance_frames: (G, 3, size, size) uint8, the glancer's frames if they are sampled separately; otherwise `frames`.
        origin: The origin of the frames.
    """

    frames: Tensor
    glance_frames: Tensor
    origin: ClipOrigin


def read_clip(video: Path | str, classifier: Classifier, *, num_frames: int | None = None) -> Clip:
    """Return the clip of a video in the format with which the classifier was trained. Frames are sampled and cropped as for a test clip.

    Args:
        video: The file or folder of frames.
        classifier: The classifier, whose `clip_format` and architecture determine the sampling and the size.
        num_frames: T; None: the classifier's number of frames.

    Raises:
        InputError: If the video cannot be read.
    """
    request = request_for(classifier, video)
    if num_frames is not None:
        request = replace(request, num_frames=num_frames)
    [(_, _, decoded)] = decode([request], num_workers=1)
    if isinstance(decoded, Failure):
        raise InputError(named(str(video), decoded.reason))
    return clip_of(decoded, 0, request, classifier.architecture.size)


def request_for(classifier: Classifier, video: Path | str) -> WindowRequest:
    """Return a request that reads the frames of a video as one window."""
    clips = classifier.clip_format
    side = round(classifier.architecture.size * clips.margin)
    return WindowRequest(Path(video), clips.num_frames, side, clips.glance_frames, order=clips.order)


def clip_of(decoded: DecodedWindows, row: int, request: WindowRequest, size: int) -> Clip:
    """Return the decoded window with index ``row``, cropped to ``size`` pixels."""
    stored, length = torch.from_numpy(decoded.frames[row]).permute(0, 3, 1, 2), request.num_frames
    height, width = stored.shape[2:]
    crop = centre_crop(height, width, size)
    cropped = apply_crop(stored, crop, size)
    start, end = decoded.spans[request.first + row].tolist()
    indices, times = decoded.indices[row, :length], decoded.times[row, :length]
    origin = ClipOrigin(indices, times, (start, end), decoded.duration, decoded.size, (height, width), crop)
    frames = cropped[:length]
    return Clip(frames, cropped[length:] if request.glance_frames else frames, origin)


def decode(
    requests: Sequence[WindowRequest], *, num_workers: int, time_limit: float = TIME_LIMIT
) -> Iterator[tuple[int, WindowRequest, DecodedWindows | Failure]]:
    """Decode the requests in worker processes. Yield the index of the request, the request and its decoded windows.

    Requests are yielded in the order of completion. Each request starts at the first window of its video. The remaining windows of a long
    video follow directly, in batches and in order, up to the first `Failure`.
    """
    with closing(_decode(requests, num_workers, time_limit)) as results:
        for number, found in results:
            yield number, requests[number], found
            if isinstance(found, Failure):
                continue
            step = requests[number].windows_at_once
            further = [replace(requests[number], first=first) for first in range(step, len(found.spans), step)]
            with closing(_decode(further, 1, time_limit)) as more:
                for position, result in more:
                    yield number, further[position], result
                    if isinstance(result, Failure):
                        break


def _decode(requests: Sequence[WindowRequest], num_workers: int, time_limit: float):  # type: ignore[no-untyped-def]  # see `run_in_workers`
    function = "adafocus_env.videos.windows:decode_windows"
    return run_in_workers(function, requests, num_workers=num_workers, time_limit=time_limit, result=DecodedWindows)
