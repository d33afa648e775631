"""Measurements as JSON: values that JSON lacks made plain, and files of lines that a kill cannot spoil."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifiers.atomic_files import write_text
from classifiers.errors import InputError


def to_json(value: object, **options: Any) -> str:
    """JSON text of nested values. NumPy and torch values become Python's; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, **options)


def append_line(file: Path, values: Mapping[str, object], *, sync: bool = True) -> None:
    """Appends ``values`` as one line, keys in the order given.

    It is on the disk when this returns; without ``sync``, which takes some milliseconds, it outlives the process but not a power cut.

    Raises:
        InputError: the file cannot be written, because the disk is full for one.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(to_json(values) + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
    except OSError as problem:
        raise InputError(f"cannot write {file}: {problem.strerror or problem}; free some space and start again to go on") from problem


def whole_lines(file: Path) -> list[str]:
    """The lines of a file with their ends; none if there is no file. Half a line at the end, which a kill leaves, is passed over."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]


def drop_half_line(file: Path) -> None:
    """Takes half a line from the end of the file, so that the next one begins on its own."""
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        write_text(file, "".join(whole_lines(file)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
