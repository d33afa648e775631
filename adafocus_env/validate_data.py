"""Validate a data set before training: open every video, decode the frames of its test clip, and write a report.
"""

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from adafocus_env.dataset_registry import DataSettings, usable_data
from adafocus_env.terminal import printable
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.list_files import Fault
from adafocus_env.videos.published import PUBLISHED, Usable
from adafocus_env.videos.readers import DecodedClip, DecodeRequest
from classifiers.atomic_files import write_text
from classifiers.errors import refuse_if, shortened

PARTS = ("train", "val", "test")
KINDS = ("missing", "unreadable", "mislabelled", "bad line", "short")
_TIME_LIMIT = 30.0  # seconds per video
_SMALL = 32  # shorter side in pixels of the frames that workers return; the frames may be small, because their content is not used


@dataclass(frozen=True)
class Finding:
    """One finding: its kind (a name in `KINDS`), the split, the name of the video, and the reason."""

    kind: str
    part: str
    video: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.part, self.video, self.reason)))


@dataclass
class Report:
    """All findings on a data set.

    Attributes:
        data: name of the data set.
        num_frames: T, frames per clip.
        place: the folder of videos or frames of a published data set; None for other data sets.
        videos: number of videos by split.
        findings: the findings in order.
        fps: number of videos by frame rate in frames per second. Folders of frames are not counted.
        short_sides: number of videos by the shorter side of their frames in pixels.
        notes: further remarks.
        unused: see `adafocus_env.videos.dataset.DataSet`.
    """

    data: str
    num_frames: int
    place: Path | None
    videos: Mapping[str, int]
    findings: list[Finding] = field(default_factory=list)
    fps: Counter[float] = field(default_factory=Counter)
    short_sides: Counter[int] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    unused: Sequence[str] = ()

    @property
    def num_faults(self) -> int:
        """Number of findings that mean that a video cannot be used as listed. All findings count except short videos."""
        return sum(finding.kind != "short" for finding in self.findings)

    def count(self, part: str, kind: str) -> int:
        """Return the number of findings of a kind in a split."""
        return sum((finding.part, finding.kind) == (part, kind) for finding in self.findings)

    def show(self, console: Console, out: Path | None) -> None:
        """Print the table of findings, frame rates and sizes, notes, the first findings, and the name of the file ``out`` with all
        findings."""
        columns = (Column(heading, justify="right") for heading in ("videos", *KINDS))
        table = Table("part", *columns, title=f"{self.data}: clips of {self.num_frames} frames")
        for part in PARTS:
            table.add_row(part, str(self.videos[part]), *(str(self.count(part, kind) or "–") for kind in KINDS))
        console.print(table)
        for line in self._lines(out):
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True, emoji=False)

    def write(self, path: Path) -> None:
        """Write everything as JSON.

        Raises:
            InputError: if the file cannot be written.
        """
        content = {
            "data": self.data,
            "num_frames": self.num_frames,
            "place": None if self.place is None else str(self.place),
            "videos": dict(self.videos),
            "counts": {part: {kind: self.count(part, kind) for kind in KINDS} for part in PARTS},
            "fps": dict(sorted(self.fps.items())),
            "short_sides": dict(sorted(self.short_sides.items())),
            "notes": self.notes,
            "unused": list(self.unused),
            "findings": [asdict(finding) for finding in self.findings],
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    def _lines(self, out: Path | None) -> Iterator[str]:
        """Yield lines with frame rates and sizes, notes, the first findings of each kind, and the location of the other findings."""
        if self.place is not None:
            yield f"read from: {self.place}"
        if self.fps:
            yield f"frame rate: {_spread(self.fps, 'fps')}"
        if self.short_sides:
            yield f"shorter side: {_spread(self.short_sides, 'pixels')}"
        yield from self.notes
        found: dict[str, Sequence[object]] = {f"{kind}:": [each for each in self.findings if each.kind == kind] for kind in KINDS}
        found[f"not used ({len(self.unused)}):"] = self.unused
        for heading, entries in found.items():
            if entries:
                yield heading
                yield from shortened([f"  {entry}" for entry in entries], limit=10, more="  and {} more")
        where = f"all of it is in {out}" if out else "out=FILE writes all of it to a file"
        yield where if self.findings or self.unused else "nothing was found"


def _spread(counts: Counter[float] | Counter[int], unit: str) -> str:
    """Describe in words the median of the counted values, and the values that differ from the median."""
    median = statistics.median_low(counts.elements())
    others = [(value, number) for value, number in counts.most_common() if value != median]
    if not others:
        return f"{median:g} {unit}"
    lookup = ", ".join(f"{value:g} in {number}" for value, number in others[:5]) + (", …" if len(others) > 5 else "")
    return f"{median:g} {unit} (median); {sum(number for _, number in others)} of {counts.total()} videos differ: {lookup}"


def validate_data(data: DataSettings, workers: int | None, out: str) -> int:
    """Print a report on a data set.

    Args:
        data: the data set and T.
        workers: number of decoding processes; None: one per CPU core.
        out: path of a JSON file to which all findings are written; empty: no file.

    Returns:
        1 if some video cannot be used as the lists describe it, otherwise 0.

    Raises:
        InputError: if the data set is unknown, or a file cannot be read or written.
    """
    path, workers = _writable(out), workers or os.cpu_count() or 1
    report = check_data(usable_data(replace(data, workers=workers)), data.num_frames, workers, Console(stderr=True))
    report.show(Console(), path)
    if path is not None:
        report.write(path)
    return int(report.num_faults > 0)


def check_data(usable: Usable, num_frames: int, workers: int, console: Console) -> Report:
    """Open every video of a data set, decode its test clip, and compare it with the lists.

    Args:
        usable: the data set, and the faulty lines of its lists.
        num_frames: T, frames per clip.
        workers: number of decoding processes.
        console: shows a progress bar.
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
    """Yield every video together with its decoded clip or a `Failure`, and show a progress bar."""
    requests = [
        DecodeRequest(video.path, num_frames, _SMALL, num_frames_stated=video.num_frames, frame_name=video.frame_name)
        for _, video in videos
    ]
    results = run_in_workers(
        "adafocus_env.videos.readers:decode_clip", requests, num_workers=workers, time_limit=_TIME_LIMIT, result=DecodedClip
    )
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
    """Return a finding if a folder in the path of a video is named after a class that is not among the video's labels."""
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
    yield "frame rate: not stored in images; the lists count frames at the rate of the video, so that other counts indicate another rate"
    other = report.short_sides.total() - report.short_sides[about.short_side or 0]
    if about.short_side is not None and other:
        yield f"frames whose shorter side is not the published {about.short_side} pixels: in {other} videos"


def _writable(out: str) -> Path | None:
    """Return the path of the file to write.

    This function is called before the work starts, to check early that the file can be written.
    """
    if not out:
        return None
    path = Path(out).expanduser()
    refuse_if(path.is_dir() or not os.access(path.parent, os.W_OK), f"out={out} cannot be written; give a file in a folder that exists")
    return path
