"""Looks through a data set before anybody trains on it: every video is opened, and the frames of its test clip are decoded.

    python -m agents.check_dataset data=actnet data.root=DIR [data.source=frames] [workers=8] [out=report.json]

data             actnet, fcvid, minik, sthv1, sthv2, folder or demo
data.root        the folder of videos, or of the lists of a published set
data.source      of a published set: frames (extracted), videos (raw), or auto: frames where they are there
data.num_frames  T, frames of a clip; by default the published number, elsewhere 8
workers          processes that decode; by default one for each processor
out              a file for everything that was found, as JSON

It tells videos that are missing, cannot be read, are labelled otherwise than the class folder in their path, or have fewer than T frames;
lines that make no sense; frame rates and sizes; with data=folder also the files and folders that are not used.

Exit status: 0 where every video can be used as it is listed, 1 where one cannot, 2 for a mistake in the arguments or a file that cannot be
read. Short videos can be used (their last frame is repeated): they are told, and do not count, nor do files that are not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from adafocus_env.videos.class_folders import folder
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.list_files import Fault
from adafocus_env.videos.published import PUBLISHED, Usable, what_is_usable
from adafocus_env.videos.readers import DecodedClip, DecodeRequest
from adafocus_env.videos.validation_report import KINDS, PARTS, Finding, Report
from agents.config.arguments import key, run_command
from agents.config.data_keys import data_rules
from classifiers.errors import InputError, lookup

if TYPE_CHECKING:
    from rich.console import Console

_TIME_LIMIT = 30.0  # seconds for one video
_SMALL = 32  # shorter side in pixels of what workers send back: nobody looks at it


@dataclass(frozen=True)
class Arguments:
    """The keys of the command, as the module's docstring explains them."""

    data: str
    root: str = key("data.root", "")
    source: str = key("data.source", "auto")
    num_frames: int = key("data.num_frames", 0, of="frames")
    workers: int = key("workers", os.cpu_count() or 1, of="processes")
    out: str = ""


UNREAD = data_rules(lambda c: c.data, lambda c: c.root)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    run_command(_command, Arguments, __doc__, arguments, unread=UNREAD)


def _command(given: Arguments) -> int:
    from rich.console import Console  # here, so that --help and mistyped keys are answered at once

    out = _writable(given.out)
    if given.workers < 1:
        raise InputError(f"workers={given.workers}: at least 1 process is needed")
    usable = lookup("data", given.data, DATA_SETS)(given)
    report = check_data(usable, num_frames=_num_frames(given), workers=given.workers, console=Console(stderr=True))
    report.show(Console(), out)
    if out is not None:
        report.write(out)
    return int(report.num_faults > 0)


def check_data(usable: Usable, *, num_frames: int, workers: int, console: Console) -> Report:
    """Opens every video of a data set, decodes a test clip of it, and compares it with what the lists say.

    Args:
        usable: the data set, and the lines of its lists that make no sense.
        num_frames: T.
        workers: processes that decode.
        console: where a progress bar is shown.
    """
    data = usable.data
    parts = {part: getattr(data, part) for part in PARTS}
    counts = {part: len(videos) for part, videos in parts.items()}
    report = Report(data.name, num_frames, usable.place, counts, notes=[*usable.notes], unused=data.unused)
    if data.prepare is not None:
        data.prepare([video for videos in parts.values() for video in videos])
    report.findings += [_bad_line(fault, data) for fault in usable.faults]
    places = {_plain(name): label for label, name in enumerate(data.classes)}
    present = []
    for part, video in ((part, video) for part, videos in parts.items() for video in videos):
        report.findings += _misplaced(part, video, data.classes, places)
        if video.path.exists():
            present.append((part, video))
        else:
            report.findings.append(Finding("missing", part, video.name, "there is no such video"))
    for (part, video), result in _decoded(present, num_frames, workers, console):
        _note(report, part, video, result)
    report.notes += [*_classes_without_videos(data), *_of_frames(usable, report)]
    report.findings.sort(key=lambda finding: (KINDS.index(finding.kind), PARTS.index(finding.part), finding.video))
    return report


def _decoded(
    videos: Sequence[tuple[str, Video]], num_frames: int, workers: int, console: Console
) -> Iterator[tuple[tuple[str, Video], object]]:
    """Every video with its clip, or a `Failure`, under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    requests = [
        DecodeRequest(video.path, num_frames, _SMALL, num_frames_stated=video.num_frames, frame_name=video.frame_name)
        for _, video in videos
    ]
    results = run_in_workers("adafocus_env.videos.readers:decode_clip", requests, num_workers=workers, time_limit=_TIME_LIMIT)
    columns = (TextColumn("check"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("videos"))
    with Progress(*columns, TimeRemainingColumn(compact=True, elapsed_when_finished=True), console=console, expand=True) as progress:
        for number, result in progress.track(results, total=len(videos)):
            yield videos[number], result


def _note(report: Report, part: str, video: Video, result: object) -> None:
    if isinstance(result, Failure):
        reason = result.reason.removeprefix(f"cannot read the video {video.path}: ")
        report.findings.append(Finding("unreadable", part, video.name, reason))
        return
    assert isinstance(result, DecodedClip)
    if result.num_frames < report.num_frames:
        reason = f"{result.num_frames} frames, fewer than a clip's {report.num_frames}; the last one is repeated"
        report.findings.append(Finding("short", part, video.name, reason))
    if result.fps is not None:
        report.fps[round(result.fps, 2)] += 1
    report.short_sides[min(result.size)] += 1


def _bad_line(fault: Fault, data: DataSet) -> Finding:
    part = "test" if fault.file.name == Path(PUBLISHED[data.name].test_list).name else "train"
    return Finding("mislabelled" if fault.mislabelled else "bad line", part, fault.path, f"{fault.file.name} {fault}")


def _misplaced(part: str, video: Video, classes: Sequence[str], places: Mapping[str, int]) -> list[Finding]:
    """A finding, where the path of a video holds the folder of a class that is not among its labels; ``places`` are those folders."""
    folders = [places[name] for name in map(_plain, PurePosixPath(video.name).parts[:-1]) if name in places]
    labels = video.labels or (video.label,)
    if not folders or folders[-1] in labels:
        return []
    said = ", ".join(f"{label} ({classes[label]})" for label in labels)
    return [Finding("mislabelled", part, video.name, f"its label is {said}, its folder that of {folders[-1]} ({classes[folders[-1]]})")]


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _classes_without_videos(data: DataSet) -> Iterator[str]:
    for part, videos in (("training", [*data.train, *data.val]), ("test", data.test)):
        seen = {label for video in videos for label in video.labels or (video.label,)}
        unseen = [name for label, name in enumerate(data.classes) if label not in seen]
        if unseen:
            yield f"classes without a {part} video ({len(unseen)}): {', '.join(unseen[:10])}{', …' if len(unseen) > 10 else ''}"


def _of_frames(usable: Usable, report: Report) -> Iterator[str]:
    """What else to say of extracted frames."""
    about = PUBLISHED.get(usable.data.name)
    if about is None or report.fps or not report.short_sides:
        return
    yield "frame rate: images do not tell it; the lists count frames at each video's own rate, so that other counts mean another rate"
    other = report.short_sides.total() - report.short_sides[about.short_side or 0]
    if about.short_side is not None and other:
        yield f"frames whose shorter side is not the published {about.short_side} pixels: in {other} videos"


def _published(given: Arguments) -> Usable:
    return what_is_usable(given.data, _root(given), source=given.source)


def _folder(given: Arguments) -> Usable:
    return Usable(folder(_root(given)), place=None, faults=[], notes=[])


def _demo(given: Arguments) -> Usable:
    from adafocus_env.demo.videos import demo  # here, as it needs scikit-learn

    return Usable(demo(num_workers=given.workers), place=None, faults=[], notes=[])


DATA_SETS: dict[str, Callable[[Arguments], Usable]] = {**dict.fromkeys(PUBLISHED, _published), "folder": _folder, "demo": _demo}


def _root(given: Arguments) -> str:
    if not given.root:
        raise InputError(f"data.root is missing: add data.root=DIR, the folder of data={given.data}")
    return given.root


def _num_frames(given: Arguments) -> int:
    if given.num_frames < 0:
        raise InputError(f"data.num_frames={given.num_frames}: a clip needs at least 1 frame")
    return given.num_frames or (PUBLISHED[given.data].num_frames if given.data in PUBLISHED else 8)


def _writable(out: str) -> Path | None:
    """The file to write, tried before the work that leads to it."""
    if not out:
        return None
    path = Path(out).expanduser()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"out={out} cannot be written; give a file in a folder that is there")
    return path


if __name__ == "__main__":
    main()
