"""The clips of a set of videos: decoded once, kept as bytes in memory-mapped files, cropped when asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import check_there, exclusive, writing_to
from adafocus_env.clips.clip_spec import ClipSpec, all_labels, content_key, fingerprint, fixed_crop, random_crop, request, truth_of
from adafocus_env.clips.packing import PackedClip, PackRequest
from adafocus_env.clips.shards import SHARD_SIZE, Shard, ShardWriter, open_shard, remove_leftovers
from adafocus_env.clips.transforms import Crop, apply_crop, map_points
from adafocus_env.videos.datasets import Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.unreadable import Unreadable, listed
from classifiers.errors import InputError


class ClipSource(Protocol):
    """Clips by number, wherever they come from: `ClipStore`, or `adafocus_env.clips.stream.StreamingClips`."""

    settings: ClipSpec
    labels: NDArray[np.int64]
    label_sets: Sequence[tuple[int, ...]]
    names: Sequence[str]
    has_truth: bool
    fingerprint: str

    @property
    def failures(self) -> Sequence[tuple[str, str]]:
        """Names of the videos that could not be read, and why."""

    def __len__(self) -> int:
        """How many numbers there are."""

    @property
    def num_frames(self) -> int:
        """Frames in a clip, T."""

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""

    @property
    def epoch_size(self) -> int:
        """Clips in an epoch."""

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The clips of epoch ``number``, in an order drawn from ``rng``."""

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``clips`` that have frames."""

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leaves out videos that another process could not read: their names, and why."""

    def frames(self, clip: int) -> Tensor:
        """The focuser's frames (T, 3, size, size) uint8."""

    def glancer_frames(self, clip: int) -> Tensor:
        """The glancer's frames (glance_frames, 3, size, size) uint8; `frames` where they are the same."""

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Both, with a new crop for training; the same tensor twice where they are the same."""

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Draws from ``rng`` what `fresh` would for each of them: another process has them."""

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Tells which clips will be asked for next, in which order."""

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """Where the target is in `frames`: (T, 2) as (y, x) in pixels."""

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (T,) of the focuser's frames in the video."""

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers of the glancer's frames in the video."""


class ClipStore:
    """Clips by number, video after video, each with its views in order.

    Frames are stored resized but uncropped, in shards of 64 clips below ``folder``, under a key made of everything that the bytes
    depend on; a second start decodes nothing. A video that cannot be read is left out, listed in `failures` and warned about.

    Args:
        videos: what to make clips from. Where ``prepare`` is given their names stand for their content, since the files may not exist
            yet; otherwise the files' size and time of change do.
        settings: what a clip is.
        folder: where the shards are kept.
        prepare: makes the missing files of the given videos; called before they are decoded.
        lazy: decode a shard when one of its clips is first asked for, instead of everything now. A video that cannot be read is then
            an error at that time.
        num_workers: processes that decode, at most.
        time_limit: seconds that reading one video may take.
        progress: called with the number of clips that are ready, now and then, while everything is decoded.
        unreadable: collects the videos that cannot be read, and the caller warns about them; None: a warning at once.

    Raises:
        InputError: there are no videos, none can be read, or the folder cannot be written.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        settings: ClipSpec,
        *,
        folder: Path,
        prepare: Callable[[Sequence[Video]], None] | None = None,
        lazy: bool = False,
        num_workers: int = 2,
        time_limit: float = 30.0,
        progress: Callable[[int], None] | None = None,
        unreadable: Unreadable | None = None,
    ) -> None:
        if not videos:
            raise InputError("a clip store needs at least one video, got none")
        self.settings = settings
        self._drawn = [(video, view) for video in videos for view in range(settings.views)]
        self._prepare, self._num_workers, self._time_limit = prepare, num_workers, time_limit
        key = content_key(videos, settings, prepared=prepare is not None)
        self._folder = Path(folder) / key[:32]
        self._shards: dict[int, Shard] = {}
        self.failures: list[tuple[str, str]] = []
        self._kept = list(range(len(self._drawn)))
        if not lazy:
            self._make(range(-(-len(self._drawn) // SHARD_SIZE)), progress)
            self._leave_out_failures()
            with Unreadable() if unreadable is None else nullcontext(unreadable) as collector:
                collector.add(self.failures, self._folder)
        kept = [self._drawn[slot][0] for slot in self._kept]
        self.labels: NDArray[np.int64] = np.array([video.label for video in kept], np.int64)
        self.label_sets: Sequence[tuple[int, ...]] = [all_labels(video) for video in kept]
        self.names: Sequence[str] = [video.name for video in kept]
        self.has_truth = all(video.track is not None for video in videos)
        self.fingerprint = fingerprint(key, kept, settings)

    def __len__(self) -> int:
        return len(self._kept)

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
        """Clips in an epoch: all of them."""
        return len(self)

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The clips of epoch ``number``, in an order drawn from ``rng``; here the same clips in every epoch."""
        return rng.permutation(len(self))

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``clips`` that have frames: all of them, since videos that cannot be read were left out at the start."""
        return clips

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leaves out nothing: every process has left out the same videos at the start."""

    def frames(self, clip: int) -> Tensor:
        """The focuser's frames of the clip with its fixed crop and flip: (T, 3, size, size) uint8."""
        return apply_crop(self._stored(clip)[: self.num_frames], self._crop(clip), self.size)

    def glancer_frames(self, clip: int) -> Tensor:
        """The glancer's frames with the same crop and flip: (glance_frames, 3, size, size) uint8, or `frames` where they are the same."""
        return apply_crop(self._stored(clip)[self.settings.glanced], self._crop(clip), self.size)

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The clip's stored frames with a new crop and flip for training, drawn from ``rng``.

        Returns:
            The focuser's frames (T, 3, size, size) uint8 and the glancer's (glance_frames, 3, size, size) with the same crop; the same
            tensor twice where they are the same.
        """
        stored = self._stored(clip)
        crop = random_crop(self.settings, stored.shape, rng)
        frames = apply_crop(stored[: self.num_frames], crop, self.size)
        return frames, apply_crop(stored[self.settings.glanced], crop, self.size) if self.settings.glance_frames else frames

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Draws from ``rng`` what `fresh` would for each of them: another process has them."""
        for clip in clips.tolist():
            shard, position = self._locate(clip)
            random_crop(self.settings, shard.clips[position].shape, rng)

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Tells which clips will be asked for next; here they are all there."""

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """Where the target is in `frames`: (T, 2) as (y, x) in pixels, maybe outside the crop; None where the video has no track."""
        shard, position = self._locate(clip)
        points = shard.clips[position].truth
        return None if points is None else map_points(np.array(points), self._crop(clip), self.size)

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (T,) of the focuser's frames in the video, from 0."""
        return self._indices(clip)[: self.num_frames]

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (glance_frames,) of the glancer's frames in the video; `indices` where they are the same."""
        return self._indices(clip)[self.settings.glanced]

    def _indices(self, clip: int) -> NDArray[np.int64]:
        shard, position = self._locate(clip)
        return np.array(shard.clips[position].indices, np.int64)

    def _stored(self, clip: int) -> Tensor:
        shard, position = self._locate(clip)
        return shard.frames(position)

    def _crop(self, clip: int) -> Crop:
        """The clip's fixed crop, drawn anew each time instead of kept: it takes some microseconds."""
        shard, position = self._locate(clip)
        return fixed_crop(self.settings, shard.clips[position].shape, *self._drawn[self._kept[clip]])

    def _locate(self, clip: int) -> tuple[Shard, int]:
        number, position = divmod(self._kept[clip], SHARD_SIZE)
        if number not in self._shards:
            self._make([number], None)
        shard = self._shards[number]
        if shard.clips[position].failure is not None:
            raise InputError(f"{self.names[clip]} has no clip: {shard.clips[position].failure}")
        return shard, position

    def _make(self, numbers: Iterable[int], progress: Callable[[int], None] | None) -> None:
        """Opens the shards ``numbers``; those that are missing or broken are made, by one process at a time."""
        missing = self._open(numbers)
        if not missing:
            return
        with exclusive(self._folder / "lock", f"the decoded clips in {self._folder}"):
            remove_leftovers(self._folder)
            missing = self._open(missing)  # another process may have made them while this one waited
            if missing:
                self._pack(missing, progress)

    def _open(self, numbers: Iterable[int]) -> list[int]:
        missing = []
        for number in numbers:
            shard = open_shard(self._path(number), self._names(number))
            if shard is None:
                missing.append(number)
            else:
                self._shards[number] = shard
        return missing

    def _pack(self, numbers: list[int], progress: Callable[[int], None] | None) -> None:
        slots = [slot for number in numbers for slot in self._slots(number)]
        if self._prepare is not None:
            self._prepare(list(dict.fromkeys(self._drawn[slot][0] for slot in slots)))
        done = sum(len(shard.clips) for shard in self._shards.values())
        writers = {number: ShardWriter(self._path(number), self._names(number)) for number in numbers}
        results = run_in_workers(
            "adafocus_env.clips.packing:pack_clip",
            [PackRequest(request(self.settings, *self._drawn[slot]), writers[slot // SHARD_SIZE].file) for slot in slots],
            num_workers=self._num_workers,
            time_limit=self._time_limit,
        )
        try:
            for task, result in results:
                number, position = divmod(slots[task], SHARD_SIZE)
                video, prepared = self._drawn[slots[task]][0], self._prepare is not None
                _add(writers[number], position, video, result, self.num_frames, prepared=prepared)
                if writers[number].complete:
                    self._shards[number] = writers[number].finish()
                    del writers[number]
                done += 1
                if progress is not None:
                    progress(done)
        finally:
            results.close()
            for writer in writers.values():
                writer.discard()

    def _leave_out_failures(self) -> None:
        stored = [clip for number in sorted(self._shards) for clip in self._shards[number].clips]
        self.failures = list({clip.name: (clip.name, clip.failure) for clip in stored if clip.failure is not None}.values())
        self._kept = [slot for slot, clip in enumerate(stored) if clip.failure is None]
        if not self._kept:
            for number in self._shards:
                shutil.rmtree(self._path(number), ignore_errors=True)
            raise InputError(f"none of the {len(self.failures)} videos can be read:\n{listed(self.failures)}")

    def _slots(self, number: int) -> range:
        return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(self._drawn)))

    def _names(self, number: int) -> list[str]:
        return [self._drawn[slot][0].name for slot in self._slots(number)]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}"


def _add(writer: ShardWriter, position: int, video: Video, result: object, num_frames: int, *, prepared: bool) -> None:
    """Adds a clip to its shard, or why there is none.

    Raises:
        InputError: the shard cannot be written, or a prepared file is gone: the video must not count as unreadable.
    """
    if isinstance(result, OSError):
        with writing_to(writer.file.parent.parent):
            raise result
    try:
        if isinstance(result, Failure):
            raise InputError(result.reason)
        assert isinstance(result, PackedClip)
        writer.add(position, result, truth_of(video, result, num_frames))
    except InputError as problem:
        if prepared:
            check_there(video.path, video.track)
        writer.fail(position, str(problem))
