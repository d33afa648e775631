"""A data set has videos with classes, in three splits: training, validation and test.

If the files do not state the split of a video, a fixed hash of its name determines the split.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from classifiers.errors import count_of, refuse_if

_LISTED = 5  # number of unused files in the summary; `DataSet.unused` has all of them


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        name: unique and stable name, which is the path relative to the root of the data set, with slashes.
        path: the file, or the folder of frames.
        label: index of the class.
        track: JSON file with the ground truth, if any: ``{"centre": [[y, x], ...]}``. The list ``centre`` has one point per frame, in
            pixels of the video; (0, 0) is the centre of the top left pixel. Hit rates need two more entries: ``"side"`` is the height and
            width of the target's box in pixels, and ``"visible"`` states for every frame whether it shows the target.
        labels: all labels, starting with ``label``; empty if the video has only one label.
        num_frames: number of frames that the folder must have, as stated in a list file; None if any number is allowed.
        frame_name: pattern of the file names of the frames in the folder, such as ``image_%05d.jpg``. The first frame has the number 1. If
            ``frame_name`` is empty, all images are frames, sorted by name.
    """

    name: str
    path: Path
    label: int
    track: Path | None = None
    labels: tuple[int, ...] = ()
    num_frames: int | None = None
    frame_name: str = ""


Videos = tuple[Video, ...]


@dataclass(frozen=True)
class DataSet:
    """The videos of a data set in three splits, and settings of their augmentation.

    Attributes:
        name: the name that users type.
        classes: names of the classes, in the order of their labels.
        train: videos to train the networks on.
        val: videos held out of training, for the selection of models and settings.
        test: test videos, which are read only once, at the end.
        further: further test videos for final results. Further videos were not used for any choice of models or settings. Further videos
            are read only on request, and most data sets have none.
        flip: whether a video keeps its class if it is mirrored.
        scales: sides of training crops as fractions of the shorter side.
        margin: shorter side of the stored frames as a multiple of the crop's side. (In the paper, the shorter side is 256 pixels for crops
            of 224 pixels.)
        prepare: function that creates the missing files of the given videos. The function calls its argument ``progress``, if given, with 1
            after each video. If the files belong to the user, ``prepare`` is None.
        metric: name of the accuracy metric, which is ``top1`` or, for videos with several labels, ``map`` (mean average precision).
        patch_size: side in pixels of the patches for which the demo task is designed, with the architecture `small`; None for other data
            sets.
        root: the folder of the data set, if any.
        unused: files and folders below ``root`` that are not part of a data set of class folders, as paths relative to ``root``.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Video, ...]
    val: tuple[Video, ...]
    test: tuple[Video, ...]
    flip: bool = True
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    margin: float = 256 / 224
    prepare: Callable[..., None] | None = None
    metric: Literal["top1", "map"] = "top1"
    patch_size: int | None = None
    root: Path | None = None
    unused: tuple[str, ...] = ()
    further: tuple[Video, ...] = ()

    @property
    def summary(self) -> str:
        """One line of text with the number of classes, the number of videos in every split, and the unused files."""
        source = self.name if self.root is None else f"{self.name} in {self.root}"
        classes = count_of(len(self.classes), "class", "classes")
        counts = f"{classes}; {len(self.train)} train, {len(self.val)} val, {len(self.test)} test videos"
        if not self.unused:
            return f"data: {source}: {counts}"
        what = "file or folder" if len(self.unused) == 1 else "files or folders"
        more = f" … and {len(self.unused) - _LISTED} more" if len(self.unused) > _LISTED else ""
        return f"data: {source}: {counts}; {len(self.unused)} {what} not used: {', '.join(self.unused[:_LISTED])}{more}"


def check_train_split(data: DataSet, root: str) -> None:
    """Check that there are training videos.

    Args:
        data: the data set.
        root: the folder of the data set, for the error message.

    Raises:
        InputError: if there are no training videos.
    """
    refuse_if(
        not data.train,
        f"data.root: {root} has test/ but no train/, which is enough for python -m agents.evaluate, but not to train; add it, or put "
        f"the class folders directly in {root}",
    )


def with_classes(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    """Return the data set with labels that are indices of a classifier's ``classes``.

    Only a data set of class folders is changed, and only if the classifier knows all of its classes. Other data sets are returned
    unchanged.

    The classes of a folder are numbered in the order of their names. Therefore, a missing class changes the labels of the other classes.
    """
    if data.name != "folder" or not set(data.classes) <= set(classes):
        return data
    labels = [classes.index(name) for name in data.classes]
    train, val, test = (tuple(replace(v, label=labels[v.label]) for v in split) for split in (data.train, data.val, data.test))
    return replace(data, classes=classes, train=train, val=val, test=test)


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
