"""The clip specification determines how the frames, the crop and the flip of every clip are sampled from its video."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adafocus_env.clips.shards import FORMAT
from adafocus_env.clips.transforms import SCALES, Crop, centre_crop, sample_crop
from adafocus_env.videos.containers import PYAV_SUFFIXES
from adafocus_env.videos.dataset import Video
from adafocus_env.videos.frame_sampling import ORDERS, SAMPLING
from adafocus_env.videos.readers import DecodeRequest, file_reader
from classifiers.errors import lookup, refuse_if


@dataclass(frozen=True)
class ClipSpec:
    """The specification of clips. A clip is one fixed sample of frames, crop and flip from a video.

    Attributes:
        num_frames: T, number of the focuser's frames per clip.
        size: side of the cropped frames in pixels.
        short_side: shorter side of the stored frames in pixels, at least ``size``.
        train: whether clips are for training. Training clips have random frames, crop and flip, which depend only on (seed, name of the
            video, view). Clips that are not for training have the middle frames and the centre crop.
        views: number of clips sampled from each video.
        flip: whether training crops may be mirrored.
        scales: sides of training crops as fractions of ``short_side``.
        seed: seed of all samples, at least 0.
        glance_frames: number of separate frames for the glancer, sampled independently. On Something-Something, the glancer sees 8 frames
            and the focuser 12 frames. If ``glance_frames`` is 0, both networks see the same frames.
        sampling: how random frames are sampled; see `adafocus_env.videos.frame_sampling.SAMPLING`.
        order: order in which the networks see the frames, a name in `adafocus_env.videos.frame_sampling.ORDERS`.
    """

    num_frames: int
    size: int
    short_side: int
    train: bool
    views: int = 1
    flip: bool = True
    scales: tuple[float, ...] = SCALES
    seed: int = 0
    glance_frames: int = 0
    sampling: str = "segments"
    order: str = "time"

    @property
    def num_glance_frames(self) -> int:
        """Number of frames that the glancer sees: ``glance_frames``, or T if the glancer has no separate frames."""
        return self.glance_frames or self.num_frames

    @property
    def glanced(self) -> slice:
        """The slice of a clip's frames that the glancer sees.

        If the glancer has separate frames, these frames come after the focuser's T frames.
        """
        return slice(self.num_frames, None) if self.glance_frames else slice(self.num_frames)

    def __post_init__(self) -> None:
        for field, least in {"num_frames": 1, "size": 1, "views": 1, "seed": 0, "glance_frames": 0}.items():
            refuse_if(getattr(self, field) < least, f"{field}: must be at least {least}, got {getattr(self, field)}")
        refuse_if(self.short_side < self.size, f"short_side: must be at least size = {self.size}, got {self.short_side}")
        lookup("sampling", self.sampling, SAMPLING)
        lookup("order", self.order, ORDERS)
        refuse_if(
            not self.scales or not all(0 < scale <= 1 for scale in self.scales),
            f"scales: must be shares above 0 and up to 1, got {self.scales}",
        )


def request(settings: ClipSpec, video: Video, view: int) -> DecodeRequest:
    """Return the request with which a worker process decodes a clip."""
    seed = (*_seed(settings, video, view), 0) if settings.train else None
    return DecodeRequest(
        video.path, settings.num_frames, settings.short_side, seed, settings.glance_frames, settings.sampling,
        video.num_frames, video.frame_name, settings.order,
    )  # fmt: skip


def fixed_crop(settings: ClipSpec, shape: Sequence[int], video: Video, view: int) -> Crop:
    """Return the crop of a clip whose stored frames have the given ``shape`` (T, 3, H, W).

    Training clips have the random crop of their view; other clips have the centre crop.
    """
    if not settings.train:
        return centre_crop(shape[2], shape[3], settings.size)
    return random_crop(settings, shape, np.random.default_rng((*_seed(settings, video, view), 1)))


def random_crop(settings: ClipSpec, shape: Sequence[int], rng: np.random.Generator) -> Crop:
    """Sample a training crop from frames of ``shape`` (T, 3, H, W)."""
    return sample_crop(shape[2], shape[3], settings.size, rng, scales=settings.scales, flip=settings.flip)


def all_labels(video: Video) -> tuple[int, ...]:
    """Return the indices of all classes of a video, starting with the training label."""
    return tuple(dict.fromkeys((video.label, *video.labels)))


def content_key(videos: Sequence[Video], settings: ClipSpec, *, prepared: bool) -> str:
    """Return a hash of everything that the decoded bytes depend on.

    Args:
        videos: all videos, in order.
        settings: the clip specification.
        prepared: True if a video's name identifies its content; False if the size and modification time of its file identify the content.
    """
    described: list[list[object]] = []
    for video in videos:
        stated = [video.num_frames, video.frame_name] if video.frame_name else []  # left out if not used, so that older keys stay valid
        if file_reader() == "decord" and video.path.suffix.lower() in PYAV_SUFFIXES:  # version 0.1.0 read these with decord
            stated.append("av")
        described.append([video.name, None if prepared else [_stamp(video.path), _stamp(video.track)], *stated])
    seed = settings.seed if settings.train else None
    content = [FORMAT, file_reader(), settings.num_frames, settings.short_side, settings.views, seed, described]
    if settings.glance_frames:  # added later; left out if it is not used, so that the keys of other clips stay valid
        content.append({"glance_frames": settings.glance_frames})
    if settings.train and settings.sampling != "segments":
        content.append({"sampling": settings.sampling})
    if settings.order != "time":
        content.append({"order": settings.order})
    if any(video.track for video in videos):  # clips that were stored without the targets' boxes are decoded again
        content.append({"track": 2})
    return _hash(content)


def fingerprint(key: str, videos: Sequence[Video], settings: ClipSpec) -> str:
    """Return a hash of everything that the frames and labels of clips depend on.

    The argument ``key`` is the `content_key` of the decoded ``videos``.
    """
    crops = [settings.seed, settings.flip, list(settings.scales)] if settings.train else None
    content = [key, [video.name for video in videos], [video.label for video in videos], settings.size, crops]
    if any(video.labels for video in videos):
        content.append([all_labels(video) for video in videos])
    return _hash(content)


def _seed(settings: ClipSpec, video: Video, view: int) -> tuple[int, int, int]:
    return settings.seed, int.from_bytes(hashlib.sha256(video.name.encode()).digest()[:8], "big"), view


def _stamp(path: Path | None) -> list[int] | None:
    """Return size and modification time. (Those of a folder change if files are added or removed, but not if they are rewritten.)"""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return None if status is None else [status.st_size, status.st_mtime_ns]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
