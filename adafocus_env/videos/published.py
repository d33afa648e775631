"""Build the data sets of the publications from their published list files."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from adafocus_env.videos.class_folders import check_folder
from adafocus_env.videos.containers import VIDEO_SUFFIXES
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.list_files import (
    SHORTEST,
    Entry,
    Fault,
    ListFile,
    ListFormat,
    describe,
    read_class_names,
    read_list,
    shared_videos,
)
from adafocus_env.videos.splits import hold_out
from classifiers.errors import InputError, lookup, refuse_if

_log = logging.getLogger("adafocus_env")
VIDEOS = "videos"


@dataclass(frozen=True)
class PublishedSet:
    """The published description of a data set. Paths are relative to the root of the data set.

    Attributes:
        title: name of the data set, as it is written in publications.
        num_classes: the published number of classes. The class file may contain more or fewer classes than published.
        class_file: file with the names of the classes.
        train_list: list of training videos. A share of the training videos is held out for validation.
        test_list: list of test videos, published as the validation list.
        form: the format of the lines in the lists.
        frames: folder that contains one folder of extracted frames per video.
        frame_name: pattern of the file names of frames. The first frame has the number 1.
        num_frames: T, frames per clip.
        flip: whether a video keeps its class if it is mirrored.
        metric: see `DataSet`.
        short_side: shorter side of the extracted frames in pixels; None if it is not published.
    """

    title: str
    num_classes: int
    class_file: str
    train_list: str
    test_list: str
    form: ListFormat
    frames: str = "frames"
    frame_name: str = "image_%05d.jpg"
    num_frames: int = 16
    flip: bool = True
    metric: Literal["top1", "map"] = "top1"
    short_side: int | None = 360


_SEVERAL = ListFormat(",", max_labels=3)
PUBLISHED: Mapping[str, PublishedSet] = {
    "actnet": PublishedSet(
        "ActivityNet", 200, "classInd.txt", "actnet_train_split.txt", "actnet_val_split.txt", _SEVERAL, metric="map"
    ),
    "fcvid": PublishedSet("FCVID", 239, "classInd.txt", "fcvid_train_split.txt", "fcvid_val_split.txt", _SEVERAL, metric="map"),
    "minik": PublishedSet(
        "Mini-Kinetics", 200, "minik_classInd.txt", "mini_train_videofolder.txt", "mini_val_videofolder.txt", ListFormat()
    ),
    **{
        f"sthv{version}": PublishedSet(
            title=f"Something-Something V{version}",
            num_classes=174,
            class_file=f"something-something-v{version}/category.txt",
            train_list=f"something-something-v{version}/train_videofolder.txt",
            test_list=f"something-something-v{version}/val_videofolder.txt",
            form=ListFormat(),
            frames=f"something-something-v{version}/{frames}",
            frame_name=frame_name,
            num_frames=12,
            flip=False,
            short_side=None,
        )
        for version, frames, frame_name in (
            (1, "20bn-something-something-v1", "%05d.jpg"),
            (2, "20bn-something-something-v2-frames", "%06d.jpg"),
        )
    },
    "jester": PublishedSet(  # used by AdaFocusV2; lists and folders as for TSM (arXiv:1811.08383)
        "Jester", 27, "jester/category.txt", "jester/train_videofolder.txt", "jester/val_videofolder.txt", ListFormat(),
        frames="jester/20bn-jester-v1", frame_name="%05d.jpg", num_frames=12, flip=False, short_side=None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Usable:
    """The usable videos of a data set, malformed lines, and notes for the user.

    Attributes:
        data: the videos of all well-formed lines.
        place: the folder of frames or videos; None if the data set is not one of the published data sets.
        faults: the malformed lines.
        notes: dropped lines, and differences from the publication.
    """

    data: DataSet
    place: Path | None
    faults: list[Fault]
    notes: list[str]


def published(name: str, root: str | Path, *, source: str = "auto", val: float = 0.1) -> DataSet:
    """Return a published data set.

    A share of the training list is held out for validation. The validation list is the test split.

    The name of a video is its path in the list, so that the splits are the same for extracted frames and for video files.

    Args:
        name: a key of `PUBLISHED`.
        root: the folder with the class file and the lists.
        source: ``frames`` reads extracted frames from numbered files. ``videos`` reads video files in ``ROOT/videos``. The numbers of
            frames in the lists may differ from the numbers of frames in the files. ``auto`` reads frames if their folder exists, otherwise
            videos.
        val: share of the training videos that is held out for validation.

    Raises:
        InputError: if a file or folder is missing or cannot be read, or if a line is malformed. The message names files and lines.
    """
    usable = what_is_usable(name, root, source=source, val=val)
    for note in usable.notes:
        _log.warning("%s", note)
    refuse_if(usable.faults, describe(usable.faults))
    for split, listed in (("train", PUBLISHED[name].train_list), ("test", PUBLISHED[name].test_list)):
        refuse_if(not getattr(usable.data, split), f"the list {Path(root) / listed} holds no video; give the published one")
    return usable.data


def what_is_usable(name: str, root: str | Path, *, source: str = "auto", val: float = 0.1) -> Usable:
    """Return the same data set as `published`, together with the malformed lines. Malformed lines do not raise an error here.

    Raises:
        InputError: if a file or folder is missing or cannot be read.
    """
    about = lookup("data", name, PUBLISHED)
    root = Path(root).expanduser()
    check_folder(root, f"give the folder with {about.class_file} and the lists of {about.title}")
    classes = read_class_names(root / about.class_file, f"the class file {root / about.class_file}")
    refuse_if(
        len(classes) < 2,
        f"the class file {root / about.class_file} has {len(classes)} classes; at least two are needed",
    )
    train, test = (read_list(root / listed, about.form, len(classes)) for listed in (about.train_list, about.test_list))
    place = _place(root, source, about)
    found = _videos(place, [*train.entries, *test.entries], about, extracted=place == root / about.frames)
    learned, tested = (tuple(found[entry.path] for entry in listed.entries) for listed in (train, test))
    data = DataSet(name, classes, *hold_out(learned, val), tested, flip=about.flip, metric=about.metric, root=root)
    notes = list(_notes(root, about, len(classes), [train, test]))
    return Usable(data, place, [*train.faults, *test.faults, *shared_videos(train, test)], notes)


def _place(root: Path, source: str, about: PublishedSet) -> Path:
    """Return the folder of videos or frames."""
    places = {"frames": root / about.frames, "videos": root / VIDEOS}
    if there := [place for name, place in places.items() if source in ("auto", name) and place.is_dir()]:
        return there[0]
    refuse_if(
        source == "auto",
        f"data.root: {root} has neither {about.frames}/ with a folder of frames for each video nor {VIDEOS}/ with videos",
    )
    place = lookup("data.source", source, {"auto": root, **places})
    raise InputError(f"data.source={source}: {place} is not a folder; put the {source} there, or use data.source=auto")


def _videos(place: Path, entries: Sequence[Entry], about: PublishedSet, *, extracted: bool) -> dict[str, Video]:
    """Return a dictionary from a path in the lists to its video, which is a folder of extracted frames or a file."""
    files = {} if extracted else _index(place)
    if entries and not any((place / each.path).is_dir() if extracted else _without_suffix(each.path) in files for each in entries):
        what = "a folder of frames" if extracted else f"a video ({', '.join(VIDEO_SUFFIXES)})"
        example = next(place.iterdir() if extracted else iter(files.values()), None)
        there = "which is empty" if example is None else f"where there is {example.relative_to(place).as_posix()!r}"
        raise InputError(f"none of the {len(entries)} videos of the lists, as {entries[0].path!r}, has {what} in {place}, {there}")
    paths = [files.get(_without_suffix(each.path), place / each.path) for each in entries]
    stated = [(each.num_frames, about.frame_name) if extracted else () for each in entries]
    return {
        each.path: Video(each.path, path, each.labels[0], None, each.labels, *frames)
        for each, path, frames in zip(entries, paths, stated, strict=True)
    }


def _index(folder: Path) -> dict[str, Path]:
    """Return a dictionary from a path without suffix to the video file below ``folder``.

    If several files differ only in the suffix, the file whose suffix comes first in `VIDEO_SUFFIXES` is used.
    """
    found: dict[str, Path] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        files = [Path(place, name) for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        for file in sorted(files, key=lambda file: VIDEO_SUFFIXES.index(file.suffix.lower())):
            found.setdefault(_without_suffix(file.relative_to(folder).as_posix()), file)
    return found


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES else path


def _notes(root: Path, about: PublishedSet, num_classes: int, lists: Sequence[ListFile]) -> Iterator[str]:
    if num_classes != about.num_classes:
        yield f"{root / about.class_file} has {num_classes} classes; {about.title} was published with {about.num_classes}"
    for each in lists:
        if each.too_short:
            yield f"{each.file}: lines with fewer than {SHORTEST} frames, which are dropped: {each.too_short}"
        if each.repeated:
            yield f"{each.file}: lines that repeat another one, which are dropped: {each.repeated}"
