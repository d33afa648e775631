"""Read the text files of a data set.

A list of videos has one video per line, with its number of frames and its labels. A class file has one class name per line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from classifiers.errors import InputError, refuse_if, shortened

SHORTEST = 3  # frames; videos with fewer frames are dropped, as for the published results
NO_LABEL = -1  # in some lists, this value fills up the labels of a video
_NUMBERED = re.compile(r"(\d+)(?:\s*[,;:]|\s)\s*(\S.*)")  # a line with the number and the name of a class


@dataclass(frozen=True)
class ListFormat:
    """The format of a line: ``path, frames, label…``.

    Attributes:
        separator: a comma or a space. If the separator is a space, paths may also contain spaces, and the last two fields of a line are the
            number of frames and the label.
        max_labels: maximum number of different labels per video. (Lists may repeat a label for every occurrence in the video.)
    """

    separator: str = " "
    max_labels: int = 1


@dataclass(frozen=True)
class Entry:
    """The content of one line: the path (relative to the folder of videos or frames), the number of frames, and the labels in order."""

    path: str
    num_frames: int
    labels: tuple[int, ...]
    line: int


@dataclass(eq=False)
class Fault(Exception):
    """One malformed line of a file.

    Attributes:
        reason: description of the mistake, without the file name and the line number.
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
    """The content of a list: its usable lines, its malformed lines, and how many lines were dropped (because of short videos or
    repetitions)."""

    file: Path
    entries: list[Entry]
    faults: list[Fault]
    too_short: int
    repeated: int


def read_list(file: Path, form: ListFormat, num_classes: int) -> ListFile:
    """Read a list. Malformed lines do not raise an error; the result contains them. Empty lines are skipped.

    Args:
        file: the list, UTF-8.
        form: the format of the lines.
        num_classes: number of classes. All labels must be smaller than the number of classes.

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
    """Return one fault for every line of ``test`` whose video is also in ``train``."""
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
    """Describe the malformed lines of every file, up to twenty lines per file."""
    described: list[str] = []
    for file in dict.fromkeys(fault.file for fault in faults):
        lines = [f"  {fault}" for fault in faults if fault.file == file]
        how_many = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
        described += [f"{file} has {how_many} that cannot be used:", *shortened(lines, more="  and {} more")]
    return "\n".join(described)


def _entry(text: str | None, line: int, form: ListFormat, num_classes: int) -> Entry:
    """Parse a line. Raise `Fault` if the line is malformed."""
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
    """Return the names in a text file with one name per line.

    Either all lines have a number (``0,Archery`` or ``1 Archery``), or no line has a number.

    Args:
        path: the file, UTF-8.
        what: description of the file for the error message. The default is ``classes=PATH``, as the user typed it.

    Raises:
        InputError: if the file cannot be read as UTF-8, if it has an empty line between names, if it names a class twice, or if its numbers
            are neither 0, 1, 2, … nor 1, 2, 3, …. The message lists the lines.
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
    """Remove the numbers from the lines, and return the names and the mistakes in the numbers.

    If some line has no number, the lines are returned unchanged, without mistakes.
    """
    parts = [match.groups() for match in map(_NUMBERED.fullmatch, lines) if match]
    if not parts or len(parts) < len(lines):
        return lines, []
    first = min(int(parts[0][0]), 1)
    wrong = [
        f"line {row + 1} must have the number {row + first}, got {number}; sort the list by its numbers, which begin at 0 or 1"
        for row, (number, _) in enumerate(parts)
        if int(number) != row + first
    ]
    return [name for _, name in parts], wrong[:1]  # only the first mistake, because it shifts all later numbers


def _faults(names: list[str]) -> Iterator[str]:
    for number, name in enumerate(names, 1):
        if not name:
            yield f"line {number} is empty; give one name per line, in the order of the scores"
        elif (first := names.index(name) + 1) < number:
            yield f"line {number} names {name!r} again (first in line {first})"


def read_lines(path: Path | str, what: str) -> list[str | None]:
    """Return the lines of a text file without surrounding whitespace.

    A line that is not UTF-8 is returned as None. Empty lines at the end are left out.

    Args:
        path: the file. A byte order mark at the start of the file is skipped.
        what: description of the file for the error message.

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
