"""A data set: its videos, with their classes, in three splits: training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from classifiers.errors import count_of, refuse_if

_LISTED = 5  # unused files in the summary; `DataSet.unused` has them all


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        name: unique and stable: the path relative to the data set's root, with slashes.
        path: the file, or the folder of frames.
        label: number of its class.
        track: JSON file with the ground truth, if any: ``{"centre": [[y, x], ...]}``, one point for each frame of the video, in its
            pixels, (0, 0) being the centre of the top left one. Hit rates need two more entries: ``"side"``, the height and width of
            the target's box, and ``"visible"``, for each frame whether it shows the target.
        labels: all its labels, `label` being the first; empty for a single label.
        num_frames: frames of its folder according to a list; None: as many as the video has.
        frame_name: how the frames in its folder are named, counted from 1, as ``image_%05d.jpg``; empty: any images, in the order of
            their names.
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
    """Videos in three splits, and how they may be augmented.

    Attributes:
        name: what users type.
        classes: names of the classes, by label.
        train: the networks learn from them.
        val: choices are made on them; held out of training.
        test: read once, at the end.
        further: as test videos, for figures that nothing was chosen by; read only on request. Empty for most data sets.
        flip: whether a mirrored video has the same class.
        scales: sides of training crops as shares of the shorter side.
        margin: shorter side of the stored frames as a multiple of the crop's side (the paper stores 256 for crops of 224).
        prepare: makes the missing files of the given videos, and calls its argument ``progress``, if any, with 1 for each that it makes;
            None if the files are the user's.
        metric: what accuracy means: ``top1``, or ``map`` (mean average precision) for videos with several labels.
        patch_size: side in pixels of the patches that its task is made for, with the architecture `small`; None without a task.
        root: the folder that it was read from, if any.
        unused: the content of a folder of class folders that is not part of the data set, by path relative to ``root``.
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
        """The number of classes, the videos of every split, and what is not used, in one line."""
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
        root: the folder that it is read from, for the message.

    Raises:
        InputError: there is no training video.
    """
    refuse_if(
        not data.train,
        f"data.root: {root} has test/ but no train/, which is enough for python -m agents.evaluate, but not to train; add it, or put "
        f"the class folders directly in {root}",
    )


def with_classes(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    """Return the data set with a classifier's classes, if it is a folder whose classes are all among them; otherwise unchanged.

    The classes of a folder are numbered in the order of their names, so that a missing class changes the numbers of the others.
    """
    if data.name != "folder" or not set(data.classes) <= set(classes):
        return data
    labels = [classes.index(name) for name in data.classes]
    train, val, test = (tuple(replace(v, label=labels[v.label]) for v in split) for split in (data.train, data.val, data.test))
    return replace(data, classes=classes, train=train, val=val, test=test)
