"""The text files of a data set: lists of videos with numbers of frames and labels, one video per line, and lists of class names."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from classifiers.errors import InputError, refuse_if, shortened

SHORTEST = 3  # frames; shorter videos are dropped, as for the published results
NO_LABEL = -1  # pads the labels of a video in some lists
_NUMBERED = re.compile(r"(\d+)(?:\s*[,;:]|\s)\s*(\S.*)")  # the line of a class with its number


@dataclass(frozen=True)
class ListFormat:
    """The format of a line: ``path, frames, label…``.

    Attributes:
        separator: a comma or a space. With a space, paths may contain spaces, and frames and label are the last two fields.
        max_labels: maximum number of different labels per video. (Lists may repeat a label for every occurrence in the video.)
    """

    separator: str = " "
    max_labels: int = 1


@dataclass(frozen=True)
class Entry:
    """The content of a line: the path relative to the folder of videos or frames, the number of frames, and the labels in order."""

    path: str
    num_frames: int
    labels: tuple[int, ...]
    line: int


@dataclass(eq=False)
class Fault(Exception):
    """One malformed line of a file.

    Attributes:
        reason: description of the mistake, without file and line.
        mislabelled: whether the labels are wrong.
        file: the file.
        line: number of the line, starting at 1.
        path: path of the video in the line.
    """

    reason: str
    mislabelled: bool = False
    file: Path = Path()
    line: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class ListFile:
    """The content of a list: usable lines, malformed lines, and the numbers of dropped lines (short videos, repetitions)."""

    file: Path
    entries: list[Entry]
    faults: list[Fault]
    too_short: int
    repeated: int


def read_list(file: Path, form: ListFormat, num_classes: int) -> ListFile:
    """Read a list. Malformed lines are collected without an error, and empty lines are skipped.

    Args:
        file: the list, UTF-8.
        form: the format of the lines.
        num_classes: number of classes; labels must be smaller.

    Raises:
        InputError: if the file cannot be read.
    """
    entries: dict[str, Entry] = {}
    faults: list[Fault] = []
    too_short = repeated = 0
    for line, text in enumerate(read_lines(file, f"the list {file}"), 1):
        if text == "":
            continue
        try:
            entry = _entry(text, line, form, num_classes)
            known = entries.setdefault(entry.path, entry) if entry.num_frames >= SHORTEST else None
            if known is not None and known.labels != entry.labels:
                raise Fault(f"{entry.path} has other labels than in line {known.line}", mislabelled=True)
        except Fault as fault:
            fields = _fields(text or "", form)
            faults.append(replace(fault, file=file, line=line, path=fields[0] if len(fields) > 2 else ""))
        else:
            too_short += known is None
            repeated += known not in (None, entry)
    return ListFile(file, list(entries.values()), faults, too_short, repeated)


def shared_videos(train: ListFile, test: ListFile) -> list[Fault]:
    """Return faults for the lines of ``test`` whose videos are also in ``train``."""
    lines = {entry.path: entry.line for entry in train.entries}
    return [
        Fault(
            f"{entry.path} is also in {train.file.name} (line {lines[entry.path]}); remove one of them",
            file=test.file,
            line=entry.line,
            path=entry.path,
        )
        for entry in test.entries
        if entry.path in lines
    ]


def describe(faults: Sequence[Fault]) -> str:
    """Describe the malformed lines by file, up to twenty per file."""
    described: list[str] = []
    for file in dict.fromkeys(fault.file for fault in faults):
        lines = [f"  {fault}" for fault in faults if fault.file == file]
        how_many = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
        described += [f"{file} has {how_many} that cannot be used:", *shortened(lines, more="  and {} more")]
    return "\n".join(described)


def _entry(text: str | None, line: int, form: ListFormat, num_classes: int) -> Entry:
    """Parse a line; raise `Fault` if it is malformed."""
    if text is None:
        raise Fault("it is not valid UTF-8; save the list as UTF-8")
    fields = _fields(text, form)
    if len(fields) < 3:
        raise Fault(f"{len(fields)} of the 3 fields {form.separator.join(['path', 'frames', 'label'])!r} in {text!r}")
    if not _is_number(fields[1]):
        raise Fault(f"the number of frames must be an integer of at least 0, got {fields[1]!r} in {text!r}")
    path = PurePosixPath(fields[0])
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in fields[0]:
        raise Fault(f"the path must lie below the folder of videos or frames, got {fields[0]!r}")
    return Entry(str(path), int(fields[1]), _labels(fields[2:], form, num_classes), line)


def _fields(text: str, form: ListFormat) -> list[str]:
    return text.rsplit(None, 2) if form.separator == " " else [field.strip() for field in text.split(form.separator)]


def _labels(fields: list[str], form: ListFormat, num_classes: int) -> tuple[int, ...]:
    """Return the distinct labels in order."""
    if wrong := [text for text in fields if not _is_number(text.removeprefix("-"))]:
        raise Fault(f"the label must be an integer, got {wrong[0]!r}", mislabelled=True)
    numbers = [int(text) for text in fields]
    labels = tuple(dict.fromkeys(numbers[:1] + [number for number in numbers[1:] if number != NO_LABEL]))
    if min(labels) < 0:
        raise Fault(f"the label {min(labels)} is negative; labels begin at 0", mislabelled=True)
    if max(labels) >= num_classes:
        raise Fault(f"the label {max(labels)} is beyond the {num_classes} classes of the class file", mislabelled=True)
    if len(labels) > form.max_labels:
        raise Fault(f"{len(labels)} different labels, where a video has at most {form.max_labels}", mislabelled=True)
    return labels


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def read_class_names(path: Path | str, what: str | None = None) -> tuple[str, ...]:
    """Return the names in a text file, one per line. Either all lines are numbered (``0,Archery`` or ``1 Archery``) or none.

    Args:
        path: the file, UTF-8.
        what: description of the file for the message; by default ``classes=PATH``, as the user typed it.

    Raises:
        InputError: if the file cannot be read as UTF-8, has an empty line between names, names a class twice, or has numbers other than
            0, 1, 2, … or 1, 2, 3, …. The message lists the lines.
    """
    what = what or f"classes={path}"
    lines = read_lines(path, what)
    refuse_if(
        foreign := [f"line {number} is not valid UTF-8" for number, line in enumerate(lines, 1) if line is None],
        f"{what} cannot be read ({'; '.join(shortened(foreign))}); give a UTF-8 text file with one name per line",
    )
    names, wrong = _without_numbers([line for line in lines if line is not None])
    refuse_if(faults := [*wrong, *_faults(names)], f"{what}: {'; '.join(shortened(faults))}")
    return tuple(names)


def _without_numbers(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the names without numbers, and the mistakes in the numbers, if every line has one."""
    parts = [match.groups() for match in map(_NUMBERED.fullmatch, lines) if match]
    if not parts or len(parts) < len(lines):
        return lines, []
    first = min(int(parts[0][0]), 1)
    wrong = [
        f"line {row + 1} must have the number {row + first}, got {number}; sort the list by its numbers, which begin at 0 or 1"
        for row, (number, _) in enumerate(parts)
        if int(number) != row + first
    ]
    return [name for _, name in parts], wrong[:1]  # a wrong number shifts all later ones


def _faults(names: list[str]) -> Iterator[str]:
    for number, name in enumerate(names, 1):
        if not name:
            yield f"line {number} is empty; give one name per line, in the order of the scores"
        elif (first := names.index(name) + 1) < number:
            yield f"line {number} names {name!r} again (first in line {first})"


def read_lines(path: Path | str, what: str) -> list[str | None]:
    """Return the lines without surrounding whitespace, and None for lines that are not UTF-8. Empty lines at the end are left out.

    Args:
        path: the file; a byte order mark at its start is skipped.
        what: description of the file for the message.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"{what} cannot be read ({problem.strerror or problem}); give a UTF-8 text file") from problem
    return [_decoded(line) for line in data.removeprefix(b"\xef\xbb\xbf").rstrip().splitlines()]


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        return None
