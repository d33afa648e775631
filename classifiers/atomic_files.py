"""Write files atomically, so that a file is either complete or absent."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from classifiers.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. If the body succeeds, the temporary file replaces ``path`` atomically.

    A reader sees either the complete old file or the complete new file. If the body raises an error, the old file stays and the temporary
    file is removed.

    Args:
        path: The file.

    Raises:
        InputError: If the disk is full, or if the folder cannot be written or was removed in the meantime. An old file is unchanged.
    """
    temporary, made = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part"), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        made = True
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as problem:
        if made and not temporary.exists():
            raise removed(path.parent) from problem
        raise InputError(f"cannot write {path}: {problem.strerror or problem}; free some space or choose another folder") from problem
    finally:
        if made:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and its subfolders. No other process may write there."""
    for leftover in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def removed(path: Path | str) -> InputError:
    """Return the error to raise if ``path`` existed before and no longer exists."""
    return InputError(f"{path} was removed while this command was using it; start the same command again, which recreates missing files")


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text``, encoded as UTF-8, atomically; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until the content of the file is on the disk, so that a later rename never exposes an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
