"""The report of a data set's validation, as a table for the terminal and as JSON."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from adafocus_env.videos.text_lines import shortened
from classifiers.atomic_files import write_text

PARTS = ("train", "val", "test")
KINDS = ("missing", "unreadable", "mislabelled", "bad line", "short")


@dataclass(frozen=True)
class Finding:
    """One finding: its kind (of `KINDS`), the split, the video's name, and the reason."""

    kind: str
    part: str
    video: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.part, self.video, self.reason)))


@dataclass
class Report:
    """All findings.

    Attributes:
        data: name of the data set.
        num_frames: T.
        place: the folder of videos or frames of a published set; None otherwise.
        videos: number of videos, by split.
        findings: in the order that they were found.
        fps: number of videos, by frames per second; folders of frames are not counted.
        short_sides: number of videos, by the shorter side of their frames in pixels.
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
        """Number of findings that prevent the use of a video as listed: all but the short ones."""
        return sum(finding.kind != "short" for finding in self.findings)

    def count(self, part: str, kind: str) -> int:
        """Return the number of findings of a kind in a split."""
        return sum((finding.part, finding.kind) == (part, kind) for finding in self.findings)

    def show(self, console: Console, out: Path | None) -> None:
        """Print the table, rates and sizes, notes and the first findings; ``out`` is the file with all of them."""
        columns = (Column(heading, justify="right") for heading in ("videos", *KINDS))
        table = Table("part", *columns, title=f"{self.data}: clips of {self.num_frames} frames")
        for part in PARTS:
            table.add_row(part, str(self.videos[part]), *(str(self.count(part, kind) or "–") for kind in KINDS))
        console.print(table)
        for line in self._lines(out):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def write(self, path: Path) -> None:
        """Write everything as JSON.

        Raises:
            InputError: the file cannot be written.
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
        """Yield rates and sizes, notes, the first findings of each kind, and where the others are."""
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
    """Describe the median, and the values that differ from it."""
    median = statistics.median_low(counts.elements())
    others = [(value, number) for value, number in counts.most_common() if value != median]
    if not others:
        return f"{median:g} {unit}"
    lookup = ", ".join(f"{value:g} in {number}" for value, number in others[:5]) + (", …" if len(others) > 5 else "")
    return f"{median:g} {unit} (median); {sum(number for _, number in others)} of {counts.total()} videos differ: {lookup}"
