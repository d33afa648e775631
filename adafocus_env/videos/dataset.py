"""A data set has videos with classes, in three splits: training, validation and test."""

from collections.abc import Callable
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
