"""Validation of a data set before a training: every video is opened, and the frames of its test clip are decoded."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adafocus_env.dataset_registry import DataSettings, usable_data
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.list_files import Fault
from adafocus_env.videos.published import PUBLISHED, Usable
from adafocus_env.videos.readers import DecodeRequest
from adafocus_env.videos.validation_report import KINDS, PARTS, Finding, Report
from classifiers.errors import InputError

_TIME_LIMIT = 30.0  # seconds for one video
_SMALL = 32  # shorter side in pixels of the frames that workers return: only their number is used


def validate_data(data: DataSettings, workers: int | None, out: str) -> int:
    """Print a report on a data set.

    Args:
        data: which one, and T.
        workers: processes that decode; None: one for each processor.
        out: a JSON file for everything that was found; empty: none.

    Returns:
        1 where a video cannot be used as it is listed, else 0.

    Raises:
        InputError: there is no such data set, or a file cannot be read or written.
    """
    path, workers = _writable(out), workers or os.cpu_count() or 1
    report = check_data(usable_data(replace(data, workers=workers)), data.num_frames, workers, Console(stderr=True))
    report.show(Console(), path)
    if path is not None:
        report.write(path)
    return int(report.num_faults > 0)


def check_data(usable: Usable, num_frames: int, workers: int, console: Console) -> Report:
    """Open every video of a data set, decode a test clip of it, and compare it with what the lists say.

    Args:
        usable: the data set, and the faulty lines of its lists.
        num_frames: T.
        workers: processes that decode.
        console: where a progress bar is shown.
    """
    data = usable.data
    listed = [(part, video) for part in PARTS for video in getattr(data, part)]
    counts = {part: len(getattr(data, part)) for part in PARTS}
    report = Report(data.name, num_frames, usable.place, counts, notes=[*usable.notes], unused=data.unused)
    if data.prepare is not None:
        data.prepare([video for _, video in listed])
    report.findings += [_bad_line(fault, data) for fault in usable.faults]
    folders = {_plain(name): label for label, name in enumerate(data.classes)}
    missing = {video.path for _, video in listed if not video.path.exists()}
    for part, video in listed:
        report.findings += _misplaced(part, video, data.classes, folders)
    report.findings += [Finding("missing", part, video.name, "there is no such video") for part, video in listed if video.path in missing]
    present = [(part, video) for part, video in listed if video.path not in missing]
    for (part, video), result in _decoded(present, num_frames, workers, console):
        _note(report, part, video, result)
    report.notes += [*_classes_without_videos(data), *_of_frames(usable, report)]
    report.findings.sort(key=lambda finding: (KINDS.index(finding.kind), PARTS.index(finding.part), finding.video))
    return report


def _decoded(
    videos: Sequence[tuple[str, Video]], num_frames: int, workers: int, console: Console
) -> Iterator[tuple[tuple[str, Video], Any]]:
    """Yield every video with its clip, or a `Failure`, under a progress bar."""
    requests = [
        DecodeRequest(video.path, num_frames, _SMALL, num_frames_stated=video.num_frames, frame_name=video.frame_name)
        for _, video in videos
    ]
    results = run_in_workers("adafocus_env.videos.readers:decode_clip", requests, num_workers=workers, time_limit=_TIME_LIMIT)
    columns = (TextColumn("check"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("videos"))
    with Progress(*columns, TimeRemainingColumn(compact=True, elapsed_when_finished=True), console=console, expand=True) as progress:
        for number, result in progress.track(results, total=len(videos)):
            yield videos[number], result


def _note(report: Report, part: str, video: Video, result: Any) -> None:
    if isinstance(result, Failure):
        reason = result.reason.removeprefix(f"cannot read the video {video.path}: ")
        report.findings.append(Finding("unreadable", part, video.name, reason))
        return
    if result.num_frames < report.num_frames:
        reason = f"{result.num_frames} frames, fewer than a clip's {report.num_frames}; the last one is repeated"
        report.findings.append(Finding("short", part, video.name, reason))
    if result.fps is not None:
        report.fps[round(result.fps, 2)] += 1
    report.short_sides[min(result.size)] += 1


def _bad_line(fault: Fault, data: DataSet) -> Finding:
    part = "test" if fault.file.name == Path(PUBLISHED[data.name].test_list).name else "train"
    return Finding("mislabelled" if fault.mislabelled else "bad line", part, fault.path, f"{fault.file.name} {fault}")


def _misplaced(part: str, video: Video, classes: Sequence[str], folders: Mapping[str, int]) -> list[Finding]:
    """Return a finding, where the path of a video has the folder of a class that is not among its labels."""
    found = [folders[name] for name in map(_plain, PurePosixPath(video.name).parts[:-1]) if name in folders]
    labels = video.labels or (video.label,)
    if not found or found[-1] in labels:
        return []
    said = ", ".join(f"{label} ({classes[label]})" for label in labels)
    return [Finding("mislabelled", part, video.name, f"its label is {said}, its folder that of {found[-1]} ({classes[found[-1]]})")]


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _classes_without_videos(data: DataSet) -> Iterator[str]:
    for part, videos in (("training", [*data.train, *data.val]), ("test", data.test)):
        seen = {label for video in videos for label in video.labels or (video.label,)}
        if unseen := [name for label, name in enumerate(data.classes) if label not in seen]:
            yield f"classes without a {part} video ({len(unseen)}): {', '.join(unseen[:10])}{', …' if len(unseen) > 10 else ''}"


def _of_frames(usable: Usable, report: Report) -> Iterator[str]:
    """Yield notes on extracted frames."""
    about = PUBLISHED.get(usable.data.name)
    if about is None or report.fps or not report.short_sides:
        return
    yield "frame rate: images do not tell it; the lists count frames at each video's own rate, so that other counts mean another rate"
    other = report.short_sides.total() - report.short_sides[about.short_side or 0]
    if about.short_side is not None and other:
        yield f"frames whose shorter side is not the published {about.short_side} pixels: in {other} videos"


def _writable(out: str) -> Path | None:
    """Return the file to write, tried before the work that leads to it."""
    if not out:
        return None
    path = Path(out).expanduser()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"out={out} cannot be written; give a file in a folder that exists")
    return path
