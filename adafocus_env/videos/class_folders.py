"""Build a data set from a folder that has one subfolder of videos for each class."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from adafocus_env.videos.containers import VIDEO_SUFFIXES
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.readers import IMAGE_SUFFIXES
from adafocus_env.videos.splits import hold_out, split_test
from classifiers.errors import InputError, refuse_if


def folder(root: str | Path, *, val: float = 0.1, test: float = 0.2, flip: bool = True) -> DataSet:
    """Return the data set of a folder that has one subfolder of videos for each class.

    The videos are either ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``, or ``ROOT/CLASS/*``. Videos in ``ROOT/CLASS/*`` are split by a
    fixed hash of their names. After the split by hash, every class has a training video and, if it has at least two videos, a test video.
    To evaluate a classifier, ``ROOT/test/CLASS/*`` alone is enough. A video is a file with the suffix of a video, or a folder of images.
    The track of a video (see `Video.track`) is the file ``NAME.track.json`` next to ``NAME.mp4`` or the folder ``NAME``. Classes are sorted
    by name. `DataSet.unused` lists everything that is not part of the data set: other files, folders without images, and class folders
    without videos. Hidden files are ignored.

    Args:
        root: the folder.
        val: share of the training videos that is held out for validation.
        test: share of the videos that are for testing, if the folder has no subfolder test/.
        flip: whether a mirrored video has the same class, so that training clips may be mirrored at random.

    Raises:
        InputError: if the folder is missing or empty, if it has no videos or only one class, if a name in it is not UTF-8, or if the splits
            have different classes.
    """
    root = Path(root).expanduser()
    check_folder(root, "give a folder with one subfolder of videos for each class")
    refuse_if(not 0 < test < 1, f"data.test: must be a share between 0 and 1, got {test}")
    splits = [split for split in ("train", "test") if (root / split).is_dir()]
    refuse_if(splits == ["train"], f"data.root: {root} has train/ but no test/; add it, or put the class folders directly in {root}")
    if splits == ["test"]:
        classes = _classes(root / "test", root, least=1)
        return DataSet("folder", tuple(classes), (), (), _test_videos(root, classes))
    if splits:
        classes = _classes(root / "train", root)
        train, tested = _videos(root, root / "train", classes), _test_videos(root, classes)
    else:
        classes = _classes(root, root)
        train, tested = split_test(_videos(root, root, classes), test)
        refuse_if(not tested, f"data.root: every class in {root} has only one video, which leaves none to test on; add videos")
    used = {path for video in (*train, *tested) for path in (video.path, video.track) if path}
    unused = tuple(_unused(root, splits, used))
    return DataSet("folder", tuple(classes), *hold_out(train, val), tested, flip=flip, root=root, unused=unused)


def check_folder(root: Path, advice: str) -> None:
    """Check that ``root`` is a folder and is not empty.

    Raises:
        InputError: if it is not. The message ends with ``advice``.
    """
    refuse_if(not root.exists(), f"data.root: {root} does not exist; {advice}")
    refuse_if(not root.is_dir(), f"data.root: {root} is not a folder; {advice}")
    refuse_if(not _visible(root), f"data.root: {root} is empty; {advice}")


def _classes(folder: Path, root: Path, least: int = 2) -> list[str]:
    folders = [entry for entry in _visible(folder) if entry.is_dir()]
    classes = [entry.name for entry in folders if _videos_in(entry)]
    refuse_if(
        not classes,
        f"data.root: {root} has no videos to learn from: none of the {len(folders)} class folders in {folder} "
        f"has a file of a known kind ({', '.join(VIDEO_SUFFIXES)}) or a folder of images",
    )
    refuse_if(len(classes) < least, f"data.root: {folder} has only one class, {classes[0]!r}; at least two are needed")
    return classes


def _test_videos(root: Path, classes: list[str]) -> tuple[Video, ...]:
    refuse_if(
        unknown := sorted({entry.name for entry in _visible(root / "test") if entry.is_dir() and _videos_in(entry)} - set(classes)),
        f"data.root: {root / 'test'} has classes that {root / 'train'} has no videos of: {', '.join(unknown)}",
    )
    videos = _videos(root, root / "test", classes)
    refuse_if(not videos, f"data.root: {root / 'test'} holds no videos; add some, in one subfolder for each class")
    return videos


def _videos(root: Path, folder: Path, classes: list[str]) -> tuple[Video, ...]:
    return tuple(
        Video(path.relative_to(root).as_posix(), path, label, _track_of(path))
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in _videos_in(folder / name)
    )


def _track_of(path: Path) -> Path | None:
    track = path.with_name(f"{path.name if path.is_dir() else path.stem}.track.json")
    return track if track.is_file() else None


def _unused(root: Path, splits: Sequence[str], used: Collection[Path]) -> Iterator[str]:
    """Yield the relative paths of all entries of ``root`` that are not in ``used``; see `DataSet.unused`. For folders, add the reason."""

    def described(path: Path, reason: str) -> str:
        return path.relative_to(root).as_posix() + (f"/ ({reason})" if path.is_dir() else "")

    if splits:
        yield from (described(entry, f"not {' or '.join(splits)}") for entry in _visible(root) if entry.name not in splits)
    for class_folder in (entry for split in splits or [""] for entry in _visible(root / split)):
        inside = _visible(class_folder) if class_folder.is_dir() else []
        unused = [entry for entry in inside if entry not in used]
        if len(unused) == len(inside):
            yield described(class_folder, "no videos")
        else:
            yield from (described(entry, "no images") for entry in unused)


def _videos_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if (_has_images(entry) if entry.is_dir() else entry.suffix.lower() in VIDEO_SUFFIXES)]


def _has_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def _visible(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in entry.name):
            raise InputError(f"data.root: the name {os.fsencode(entry.name)!r} in {folder} is not valid UTF-8; rename it")
    return entries
