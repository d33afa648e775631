"""Split videos into training, validation and test by a fixed hash of their names."""

import hashlib
from collections.abc import Collection, Sequence

from adafocus_env.videos.dataset import Video, Videos
from classifiers.errors import refuse_if


def hold_out(videos: Sequence[Video], share: float) -> tuple[Videos, Videos]:
    """Split training videos into (train, val) by a fixed hash of their names.

    Only the hash decides, so that a video is in the same split on every machine, independently of other videos. There are two exceptions.
    If a class would have no training videos, one of its videos stays in training. If the validation split would be empty, one video is
    moved to it. If possible, this video is from a class with several videos.

    Args:
        videos: the videos to split.
        share: share of the videos to hold out, in [0, 1).

    Raises:
        InputError: if the share is not in [0, 1).
    """
    refuse_if(not 0 <= share < 1, f"data.val: must be a share in [0, 1), got {share}")
    if share == 0 or len(videos) < 2:
        return tuple(videos), ()
    held = _selected(videos, share, "val")
    if not held:
        candidates = [video for of_class in _by_class(videos) if len(of_class) > 1 for video in of_class] or videos
        held = {min(candidates, key=lambda video: _position(video, "val")).name}
    return _partition(videos, held)


def split_test(videos: Sequence[Video], share: float) -> tuple[Videos, Videos]:
    """Split videos into (train, test).

    A class with at least two videos has videos in both splits. If a class has a single video, this video is in train.
    """
    tested: set[str] = set()
    for of_class in _by_class(videos):
        if len(of_class) > 1:
            tested |= _selected(of_class, share, "test") or {min(of_class, key=lambda video: _position(video, "test")).name}
    return _partition(videos, tested)


def _selected(videos: Sequence[Video], share: float, salt: str) -> set[str]:
    """Return the names of the videos whose hash is below ``share``.

    If the hashes of all videos of a class are below ``share``, one of these videos is left out.
    """
    selected = {video.name for video in videos if _position(video, salt) < share}
    for of_class in _by_class(videos):
        if all(video.name in selected for video in of_class):
            selected.discard(max(of_class, key=lambda video: _position(video, salt)).name)
    return selected


def _partition(videos: Sequence[Video], selected: Collection[str]) -> tuple[Videos, Videos]:
    """Return two tuples, each in the original order: the videos that are not selected, and the selected videos."""
    return tuple(v for v in videos if v.name not in selected), tuple(v for v in videos if v.name in selected)


def _by_class(videos: Sequence[Video]) -> Collection[list[Video]]:
    classes: dict[int, list[Video]] = {}
    for video in videos:
        classes.setdefault(video.label, []).append(video)
    return classes.values()


def _position(video: Video, salt: str) -> float:
    """Return the hash of the video's name in [0, 1). The salt makes validation and test splits independent."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{video.name}".encode()).digest()[:6], "big") / 2**48
