"""The clips of a set of videos: decoded once, kept as bytes in memory-mapped files, cropped when asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache import exclusive
from adafocus_env.datasets import Video
from adafocus_env.decoding import Failure, run_in_workers
from adafocus_env.readers import DecodedClip, DecodeRequest, file_reader
from adafocus_env.shards import FORMAT, SHARD_SIZE, Shard, ShardWriter, open_shard, remove_leftovers
from adafocus_env.transforms import SCALES, Crop, apply_crop, centre_crop, draw_crop, map_points, rescale_points
from classifiers.errors import InputError

_log = logging.getLogger("adafocus_env")
_NAMED_FAILURES = 20  # in a log message; the list has them all


@dataclass(frozen=True)
class ClipSettings:
    """What a clip is. A clip is one fixed draw of frames, crop and flip from a video.

    Attributes:
        num_frames: frames in a clip, T.
        size: side of the cropped frames in pixels.
        short_side: shorter side of the stored frames in pixels, at least ``size``.
        train: random frames, crop and flip, drawn from (seed, video's name, view) alone; otherwise middle frames and centre crop.
        views: clips drawn from each video.
        flip: whether crops for training may be mirrored.
        scales: sides of crops for training as shares of ``short_side``.
        seed: of all draws, at least 0.
    """

    num_frames: int
    size: int
    short_side: int
    train: bool
    views: int = 1
    flip: bool = True
    scales: tuple[float, ...] = SCALES
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("num_frames", "size", "views"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.short_side < self.size:
            raise InputError(f"short_side: must be at least size = {self.size}, got {self.short_side}")
        if self.seed < 0:
            raise InputError(f"seed: must be at least 0, got {self.seed}")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise InputError(f"scales: must be shares above 0 and up to 1, got {self.scales}")


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

    Raises:
        InputError: there are no videos, none can be read, or the folder cannot be written.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        settings: ClipSettings,
        *,
        folder: Path,
        prepare: Callable[[Sequence[Video]], None] | None = None,
        lazy: bool = False,
        num_workers: int = 2,
        time_limit: float = 30.0,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not videos:
            raise InputError("a clip store needs at least one video, got none")
        self.settings = settings
        self._drawn = [(video, view) for video in videos for view in range(settings.views)]
        self._prepare, self._num_workers, self._time_limit = prepare, num_workers, time_limit
        key = _hash(_content(videos, settings, prepared=prepare is not None))
        self._folder = Path(folder) / key[:32]
        self._shards: dict[int, Shard] = {}
        self.failures: list[tuple[str, str]] = []
        self._kept = list(range(len(self._drawn)))
        if not lazy:
            self._make(range(-(-len(self._drawn) // SHARD_SIZE)), progress)
            self._leave_out_failures()
        self.labels: NDArray[np.int64] = np.array([self._drawn[slot][0].label for slot in self._kept], np.int64)
        self.names = [self._drawn[slot][0].name for slot in self._kept]
        self.has_truth = all(video.track is not None for video in videos)
        self.fingerprint = _hash([key, self.names, self.labels.tolist(), settings.size, _crop_content(settings)])

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

    def frames(self, clip: int) -> Tensor:
        """The clip with its fixed crop and flip: (T, 3, size, size) uint8."""
        frames = self._stored(clip)
        return apply_crop(frames, self._crop(clip), self.size)

    def fresh(self, clip: int, rng: np.random.Generator) -> Tensor:
        """The clip's stored frames with a new crop and flip for training, drawn from ``rng``: (T, 3, size, size) uint8."""
        frames = self._stored(clip)
        return apply_crop(frames, self._draw_crop(frames.shape, rng), self.size)

    def truth(self, clip: int) -> NDArray[np.float32] | None:
        """Where the target is in `frames`: (T, 2) as (y, x) in pixels, maybe outside the crop; None where the video has no track."""
        shard, position = self._locate(clip)
        points = shard.clips[position].truth
        return None if points is None else map_points(np.array(points), self._crop(clip), self.size)

    def indices(self, clip: int) -> NDArray[np.int64]:
        """Numbers (T,) of the clip's frames in its video, from 0."""
        shard, position = self._locate(clip)
        return np.array(shard.clips[position].indices, np.int64)

    def _stored(self, clip: int) -> Tensor:
        shard, position = self._locate(clip)
        return shard.frames(position)

    def _crop(self, clip: int) -> Crop:
        """The clip's fixed crop, drawn anew each time instead of kept: it takes some microseconds."""
        shard, position = self._locate(clip)
        shape = shard.clips[position].shape
        if not self.settings.train:
            return centre_crop(shape[2], shape[3], self.size)
        return self._draw_crop(shape, np.random.default_rng((*_seed(self.settings, *self._drawn[self._kept[clip]]), 1)))

    def _draw_crop(self, shape: Sequence[int], rng: np.random.Generator) -> Crop:
        return draw_crop(shape[2], shape[3], self.size, rng, scales=self.settings.scales, flip=self.settings.flip)

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
        results = run_in_workers(
            "adafocus_env.readers:decode_clip",
            [self._request(slot) for slot in slots],
            num_workers=self._num_workers,
            time_limit=self._time_limit,
        )
        writers: dict[int, ShardWriter] = {}
        try:
            for task, result in results:
                number, position = divmod(slots[task], SHARD_SIZE)
                if number not in writers:
                    writers[number] = ShardWriter(self._path(number), self._names(number))
                _write(writers[number], position, self._drawn[slots[task]][0], result)
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
        if not self.failures:
            return
        listed = "\n".join(f"  {name}: {reason}" for name, reason in self.failures[:_NAMED_FAILURES])
        more = f"\n  and {len(self.failures) - _NAMED_FAILURES} more" if len(self.failures) > _NAMED_FAILURES else ""
        if not self._kept:
            for number in self._shards:
                shutil.rmtree(self._path(number), ignore_errors=True)
            raise InputError(f"none of the {len(self.failures)} videos can be read:\n{listed}{more}")
        _log.warning(
            "%d videos cannot be read and are left out (to try them again, change them or remove %s):\n%s%s",
            len(self.failures), self._folder, listed, more,
        )  # fmt: skip

    def _request(self, slot: int) -> DecodeRequest:
        video, view = self._drawn[slot]
        seed = (*_seed(self.settings, video, view), 0) if self.settings.train else None
        return DecodeRequest(video.path, self.num_frames, self.settings.short_side, seed, video.num_frames, video.frame_name)

    def _slots(self, number: int) -> range:
        return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(self._drawn)))

    def _names(self, number: int) -> list[str]:
        return [self._drawn[slot][0].name for slot in self._slots(number)]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}"


def _write(writer: ShardWriter, position: int, video: Video, result: object) -> None:
    if isinstance(result, Failure):
        writer.fail(position, result.reason)
        return
    assert isinstance(result, DecodedClip)
    try:
        truth = None if video.track is None else _truth(video.track, result)
    except InputError as problem:
        writer.fail(position, str(problem))
    else:
        writer.add(position, result.frames, result.indices, truth)


def _truth(track: Path, clip: DecodedClip) -> NDArray[np.float64]:
    """The track's points (T, 2) at the clip's frames, in pixels of the stored frames."""
    try:
        points = np.array(json.loads(track.read_text(encoding="utf-8"))["centre"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"its track {track} cannot be read: {problem}") from problem
    if points.shape != (clip.num_frames, 2):
        raise InputError(f"its track {track} must hold one point (y, x) for each of the {clip.num_frames} frames, got {points.shape}")
    height, width = clip.frames.shape[1:3]
    return rescale_points(points[clip.indices], clip.size, (height, width))


def _seed(settings: ClipSettings, video: Video, view: int) -> tuple[int, int, int]:
    return settings.seed, int.from_bytes(hashlib.sha256(video.name.encode()).digest()[:8], "big"), view


def _content(videos: Sequence[Video], settings: ClipSettings, *, prepared: bool) -> list[object]:
    """Everything that the stored bytes depend on."""
    described = [[video.name, None if prepared else [_stamp(video.path), _stamp(video.track), *_frames(video)]] for video in videos]
    seed = settings.seed if settings.train else None
    return [FORMAT, file_reader(), settings.num_frames, settings.short_side, settings.views, seed, described]


def _frames(video: Video) -> list[object]:
    """What is known of the frames in a folder; nothing for the rest, whose key stays as it was."""
    return [video.num_frames, video.frame_name] if video.frame_name else []


def _crop_content(settings: ClipSettings) -> object:
    return [settings.seed, settings.flip, list(settings.scales)] if settings.train else None


def _stamp(path: Path | None) -> list[int] | None:
    """Size and time of change; for a folder of frames its own, which tells added and removed files but not rewritten ones."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return None if status is None else [status.st_size, status.st_mtime_ns]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
