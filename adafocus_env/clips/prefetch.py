"""Decodes clips in worker processes ahead of their use, and caches the last ones in memory."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.clips.clip_spec import ClipSpec, fixed_crop, request, truth_of
from adafocus_env.clips.transforms import apply_crop, map_points
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.readers import DecodedClip


@dataclass(frozen=True)
class Sample:
    """A clip in memory: its frames (T + glance_frames, 3, size, size) and their numbers, and the target's centres in the first T."""

    frames: Tensor
    indices: NDArray[np.int64]
    truth: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        """Size of the frames in bytes."""
        return self.frames.nbytes


class Prefetcher:
    """Clips by number: decoded in the background in a given order, or when they are requested.

    A thread takes the clips from the workers. It stops taking them while half of the memory holds clips that were not requested yet,
    so that the workers wait; the other half caches the clips that were requested last.

    Args:
        videos: clip e·V + i is a sample from video i of V.
        settings: the clip specification.
        num_workers: processes that decode at the same time, at most.
        time_limit: seconds that reading one video may take.
        memory: size of the cache in bytes.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        settings: ClipSpec,
        *,
        num_workers: int,
        time_limit: float,
        memory: int,
    ) -> None:
        self._videos, self._settings = videos, settings
        self._num_workers, self._time_limit, self._memory = num_workers, time_limit, memory
        self._changed = threading.Condition()  # guards everything below
        self._cached: OrderedDict[int, Sample | Failure] = OrderedDict()  # in the order of decoding, which is that of use
        self._bytes = 0
        self._unused: dict[int, int] = {}  # clips that the thread brought and nobody has requested, with their bytes
        self._requested: set[int] = set()
        self._coming: set[int] = set()  # clips that the thread will bring
        self._plan = 0
        self._problem: Exception | None = None

    def start(self, order: Sequence[int]) -> None:
        """Begin to decode the clips in this order; an earlier order is given up."""
        with self._changed:
            self._problem = None
            self._unused.clear()
            self._replan(set(order))
        threading.Thread(target=self._run, args=(self._plan, list(order)), daemon=True, name="prefetch clips").start()

    def close(self) -> None:
        """Stop the workers."""
        with self._changed:
            self._replan(set())

    def get(self, clips: Sequence[int]) -> list[Sample | Failure]:
        """Return the clips, or why a clip cannot be read; waits for those that are coming, and has the others decoded now.

        Raises:
            RuntimeError: a worker could not start.
        """
        with self._changed:
            self._requested = set(clips)
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(clip in self._cached or clip not in self._coming for clip in clips))
            if self._problem is not None:
                raise self._problem
            missing = [clip for clip in dict.fromkeys(clips) if clip not in self._cached]
        for clip, result in self._decoded(missing):
            self._store(clip, result)
        with self._changed:
            self._requested = set()
            for clip in clips:
                self._unused.pop(clip, None)
            self._changed.notify_all()
            return [self._cached[clip] for clip in clips]

    def _replan(self, coming: set[int]) -> None:
        self._plan += 1
        self._coming = coming
        self._changed.notify_all()

    def _run(self, plan: int, order: list[int]) -> None:
        """The thread: bring the clips of one plan until another one is made."""
        try:
            with contextlib.closing(self._decoded(order)) as decoded:
                for clip, result in decoded:
                    with self._changed:
                        self._changed.wait_for(lambda: self._plan != plan or self._has_room())
                        if self._plan != plan:
                            return
                        self._unused[clip] = _size(result)
                        self._store(clip, result)
        except Exception as problem:  # a worker could not start; `get` raises it
            self._problem = problem
        finally:
            with self._changed:
                if self._plan == plan:
                    self._coming = set()
                    self._changed.notify_all()

    def _decoded(self, order: Sequence[int]) -> Generator[tuple[int, Sample | Failure], None, None]:
        results = run_in_workers(
            "adafocus_env.videos.readers:decode_clip",
            [request(self._settings, *self._view(clip)) for clip in order],
            num_workers=self._num_workers,
            time_limit=self._time_limit,
        )
        with contextlib.closing(results):
            for task, result in results:
                yield order[task], self._finished(order[task], result)

    def _finished(self, clip: int, result: DecodedClip | Failure) -> Sample | Failure:
        """Crop the frames; only the cropped ones stay in memory."""
        if isinstance(result, Failure):
            return result
        video, view = self._view(clip)
        planes = torch.from_numpy(np.ascontiguousarray(result.frames.transpose(0, 3, 1, 2)))
        crop, size = fixed_crop(self._settings, planes.shape, video, view), self._settings.size
        try:
            points = truth_of(video, result, self._settings.num_frames)
        except ValueError as problem:
            return Failure(str(problem))
        truth = None if points is None else map_points(points, crop, size)
        return Sample(apply_crop(planes, crop, size), result.indices, truth)

    def _view(self, clip: int) -> tuple[Video, int]:
        view, video = divmod(clip, len(self._videos))
        return self._videos[video], view

    def _has_room(self) -> bool:
        waited_for = any(clip in self._coming and clip not in self._cached for clip in self._requested)
        return waited_for or 2 * sum(self._unused.values()) < self._memory

    def _store(self, clip: int, result: Sample | Failure) -> None:
        """Cache a clip in place of the oldest ones that nobody waits for."""
        with self._changed:
            self._coming.discard(clip)
            self._drop(clip)
            self._cached[clip] = result
            self._bytes += _size(result)
            for old in [old for old in self._cached if old != clip and old not in self._requested]:
                if self._bytes <= self._memory:
                    break
                self._drop(old)
                self._unused.pop(old, None)
            self._changed.notify_all()

    def _drop(self, clip: int) -> None:
        if clip in self._cached:
            self._bytes -= _size(self._cached.pop(clip))


def _size(value: Sample | Failure) -> int:
    return 0 if isinstance(value, Failure) else value.nbytes
