"""How videos are split into training, validation and test: by a fixed hash of their names."""

import hashlib
from collections.abc import Collection, Sequence

from adafocus_env.videos.dataset import Video, Videos
from classifiers.errors import refuse_if


def hold_out(videos: Sequence[Video], share: float) -> tuple[Videos, Videos]:
    """Split training videos into (train, val) by a fixed hash of their names.

    The hash alone decides, so that a video falls into the same split on every machine, independently of the other videos. There are
    two exceptions: a class without training videos gets one back, and an empty val gets one video (from a
    class with several, if any).

    Args:
        videos: what to split.
        share: of the videos to hold out, in [0, 1).

    Raises:
        InputError: the share is not in [0, 1).
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
    """Split videos into (train, test): every class with two videos or more has one in both, a class with one has it in train."""
    tested: set[str] = set()
    for of_class in _by_class(videos):
        if len(of_class) > 1:
            tested |= _selected(of_class, share, "test") or {min(of_class, key=lambda video: _position(video, "test")).name}
    return _partition(videos, tested)


def _selected(videos: Sequence[Video], share: float, salt: str) -> set[str]:
    """Return the names of the videos whose hash falls in ``share``, less one of every class that would lose all its videos."""
    selected = {video.name for video in videos if _position(video, salt) < share}
    for of_class in _by_class(videos):
        if all(video.name in selected for video in of_class):
            selected.discard(max(of_class, key=lambda video: _position(video, salt)).name)
    return selected


def _partition(videos: Sequence[Video], selected: Collection[str]) -> tuple[Videos, Videos]:
    """Return (the others, the selected ones), in their order."""
    return tuple(v for v in videos if v.name not in selected), tuple(v for v in videos if v.name in selected)


def _by_class(videos: Sequence[Video]) -> Collection[list[Video]]:
    classes: dict[int, list[Video]] = {}
    for video in videos:
        classes.setdefault(video.label, []).append(video)
    return classes.values()


def _position(video: Video, salt: str) -> float:
    """Return the position of the video's name in [0, 1); the salt makes the validation and the test split independent."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{video.name}".encode()).digest()[:6], "big") / 2**48
