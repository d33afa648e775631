"""The stream of training clips.

The frames and crops of the clips are sampled again in every epoch. The clips are decoded in advance and not stored on disk.
"""

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import check_there
from adafocus_env.clips.clip_spec import ClipSpec, all_labels, content_key, fingerprint, fixed_crop, request
from adafocus_env.clips.store import ClipSource, Unreadable, listed
from adafocus_env.clips.transforms import Targets, apply_crop, read_track
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.readers import DecodedClip
from classifiers.errors import InputError, refuse_if

REFERENCES = 2**24  # limit of clip indices: Stable-Baselines3 casts observations to float32, which is exact for integers up to this value
EPOCHS = 1000  # maximum number of epochs with different samples; later epochs repeat these samples


@dataclass(frozen=True)
class Sample:
    """A clip in memory.

    A sample has the frames (T + glance_frames, 3, size, size), their indices in the video, and the target's location in the first T frames.
    """

    frames: Tensor
    indices: NDArray[np.int64]
    truth: NDArray[np.float32] | None
    targets: Targets | None


class StreamingClips(ClipSource):
    """Resampled clips, accessed by index. With V videos, clip e·V + i is the sample of epoch e from video i.

    An index always refers to the same sample, which depends only on (seed, name of the video, epoch). A resumed run therefore gets the same
    clips. Worker processes decode the clips of an epoch in advance and in order. Clips that were not decoded in advance are decoded on
    request, which is slow. The most recent clips are cached in memory. A video that cannot be read is listed in `failures` and left out
    from then on. When the next epoch begins or the clips are no longer used, one warning names all videos of the epoch that could not be
    read.

    There are at most 1000 different epochs, and at most 2²⁴ different clips, because the observation `reference` cannot represent larger
    indices. Later epochs repeat the samples of earlier epochs, starting with the first epoch.

    Args:
        videos: the videos to sample clips from.
        settings: the clip specification; ``train`` must be set, and ``views`` is ignored.
        prepare: function that creates the missing files of the given videos. The function is called immediately for all videos.
        num_workers: maximum number of decoding processes.
        time_limit: seconds that reading one video may take.
        memory: size of the cache of decoded clips in bytes.
        unreadable: collects the videos that cannot be read. None: a new collector is used.

    Raises:
        InputError: if there are no videos, or if ``train`` is not set. The error is also raised later, if the prepared file of a requested
            clip was removed.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        settings: ClipSpec,
        *,
        prepare: Callable[[Sequence[Video]], None] | None = None,
        num_workers: int = 2,
        time_limit: float = 30.0,
        memory: int = 2**30,
        unreadable: Unreadable | None = None,
    ) -> None:
        refuse_if(not videos, "a clip store needs at least one video, got none")
        refuse_if(not settings.train, "train must be true for resampled clips, got false; make a ClipStore of clips to validate or test on")
        if prepare is not None:
            prepare(videos)
        self._prepared = prepare is not None
        epochs = max(1, min(EPOCHS, REFERENCES // len(videos)))
        self.settings = replace(settings, views=epochs)
        self._videos = tuple(videos)
        self._options: dict[str, Any] = {"num_workers": num_workers, "time_limit": time_limit, "memory": memory}
        # The thread must not hold a reference to this object. With such a reference, the object would never be deleted, and the thread
        # would never end.
        self._decoder = Prefetcher(self._videos, self.settings, **self._options)
        weakref.finalize(self, self._decoder.close)
        self._unreadable = unreadable or Unreadable()
        weakref.finalize(self, self._unreadable.warn)
        self._current: dict[int, Sample] = {}
        self._failed: dict[str, str] = {}
        self.labels = np.tile(np.array([video.label for video in videos], np.int64), epochs)
        self.label_sets = Repeated([all_labels(video) for video in videos], epochs)
        self.names = Repeated([video.name for video in videos], epochs)
        self.has_truth = all(video.track is not None for video in videos)
        self.fingerprint = "fresh-" + fingerprint(content_key(videos, self.settings, prepared=self._prepared), videos, self.settings)

    def __reduce__(self) -> tuple[Callable[..., "StreamingClips"], tuple[object, ...]]:
        return partial(StreamingClips, **self._options), (self._videos, self.settings)

    @property
    def epoch_size(self) -> int:
        """Number of clips per epoch, one per video."""
        return len(self._videos)

    @property
    def failures(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """The videos that could not be read, as pairs (name, reason)."""
        return list(self._failed.items())

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the clips of epoch ``number``, in an order sampled from ``rng``, and start to decode them.

        The order also includes videos that are known to be unreadable, so that the order does not depend on earlier failures; see
        `readable_clips`.
        """
        self._unreadable.warn()
        clips = number % self.settings.views * self.epoch_size + rng.permutation(self.epoch_size)
        self.prefetch(clips)
        return clips

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Decode ``clips``, and return the clips that have frames. Videos that cannot be read are left out from now on.

        Raises:
            InputError: if no video is left.
        """
        requested = [clip for clip in clips.tolist() if self.names[clip] not in self._failed]
        decoded = dict(zip(requested, self._decoder.get(requested), strict=True))
        failed = {clip: result for clip, result in decoded.items() if isinstance(result, Failure)}
        self._check_prepared(failed)
        self._current = {clip: result for clip, result in decoded.items() if not isinstance(result, Failure)}
        self.leave_out([(self.names[clip], failure.reason) for clip, failure in failed.items()])
        return np.array([clip for clip in requested if clip in self._current], np.int64)

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leave out the given videos from now on.

        Each failure is a pair (name of the video, reason). Videos that are already left out are ignored.

        Raises:
            InputError: if no video is left.
        """
        new = {name: reason for name, reason in failures if name not in self._failed}
        self._failed.update(new)
        if len(self._failed) == self.epoch_size:
            raise InputError(f"none of the {self.epoch_size} videos can be read:\n{listed(self.failures)}")
        self._unreadable.add(new.items())

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Start to decode the given clips in the given order. Decoding of earlier clips is cancelled."""
        self._decoder.start([clip for clip in clips.tolist() if self.names[clip] not in self._failed])

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """See `ClipSource.truth`."""
        truth = self._sample(clip).truth
        return None if truth is None else truth.copy()

    def targets(self, clip: int) -> Targets | None:
        """See `ClipSource.targets`."""
        targets = self._sample(clip).targets
        return None if targets is None else Targets(*(values.copy() for values in targets))

    def _frames(self, clip: int, selected: slice) -> Tensor:
        return self._sample(clip).frames[selected].clone()

    def _indices(self, clip: int) -> NDArray[np.int64]:
        return self._sample(clip).indices.copy()

    def _sample(self, clip: int) -> Sample:
        if clip in self._current:
            return self._current[clip]
        (result,) = self._decoder.get([clip])
        if isinstance(result, Failure):
            self._check_prepared([clip])
            raise InputError(f"{self.names[clip]} has no clip: {result.reason}")
        return result

    def _check_prepared(self, failed: Iterable[int]) -> None:
        """Check that the files of these clips, if they were prepared, still exist. (Removed files must not count as unreadable videos.)"""
        for clip in failed if self._prepared else ():
            video = self._videos[clip % self.epoch_size]
            check_there(video.path, video.track)


class Prefetcher:
    """A decoder that returns clips by index.

    Clips are decoded in the background in a given order. Clips outside of this order are decoded on request.

    A thread receives the clips from the workers. When clips that were not requested yet fill half of the memory, the thread pauses, and the
    workers wait. The remaining half of the memory is a cache of the most recently requested clips.

    Args:
        videos: the V videos. Clip e·V + i is a sample from video i.
        settings: the clip specification.
        num_workers: maximum number of decoding processes.
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
        self._cached: OrderedDict[int, Sample | Failure] = OrderedDict()  # in the order of decoding, which is also the order of use
        self._unused: set[int] = set()  # cached clips from the thread that were not requested yet
        self._requested: set[int] = set()
        self._coming: set[int] = set()  # clips that the thread will decode
        self._plan = 0
        self._problem: Exception | None = None

    def start(self, order: Sequence[int]) -> None:
        """Start to decode the clips in the given order. Decoding in an earlier order is cancelled."""
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
        """Return the clips. For a clip that cannot be read, return the `Failure`.

        Wait for clips that are being decoded, and decode all other clips now.

        Raises:
            RuntimeError: if a worker cannot start.
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
            self._unused.difference_update(clips)
            self._changed.notify_all()
            return [self._cached[clip] for clip in clips]

    def _replan(self, coming: set[int]) -> None:
        self._plan += 1
        self._coming = coming
        self._changed.notify_all()

    def _run(self, plan: int, order: list[int]) -> None:
        """Decode the clips in ``order``, and stop when there is a newer order. The thread runs this method."""
        try:
            with contextlib.closing(self._decoded(order)) as decoded:
                for clip, result in decoded:
                    with self._changed:
                        self._changed.wait_for(lambda: self._plan != plan or self._has_room())
                        if self._plan != plan:
                            return
                        self._store(clip, result)
                        self._unused.add(clip)
        except Exception as problem:  # a worker could not start; `get` raises the error
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
            result=DecodedClip,
        )
        with contextlib.closing(results):
            for task, result in results:
                yield order[task], self._finished(order[task], result)

    def _finished(self, clip: int, result: DecodedClip | Failure) -> Sample | Failure:
        """Crop the frames, so that only cropped frames stay in memory."""
        if isinstance(result, Failure):
            return result
        video, view = self._view(clip)
        planes = torch.from_numpy(np.ascontiguousarray(result.frames.transpose(0, 3, 1, 2)))
        crop, size = fixed_crop(self._settings, planes.shape, video, view), self._settings.size
        try:
            track = read_track(video, result, self._settings.num_frames)
        except ValueError as problem:
            return Failure(str(problem))
        truth, targets = (None, None) if track is None else (track.truth(crop, size), track.targets(crop, size))
        return Sample(apply_crop(planes, crop, size), result.indices, truth, targets)

    def _view(self, clip: int) -> tuple[Video, int]:
        view, video = divmod(clip, len(self._videos))
        return self._videos[video], view

    def _has_room(self) -> bool:
        waited_for = any(clip in self._coming and clip not in self._cached for clip in self._requested)
        return waited_for or 2 * self._size_of(self._unused) < self._memory

    def _store(self, clip: int, result: Sample | Failure) -> None:
        """Cache a clip. If the cache is full, drop the oldest clips, except the clips that are requested now."""
        with self._changed:
            self._coming.discard(clip)
            self._cached[clip] = result
            self._cached.move_to_end(clip)
            for old in [old for old in self._cached if old != clip and old not in self._requested]:
                if self._size_of(self._cached) <= self._memory:
                    break
                del self._cached[old]
                self._unused.discard(old)
            self._changed.notify_all()

    def _size_of(self, clips: Iterable[int]) -> int:
        """Return the total size in bytes of the given cached clips."""
        cached = (self._cached[clip] for clip in clips)
        return sum(sample.frames.nbytes for sample in cached if isinstance(sample, Sample))


Item = TypeVar("Item")


class Repeated(Sequence[Item]):
    """A sequence that repeats the given items several times, without copying them."""

    def __init__(self, items: Sequence[Item], times: int) -> None:
        self._items, self._length = items, len(items) * times

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(self._length)[number]]
        return self._items[range(self._length)[number] % len(self._items)]
