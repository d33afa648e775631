"""JSON text of measurements, and files of JSON lines that a killed process cannot corrupt."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifiers.atomic_files import write_text
from classifiers.errors import InputError


def to_json(value: object, **options: Any) -> str:
    """Return JSON text of nested values. NumPy and torch values become Python's; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_jsonable(value), allow_nan=False, ensure_ascii=False, **options)


def append_line(file: Path, values: Mapping[str, object], *, sync: bool = True) -> None:
    """Append ``values`` as one line, keys in the order given.

    The line is on the disk when this returns; without ``sync``, which takes some milliseconds, it survives the process but not a
    power failure.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(to_json(values) + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
    except OSError as problem:
        raise InputError(f"cannot write {file}: {problem.strerror or problem}; free some space and start again to go on") from problem


def complete_lines(file: Path) -> list[str]:
    """Return the lines of a file with their ends, without an incomplete last line, which a kill leaves; none if there is no file."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]


def drop_incomplete_line(file: Path) -> None:
    """Remove an incomplete last line, so that the next line starts in a new one."""
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        write_text(file, "".join(complete_lines(file)))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
