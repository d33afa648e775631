"""Which videos there are, of which class, and in which part: training, validation or test."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adafocus_env.videos.containers import VIDEO_SUFFIXES
from adafocus_env.videos.readers import IMAGE_SUFFIXES
from classifiers.errors import InputError

_NAMED_UNUSED = 5  # in the summary; `DataSet.unused` has them all


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        name: unique and stable: the path relative to the data set's root, with slashes.
        path: the file, or the folder of frames.
        label: number of its class.
        track: JSON file with the ground truth, where there is one: ``{"centre": [[y, x], ...]}``, one point for each frame of the
            video, in its pixels, (0, 0) being the centre of the top left one.
        labels: all its labels, `label` being the first; empty where that is the only one.
        num_frames: what a list says of a folder's frames; None where the video itself tells.
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


@dataclass(frozen=True)
class DataSet:
    """Videos in three parts, and how they may be augmented.

    Attributes:
        name: what users type.
        classes: names of the classes, by label.
        train: what is learned from.
        val: what choices are made on; held out of training.
        test: read once, at the end.
        flip: whether a mirrored video keeps its class.
        scales: sides of training crops as shares of the shorter side.
        margin: shorter side of the stored frames as a multiple of the crop's side (the paper stores 256 for crops of 224).
        prepare: makes the missing files of the given videos; None where the files are the user's.
        metric: what accuracy means: ``top1``, or ``map`` (mean average precision), where a video may have several labels.
        patch_size: side in pixels of the patches that its task is made for, with the architecture `small`; None: there is no such thing.
        root: the folder that it was read from; None where there is none.
        unused: what a folder of class folders holds that is not part of the data set, by path relative to ``root``: see `folder`.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Video, ...]
    val: tuple[Video, ...]
    test: tuple[Video, ...]
    flip: bool = True
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    margin: float = 256 / 224
    prepare: Callable[[Sequence[Video]], None] | None = None
    metric: Literal["top1", "map"] = "top1"
    patch_size: int | None = None
    root: Path | None = None
    unused: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line: the number of classes, the videos of each split, and what the folder holds that is not used."""
        source = self.name if self.root is None else f"{self.name} in {self.root}"
        counts = f"{len(self.classes)} classes; {len(self.train)} train, {len(self.val)} val, {len(self.test)} test videos"
        if not self.unused:
            return f"data: {source}: {counts}"
        what = "file or folder" if len(self.unused) == 1 else "files or folders"
        more = f" … and {len(self.unused) - _NAMED_UNUSED} more" if len(self.unused) > _NAMED_UNUSED else ""
        return f"data: {source}: {counts}; {len(self.unused)} {what} not used: {', '.join(self.unused[:_NAMED_UNUSED])}{more}"


def hold_out(videos: Sequence[Video], share: float) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    """Splits training videos into (train, val) by a fixed hash of their names.

    The hash alone decides, so that the same video falls in the same part on every machine and whatever else is in the set. Two
    repairs are made where it would leave a part useless: a class that would vanish from training gets one video back, and an empty
    val gets one video (from a class with several, if any).

    Args:
        videos: what to split.
        share: part of the videos to hold out, in [0, 1).

    Raises:
        InputError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"data.val: must be a share in [0, 1), got {share}")
    if share == 0 or len(videos) < 2:
        return tuple(videos), ()
    held = _chosen(videos, share, "val")
    if not held:
        sizes = Counter(video.label for video in videos)
        candidates = [video for video in videos if sizes[video.label] > 1] or videos
        held = {min(candidates, key=lambda video: _position(video, "val")).name}
    return tuple(v for v in videos if v.name not in held), tuple(v for v in videos if v.name in held)


def folder(root: str | Path, *, val: float = 0.1, test: float = 0.2) -> DataSet:
    """The data set in a folder with one subfolder of videos for each class.

    Either ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``, or ``ROOT/CLASS/*``, which is split by a fixed hash of the names so
    that every class keeps a training video and, where it has two or more, a test video. With ``ROOT/test/CLASS/*`` alone there is
    nothing to learn from, but a classifier can be evaluated. A video is a file with a video's suffix or a folder of images. Classes
    are sorted by name. Anything else is listed in `DataSet.unused`: other files, folders without images, class folders without videos.
    Hidden files are ignored.

    Args:
        root: the folder.
        val: share of the training videos that is held out for validation.
        test: share of the videos to test on, where the folder does not say.

    Raises:
        InputError: the folder is missing, empty, has one class or no videos, a name in it is not UTF-8, or its parts do not fit together.
    """
    root = Path(root).expanduser()
    check_folder(root, "give a folder with one subfolder of videos for each class")
    if not 0 < test < 1:
        raise InputError(f"data.test: must be a share between 0 and 1, got {test}")
    parts = [part for part in ("train", "test") if (root / part).is_dir()]
    if parts == ["train"]:
        raise InputError(f"data.root: {root} has train/ but no test/; add it, or put the class folders directly in {root}")
    if parts == ["test"]:
        classes = _classes(root / "test", root, least=1)
        return DataSet("folder", tuple(classes), (), (), _tested(root, classes))
    if parts:
        classes = _classes(root / "train", root)
        learned, tested = _videos(root, root / "train", classes), _tested(root, classes)
    else:
        classes = _classes(root, root)
        learned, tested = _split(root, _videos(root, root, classes), test)
    train, held_out = hold_out(learned, val)
    unused = _unused(root, parts, {video.path for video in (*learned, *tested)})
    return DataSet("folder", tuple(classes), train, held_out, tested, root=root, unused=tuple(unused))


def check_train_split(data: DataSet, root: str) -> None:
    """Checks that there is something to learn from.

    Args:
        data: the data set.
        root: the folder that it is read from, for the message.

    Raises:
        InputError: there is no training video.
    """
    if not data.train:
        raise InputError(
            f"data.root: {root} has test/ but no train/, which is enough for python -m agents.evaluate, but not to train; add it, or put "
            f"the class folders directly in {root}"
        )


def with_classes(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    """The data set with a classifier's classes, if it is a folder whose class folders are all among them; otherwise as it is.

    The numbers of a folder's classes are the order of their names, so that a folder that lacks some numbers the others anew.
    """
    if data.name != "folder" or not set(data.classes) <= set(classes):
        return data
    labels = [classes.index(name) for name in data.classes]
    train, val, test = (tuple(replace(v, label=labels[v.label]) for v in part) for part in (data.train, data.val, data.test))
    return replace(data, classes=classes, train=train, val=val, test=test)


def check_folder(root: Path, advice: str) -> None:
    """Raises `InputError` where ``root`` is no folder with something in it; ``advice`` says what to give."""
    if not root.exists():
        raise InputError(f"data.root: {root} does not exist; {advice}")
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder; {advice}")
    if not _visible(root):
        raise InputError(f"data.root: {root} is empty; {advice}")


def _classes(folder: Path, root: Path, least: int = 2) -> list[str]:
    folders = [entry for entry in _visible(folder) if entry.is_dir()]
    classes = [entry.name for entry in folders if _videos_in(entry)]
    if not classes:
        raise InputError(
            f"data.root: {root} holds no videos that can be learned from: none of the {len(folders)} class folders in {folder} "
            f"has a file of a known kind ({', '.join(VIDEO_SUFFIXES)}) or a folder of images"
        )
    if len(classes) < least:
        raise InputError(f"data.root: {folder} has only one class, {classes[0]!r}; at least two are needed to tell apart")
    return classes


def _tested(root: Path, classes: list[str]) -> tuple[Video, ...]:
    unknown = sorted({entry.name for entry in _visible(root / "test") if entry.is_dir() and _videos_in(entry)} - set(classes))
    if unknown:
        raise InputError(f"data.root: {root / 'test'} has classes that {root / 'train'} has no videos of: {', '.join(unknown)}")
    videos = _videos(root, root / "test", classes)
    if not videos:
        raise InputError(f"data.root: {root / 'test'} holds no videos; add some, in one subfolder for each class")
    return videos


def _split(root: Path, videos: tuple[Video, ...], share: float) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    tested: set[str] = set()
    for label in {video.label for video in videos}:
        of_class = [video for video in videos if video.label == label]
        if len(of_class) > 1:
            first = min(of_class, key=lambda video: _position(video, "test"))
            tested |= _chosen(of_class, share, "test") or {first.name}
    if not tested:
        raise InputError(f"data.root: every class in {root} has only one video, which leaves none to test on; add videos")
    return tuple(v for v in videos if v.name not in tested), tuple(v for v in videos if v.name in tested)


def _chosen(videos: Sequence[Video], share: float, salt: str) -> set[str]:
    """Names of the videos whose hash falls in ``share``, less one of each class that would lose all its videos."""
    chosen = {video.name for video in videos if _position(video, salt) < share}
    classes: dict[int, list[Video]] = {}
    for video in videos:
        classes.setdefault(video.label, []).append(video)
    for of_class in classes.values():
        if all(video.name in chosen for video in of_class):
            chosen.discard(max(of_class, key=lambda video: _position(video, salt)).name)
    return chosen


def _position(video: Video, salt: str) -> float:
    """Where the video's name falls in [0, 1). The salt keeps the validation and the test split independent of each other."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{video.name}".encode()).digest()[:6], "big") / 2**48


def _videos(root: Path, folder: Path, classes: list[str]) -> tuple[Video, ...]:
    return tuple(
        Video(path.relative_to(root).as_posix(), path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in _videos_in(folder / name)
    )


def _unused(root: Path, parts: Sequence[str], videos: Collection[Path]) -> Iterator[str]:
    """What ``root`` holds beside ``videos``, by path relative to it; a class folder without videos is one entry."""
    if parts:
        yield from (_named(root, entry, f"not {' or '.join(parts)}") for entry in _visible(root) if entry.name not in parts)
    for class_folder in (entry for part in parts or [""] for entry in _visible(root / part)):
        inside = _visible(class_folder) if class_folder.is_dir() else []
        unused = [entry for entry in inside if entry not in videos]
        if len(unused) == len(inside):
            yield _named(root, class_folder, "no videos")
        else:
            yield from (_named(root, entry, "no images") for entry in unused)


def _named(root: Path, path: Path, why_not: str) -> str:
    """The path relative to ``root``; for a folder with the reason why it is not used."""
    name = path.relative_to(root).as_posix()
    return f"{name}/ ({why_not})" if path.is_dir() else name


def _videos_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if _is_video(entry)]


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def _visible(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in entry.name):
            raise InputError(f"data.root: the name {os.fsencode(entry.name)!r} in {folder} is not valid UTF-8; rename it")
    return entries
