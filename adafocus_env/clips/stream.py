"""Training clips that are drawn anew in every epoch, frames too: live, kept nowhere on disk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import check_there
from adafocus_env.clips.clip_spec import ClipSpec, all_labels, content_key, fingerprint, fixed_crop, request, truth_of
from adafocus_env.clips.prefetch import Prefetcher
from adafocus_env.clips.transforms import apply_crop, map_points
from adafocus_env.videos.datasets import Video
from adafocus_env.videos.decoding import Failure
from adafocus_env.videos.readers import DecodedClip, DecodeRequest
from adafocus_env.videos.unreadable import Unreadable, listed
from classifiers.errors import InputError

REFERENCES = 2**24  # clips have lower numbers, which float32 holds exactly: Stable-Baselines3 casts observations to it
EPOCHS = 1000  # whose draws differ, at most; then they come again


class StreamingClips:
    """Clips by number, with the interface of `ClipStore`: clip e·V + i is the draw of epoch e from video i of V.

    A number always means the same draw, made from (seed, video's name, epoch) alone, so that a run that is resumed sees what it would
    have seen. Clips are decoded in worker processes: those of an epoch in its order and ahead of their use, others when asked for,
    which is slow. The last ones are kept in memory. A video that turns out to be unreadable is listed in `failures` and left out from
    then on; one warning names all of an epoch, when the next one begins or the clips are no longer used.

    There are as many epochs as references have room for (2²⁴ clips), at most 1000; later epochs begin again with the draws of the first.

    Args:
        videos: what to draw clips from.
        settings: what a clip is; ``train`` has to be set, ``views`` is not used.
        prepare: makes the missing files of the given videos; called at once for all of them.
        num_workers: processes that decode, at most.
        time_limit: seconds that reading one video may take.
        memory: bytes of decoded clips that are kept.
        unreadable: collects the videos that cannot be read; None: a collector of these clips alone.

    Raises:
        InputError: there are no videos, or ``train`` is not set. Later, when a clip is asked for: a file that ``prepare`` made is gone.
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
        if not videos:
            raise InputError("a clip store needs at least one video, got none")
        if not settings.train:
            raise InputError("train=False: fresh clips are for training; make a ClipStore of clips to validate or test on")
        if prepare is not None:
            prepare(videos)
        self._prepared = prepare is not None
        epochs = max(1, min(EPOCHS, REFERENCES // len(videos)))
        self.settings = replace(settings, views=epochs)
        self._source = _Source(tuple(videos), self.settings)
        self._options: dict[str, Any] = {"num_workers": num_workers, "time_limit": time_limit, "memory": memory}
        # What the thread holds must not hold this object, so that it ends with it.
        self._decoder: Prefetcher[_Drawn] = Prefetcher(self._source.request, self._source.finish, **self._options)
        weakref.finalize(self, self._decoder.close)
        self._unreadable = unreadable or Unreadable()
        weakref.finalize(self, self._unreadable.warn)
        self._current: dict[int, _Drawn] = {}
        self._failed: dict[str, str] = {}
        self.labels: NDArray[np.int64] = np.tile(np.array([video.label for video in videos], np.int64), epochs)
        self.label_sets: Sequence[tuple[int, ...]] = Repeated([all_labels(video) for video in videos], epochs)
        self.names: Sequence[str] = Repeated([video.name for video in videos], epochs)
        self.has_truth = all(video.track is not None for video in videos)
        key = content_key(videos, self.settings, prepared=self._prepared)
        self.fingerprint = "fresh-" + fingerprint(key, videos, self.settings)

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Callable[..., StreamingClips], tuple[object, ...]]:
        return partial(StreamingClips, **self._options), (self._source.videos, self.settings)

    @property
    def num_frames(self) -> int:
        """Frames in a clip, T."""
        return self.settings.num_frames

    @property
    def size(self) -> int:
        """Side of the cropped frames in pixels."""
        return self.settings.size

    @property
    def epoch_size(self) -> int:
        """Clips in an epoch: one of every video."""
        return len(self._source.videos)

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The videos that could not be read, and why."""
        return list(self._failed.items())

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The clips of epoch ``number``, in an order drawn from ``rng``; the workers begin with the first.

        Videos that are known to be unreadable are among them, so that the order does not depend on what is known; see `readable_clips`.
        """
        self._unreadable.warn()
        clips = number % self.settings.views * self.epoch_size + rng.permutation(self.epoch_size)
        self.prefetch(clips)
        return clips

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``clips`` that have frames, now decoded; the others are left out from now on.

        Raises:
            InputError: no video is left.
        """
        wanted = [clip for clip in clips.tolist() if self.names[clip] not in self._failed]
        drawn = dict(zip(wanted, self._decoder.get(wanted), strict=True))
        self._check_prepared([clip for clip in wanted if isinstance(drawn[clip], Failure)])
        self._current = {clip: result for clip, result in drawn.items() if not isinstance(result, Failure)}
        self.leave_out([(self.names[clip], result.reason) for clip, result in drawn.items() if isinstance(result, Failure)])
        return np.array([clip for clip in wanted if clip in self._current], np.int64)

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leaves out these videos from now on: their names, and why; those that are left out already do not count.

        Raises:
            InputError: no video is left.
        """
        new = {name: reason for name, reason in failures if name not in self._failed}
        self._failed.update(new)
        if len(self._failed) == self.epoch_size:
            raise InputError(f"none of the {self.epoch_size} videos can be read:\n{listed(self.failures)}")
        self._unreadable.add(new.items())

    def frames(self, clip: int) -> Tensor:
        """The focuser's frames of the clip with its own crop and flip: (T, 3, size, size) uint8."""
        return self._drawn(clip).frames[: self.num_frames].clone()

    def glancer_frames(self, clip: int) -> Tensor:
        """The glancer's frames with the same crop and flip: (glance_frames, 3, size, size) uint8, or `frames` where they are the same."""
        return self._drawn(clip).frames[self.settings.glanced].clone()

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`frames` and `glancer_frames`, the same tensor twice where they are the same; nothing is drawn from ``rng``, the clip is new."""
        frames = self.frames(clip)
        return frames, self.glancer_frames(clip) if self.settings.glance_frames else frames

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Nothing is drawn from ``rng``; see `fresh`."""

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Tells which clips will be asked for next, in which order: the workers begin with the first, and leave out all others."""
        self._decoder.start([clip for clip in clips.tolist() if self.names[clip] not in self._failed])

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """Where the target is in `frames`: (T, 2) as (y, x) in pixels, maybe outside the crop; None where the video has no track."""
        truth = self._drawn(clip).truth
        return None if truth is None else truth.copy()

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (T,) of the focuser's frames in the video, from 0."""
        return self._drawn(clip).indices[: self.num_frames].copy()

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (glance_frames,) of the glancer's frames in the video; `indices` where they are the same."""
        return self._drawn(clip).indices[self.settings.glanced].copy()

    def _drawn(self, clip: int) -> _Drawn:
        if clip in self._current:
            return self._current[clip]
        (result,) = self._decoder.get([clip])
        if isinstance(result, Failure):
            self._check_prepared([clip])
            raise InputError(f"{self.names[clip]} has no clip: {result.reason}")
        return result

    def _check_prepared(self, failed: Sequence[int]) -> None:
        """Checks that the files of these clips, if they were prepared, still exist: otherwise the videos must not count as unreadable."""
        for clip in failed if self._prepared else ():
            video = self._source.videos[clip % self.epoch_size]
            check_there(video.path, video.track)


@dataclass(frozen=True)
class _Drawn:
    """A clip in memory: its frames (T + glance_frames, 3, size, size) and their numbers, and where the target is in the first T."""

    frames: Tensor
    indices: NDArray[np.int64]
    truth: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


@dataclass(frozen=True)
class _Source:
    """Which draw a number means."""

    videos: tuple[Video, ...]
    settings: ClipSpec

    def request(self, clip: int) -> DecodeRequest:
        return request(self.settings, *self._draw(clip))

    def finish(self, clip: int, decoded: DecodedClip) -> _Drawn:
        """Crops the frames; only what is left is kept."""
        video, view = self._draw(clip)
        planes = torch.from_numpy(np.ascontiguousarray(decoded.frames.transpose(0, 3, 1, 2)))
        crop = fixed_crop(self.settings, planes.shape, video, view)
        points = truth_of(video, decoded, self.settings.num_frames)
        truth = None if points is None else map_points(points, crop, self.settings.size)
        return _Drawn(apply_crop(planes, crop, self.settings.size), decoded.indices, truth)

    def _draw(self, clip: int) -> tuple[Video, int]:
        view, video = divmod(clip, len(self.videos))
        return self.videos[video], view


Item = TypeVar("Item")


class Repeated(Sequence[Item]):
    """A sequence several times in a row, without the memory that it would take."""

    def __init__(self, items: Sequence[Item], times: int) -> None:
        self._items, self._length = items, len(items) * times

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        if isinstance(number, slice):
            return [self[i] for i in range(self._length)[number]]
        return self._items[range(self._length)[number] % len(self._items)]
