"""Training clips that are sampled again in every epoch, frames too: decoded live, not stored on disk."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import check_there
from adafocus_env.clips.clip_spec import ClipSpec, all_labels, content_key, fingerprint
from adafocus_env.clips.prefetch import Prefetcher, Sample
from adafocus_env.clips.store import ClipSource, Unreadable, listed
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.decoding import Failure
from classifiers.errors import InputError, refuse_if

REFERENCES = 2**24  # clips have lower numbers, which float32 holds exactly: Stable-Baselines3 casts observations to it
EPOCHS = 1000  # with different samples, at most; later epochs repeat them


class StreamingClips(ClipSource):
    """Clips by number: clip e·V + i is the sample of epoch e from video i of V.

    A number always means the same sample, made from (seed, video's name, epoch) alone, so that a resumed run sees what it would
    have seen. Clips are decoded in worker processes: those of an epoch in its order and ahead of their use, others when requested,
    which is slow. The last ones stay in memory. A video that turns out to be unreadable is listed in `failures` and left out from
    then on; one warning names all of an epoch, when the next one begins or the clips are no longer used.

    There are as many epochs as references have room for (2²⁴ clips), at most 1000; later epochs begin again with the samples of the
    first.

    Args:
        videos: what to sample clips from.
        settings: the clip specification; ``train`` must be set, ``views`` is not used.
        prepare: makes the missing files of the given videos; called at once for all of them.
        num_workers: processes that decode, at most.
        time_limit: seconds that reading one video may take.
        memory: size of the decoded clips in memory, in bytes.
        unreadable: collects the videos that cannot be read; None: a separate collector.

    Raises:
        InputError: there are no videos, or ``train`` is not set. Later, when a clip is requested: a file that ``prepare`` made is gone.
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
        # The thread must not hold a reference to this object, so that it ends with it.
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
        """Clips of an epoch: one of every video."""
        return len(self._videos)

    @property
    def failures(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """The videos that could not be read, and why."""
        return list(self._failed.items())

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the clips of epoch ``number``, in an order sampled from ``rng``, and begin to decode them.

        Videos that are known to be unreadable are among them, so that the order does not depend on what is known; see `readable_clips`.
        """
        self._unreadable.warn()
        clips = number % self.settings.views * self.epoch_size + rng.permutation(self.epoch_size)
        self.prefetch(clips)
        return clips

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``clips`` that have frames, now decoded; the others are left out from now on.

        Raises:
            InputError: no video is left.
        """
        requested = [clip for clip in clips.tolist() if self.names[clip] not in self._failed]
        decoded = dict(zip(requested, self._decoder.get(requested), strict=True))
        failed = {clip: result for clip, result in decoded.items() if isinstance(result, Failure)}
        self._check_prepared(failed)
        self._current = {clip: result for clip, result in decoded.items() if not isinstance(result, Failure)}
        self.leave_out([(self.names[clip], failure.reason) for clip, failure in failed.items()])
        return np.array([clip for clip in requested if clip in self._current], np.int64)

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leave out these videos from now on: their names, and why; those that are left out already do not count.

        Raises:
            InputError: no video is left.
        """
        new = {name: reason for name, reason in failures if name not in self._failed}
        self._failed.update(new)
        if len(self._failed) == self.epoch_size:
            raise InputError(f"none of the {self.epoch_size} videos can be read:\n{listed(self.failures)}")
        self._unreadable.add(new.items())

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Begin to decode these clips, in this order; any others that were begun are given up."""
        self._decoder.start([clip for clip in clips.tolist() if self.names[clip] not in self._failed])

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """See `ClipSource.truth`."""
        truth = self._sample(clip).truth
        return None if truth is None else truth.copy()

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
        """Check that the files of these clips, if they were prepared, still exist: otherwise the videos must not count as unreadable."""
        for clip in failed if self._prepared else ():
            video = self._videos[clip % self.epoch_size]
            check_there(video.path, video.track)


Item = TypeVar("Item")


class Repeated(Sequence[Item]):
    """A sequence several times in a row, without the memory that it would take."""

    def __init__(self, items: Sequence[Item], times: int) -> None:
        self._items, self._length = items, len(items) * times

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(self._length)[number]]
        return self._items[range(self._length)[number] % len(self._items)]
