"""The store of clips decodes every video once, stores the frames in memory-mapped files, and crops the frames on request."""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env import distributed
from adafocus_env.cache_dir import check_there, exclusive
from adafocus_env.clips.clip_spec import ClipSpec, all_labels, content_key, fingerprint, fixed_crop, random_crop, request
from adafocus_env.clips.shards import SHARD_SIZE, Shard, ShardWriter, open_shard, remove_leftovers
from adafocus_env.clips.transforms import Crop, Targets, Track, apply_crop, read_track
from adafocus_env.terminal import printable
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.readers import DecodedClip
from adafocus_env.waiting import Waiting
from classifiers.errors import InputError, refuse_if, shortened

_log = logging.getLogger("adafocus_env")


class ClipSource:
    """Clips, accessed by index. Clips are stored (`ClipStore`) or resampled in every epoch (`adafocus_env.clips.stream.StreamingClips`).

    Attributes:
        settings: the clip specification.
        labels: (clips,), the training label of every clip.
        label_sets: all labels of every clip.
        names: names of the clips' videos.
        has_truth: whether the target's track is known for all clips.
        fingerprint: hash of everything that the frames and labels depend on.
        failures: pairs (name, reason) of the videos that could not be read.
    """

    settings: ClipSpec
    labels: NDArray[np.int64]
    label_sets: Sequence[tuple[int, ...]]
    names: Sequence[str]
    has_truth: bool
    fingerprint: str
    failures: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_frames(self) -> int:
        """T, number of the focuser's frames per clip."""
        return self.settings.num_frames

    @property
    def size(self) -> int:
        """Side of the cropped frames in pixels."""
        return self.settings.size

    @property
    def epoch_size(self) -> int:
        """Number of clips per epoch."""
        return len(self)

    def epoch(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the clips of epoch ``number``, in an order sampled from ``rng``."""
        return rng.permutation(len(self))

    def readable_clips(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the given clips that have frames."""
        return clips

    def leave_out(self, failures: Iterable[tuple[str, str]]) -> None:
        """Leave out videos that another process could not read. Each failure is a pair (name of the video, reason)."""

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Decode, or start to decode, the clips that will be requested next, in the given order."""

    def frames(self, clip: int) -> Tensor:
        """Return the focuser's frames (T, 3, size, size) uint8 of the clip, with its fixed crop and flip."""
        return self._frames(clip, slice(self.num_frames))

    def glancer_frames(self, clip: int) -> Tensor:
        """Return the glancer's frames (glance_frames, 3, size, size) uint8 with the same crop and flip.

        If the glancer has no separate frames, return `frames`.
        """
        return self._frames(clip, self.settings.glanced)

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the clip's frames for a training step. The frames of a stored clip have a new crop and flip.

        Returns:
            The focuser's frames (T, 3, size, size) uint8 and the glancer's frames (glance_frames, 3, size, size) uint8, with the same crop.
            If the glancer has no separate frames, the two results are the same tensor.
        """
        frames = self.frames(clip)
        return frames, self.glancer_frames(clip) if self.settings.glance_frames else frames

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Advance ``rng`` by as many random numbers as `resampled` uses for these clips.

        The method is called for clips that another process loads.
        """

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Return the indices (T,) of the focuser's frames in the video, starting at 0."""
        return self._indices(clip)[: self.num_frames]

    def glancer_indices(self, clip: int) -> NDArray[np.int64]:
        """Return the indices (glance_frames,) of the glancer's frames in the video.

        If the glancer has no separate frames, return `indices`.
        """
        return self._indices(clip)[self.settings.glanced]

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """Return the target's centres (T, 2) in `frames` as (y, x) in pixels. They may lie outside the crop. None if there is no track."""
        raise NotImplementedError

    def targets(self, clip: int) -> Targets | None:
        """Return the target's boxes, in pixels of `frames`, and its visibility.

        The result is None if the track does not contain boxes and visibility.
        """
        raise NotImplementedError

    def _frames(self, clip: int, selected: slice) -> Tensor:
        """Return a slice of the clip's frames, cropped, as a new tensor. The focuser's frames come first, then the glancer's."""
        raise NotImplementedError

    def _indices(self, clip: int) -> NDArray[np.int64]:
        """Return the indices of the clip's frames in the video, as a new array: first the focuser's frames, then the glancer's."""
        raise NotImplementedError


class Unreadable(AbstractContextManager["Unreadable"]):
    """A collector of unreadable videos.

    If several splits share a collector, one warning names the unreadable videos of all these splits. Without a shared collector, every
    split gives a separate warning.

        with Unreadable() as unreadable:
            train, test = (open_clips(data, split, num_frames=8, size=96, unreadable=unreadable) for split in ("train", "test"))
    """

    def __init__(self) -> None:
        self._new: list[tuple[str, str]] = []
        self._folders: list[Path] = []

    def __exit__(self, *problem: object) -> None:
        self.warn()

    def add(self, failures: Iterable[tuple[str, str]], folder: Path | None = None) -> None:
        """Collect the (name, reason) of videos.

        ``folder`` is the folder in which the failures are stored. If ``folder`` is None, failures are not stored, and the next run tries to
        read the videos again.
        """
        new = list(failures)
        self._new += new
        if new and folder is not None:
            self._folders.append(folder)

    def warn(self) -> None:
        """Warn about the videos that were collected since the last call, if there are any. Only the main process warns."""
        if self._new and distributed.is_main():
            how = "1 video cannot be read and is" if len(self._new) == 1 else f"{len(self._new)} videos cannot be read and are"
            again = f"\nto try them again, change them or remove {', '.join(map(str, self._folders))}" if self._folders else ""
            _log.warning("%s left out:\n%s%s", how, listed(self._new), again)
        self._new, self._folders = [], []


def listed(failures: Sequence[tuple[str, str]]) -> str:
    """Return text with one line (name and reason) for each of the first failures, and the number of the remaining failures."""
    more = "  and {} more; python -m agents.check_dataset names all of them"
    return "\n".join(shortened([printable(f"  {name}: {reason}") for name, reason in failures], limit=10, more=more))


class ClipStore(ClipSource):
    """Stored clips, accessed by index. The clips are ordered by video and then by view.

    Frames are stored resized but uncropped, in shards of 64 clips. The shards are in a subfolder of ``folder``. The name of the subfolder
    is a hash of everything that the stored bytes depend on. When the clips are opened again, they are read from the existing files, and no
    video is decoded. A video that cannot be read is left out, listed in `failures` and named in a warning.

    Args:
        videos: the videos to make clips from. With ``prepare``, the names of the videos identify their content, because the files may not
            exist yet. Without ``prepare``, the size and modification time of the files identify the content.
        settings: the clip specification.
        folder: the location of the shards.
        prepare: function that creates the missing files of the given videos. The function is called before the videos are decoded.
        lazy: whether to decode a shard only when one of its clips is first requested, instead of decoding everything immediately. With
            ``lazy``, the request of a clip whose video cannot be read raises an error.
        num_workers: maximum number of decoding processes.
        time_limit: seconds that reading one video may take.
        progress: function that is called with the number of clips that are ready, from time to time while everything is decoded.
        unreadable: collects the videos that cannot be read, so that the caller can warn about them; None: warn immediately.
        waiting: shows the progress of clips that are decoded on request; None: no display.

    Raises:
        InputError: if there are no videos, if no video can be read, or if the folder cannot be written.
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
        waiting: Waiting | None = None,
    ) -> None:
        refuse_if(not videos, "a clip store needs at least one video, got none")
        self.settings = settings
        self._views = [(video, view) for video in videos for view in range(settings.views)]
        self._prepare, self._num_workers, self._time_limit, self._waiting = prepare, num_workers, time_limit, waiting
        key = content_key(videos, settings, prepared=prepare is not None)
        self._folder = Path(folder) / key[:32]
        self._shards: dict[int, Shard] = {}
        self.failures: list[tuple[str, str]] = []
        self._readable: Sequence[int] = range(len(self._views))
        if not lazy:
            self._make(range(-(-len(self._views) // SHARD_SIZE)), progress)
            self._leave_out_failures()
            with Unreadable() if unreadable is None else nullcontext(unreadable) as collector:
                collector.add(self.failures, self._folder)
        readable = [self._views[slot][0] for slot in self._readable]
        self.labels = np.array([video.label for video in readable], np.int64)
        self.label_sets = [all_labels(video) for video in readable]
        self.names = [video.name for video in readable]
        self.has_truth = all(video.track is not None for video in videos)
        self.fingerprint = fingerprint(key, readable, settings)

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the clip's stored frames with a new crop and flip, sampled from ``rng``; see `ClipSource.resampled`."""
        shard, position = self._locate(clip)
        stored = shard.frames(position)
        crop = random_crop(self.settings, stored.shape, rng)
        frames = apply_crop(stored[: self.num_frames], crop, self.size)
        return frames, apply_crop(stored[self.settings.glanced], crop, self.size) if self.settings.glance_frames else frames

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Advance ``rng`` by as many random numbers as `resampled` uses for these clips."""
        for clip in clips.tolist():
            shard, position = self._locate(clip)
            random_crop(self.settings, shard.clips[position].shape, rng)

    def prefetch(self, clips: NDArray[np.int64]) -> None:
        """Decode the missing shards of the clips now. Decoding several shards together is faster than decoding one after the other."""
        if missing := {self._readable[clip] // SHARD_SIZE for clip in clips.tolist()} - self._shards.keys():
            with self._waiting.shown() if self._waiting else nullcontext() as progress:
                self._make(sorted(missing), progress)

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """See `ClipSource.truth`."""
        track, crop = self._track(clip)
        return None if track is None else track.truth(crop, self.size)

    def targets(self, clip: int) -> Targets | None:
        """See `ClipSource.targets`."""
        track, crop = self._track(clip)
        return None if track is None else track.targets(crop, self.size)

    def _track(self, clip: int) -> tuple[Track | None, Crop]:
        shard, position = self._locate(clip)
        return shard.clips[position].track, self._crop(clip, shard.clips[position].shape)

    def _frames(self, clip: int, selected: slice) -> Tensor:
        shard, position = self._locate(clip)
        return apply_crop(shard.frames(position)[selected], self._crop(clip, shard.clips[position].shape), self.size)

    def _indices(self, clip: int) -> NDArray[np.int64]:
        shard, position = self._locate(clip)
        return np.array(shard.clips[position].indices, np.int64)

    def _crop(self, clip: int, shape: Sequence[int]) -> Crop:
        """Return the clip's fixed crop. The crop is sampled again on each call, which takes only microseconds."""
        return fixed_crop(self.settings, shape, *self._views[self._readable[clip]])

    def _locate(self, clip: int) -> tuple[Shard, int]:
        number, position = divmod(self._readable[clip], SHARD_SIZE)
        if number not in self._shards:
            self.prefetch(np.array([clip]))
        shard = self._shards[number]
        refuse_if(shard.clips[position].failure is not None, f"{self.names[clip]} has no clip: {shard.clips[position].failure}")
        return shard, position

    def _make(self, numbers: Iterable[int], progress: Callable[[int], None] | None) -> None:
        """Open the shards ``numbers``. Missing and damaged shards are created, by one process at a time."""
        if missing := self._open(numbers):
            with exclusive(self._folder / "lock", f"the decoded clips in {self._folder}"):
                remove_leftovers(self._folder)
                if missing := self._open(missing):  # unless another process has created them while this one waited
                    self._decode(missing, progress)

    def _open(self, numbers: Iterable[int]) -> list[int]:
        """Open the shards ``numbers``. Return the numbers of the shards that are missing or damaged."""
        opened = {number: open_shard(self._path(number), self._names(number)) for number in numbers}
        self._shards.update({number: shard for number, shard in opened.items() if shard is not None})
        return [number for number, shard in opened.items() if shard is None]

    def _decode(self, numbers: list[int], progress: Callable[[int], None] | None) -> None:
        slots = [slot for number in numbers for slot in self._slots(number)]
        if self._prepare is not None:
            self._prepare(list(dict.fromkeys(self._views[slot][0] for slot in slots)))
        done = sum(len(shard.clips) for shard in self._shards.values())
        writers = {number: ShardWriter(self._path(number), self._names(number)) for number in numbers}
        results = run_in_workers(
            "adafocus_env.videos.readers:decode_clip",
            [request(self.settings, *self._views[slot]) for slot in slots],
            num_workers=self._num_workers,
            time_limit=self._time_limit,
            result=DecodedClip,
        )
        try:
            for task, result in results:
                number, position = divmod(slots[task], SHARD_SIZE)
                self._add(writers[number], position, self._views[slots[task]][0], result)
                if writers[number].complete:
                    self._shards[number] = writers.pop(number).finish()
                done += 1
                if progress is not None:
                    progress(done)
        finally:
            results.close()
            for writer in writers.values():
                writer.discard()

    def _add(self, writer: ShardWriter, position: int, video: Video, result: DecodedClip | Failure) -> None:
        """Add a decoded clip to its shard. If decoding failed, add the reason.

        Raises:
            InputError: if the shard cannot be written, or if a prepared file was removed. (A video whose file was removed must not count as
                unreadable.)
        """
        try:
            if isinstance(result, Failure):
                raise InputError(result.reason)
            track = read_track(video, result, self.num_frames)
        except InputError as problem:
            if self._prepare is not None:
                check_there(video.path, video.track)
            writer.fail(position, str(problem))
        else:
            writer.add(position, result, track)

    def _leave_out_failures(self) -> None:
        stored = [clip for number in sorted(self._shards) for clip in self._shards[number].clips]
        self.failures = list({clip.name: (clip.name, clip.failure) for clip in stored if clip.failure is not None}.values())
        self._readable = [slot for slot, clip in enumerate(stored) if clip.failure is None]
        if not self._readable:
            for number in self._shards:
                shutil.rmtree(self._path(number), ignore_errors=True)
            raise InputError(f"none of the {len(self.failures)} videos can be read:\n{listed(self.failures)}")

    def _slots(self, number: int) -> range:
        return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(self._views)))

    def _names(self, number: int) -> list[str]:
        return [self._views[slot][0].name for slot in self._slots(number)]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}"
