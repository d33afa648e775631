"""The cache folder, and locks that admit one process at a time."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from classifiers.atomic_files import removed
from classifiers.errors import InputError

_log = logging.getLogger("adafocus_env")


def cache_folder() -> Path:
    """Return the folder of files that can be recreated: ``$ADAFOCUS_CACHE``, or the user's cache folder. It is created if missing.

    Raises:
        InputError: if the folder cannot be created or written.
    """
    folder = Path(os.environ.get("ADAFOCUS_CACHE") or platformdirs.user_cache_dir("adafocus-env")).expanduser()
    try:
        make_writable(folder)
    except OSError as problem:
        raise _not_writable(folder, problem) from problem
    return folder


def make_writable(folder: Path) -> None:
    """Create ``folder`` if it is missing, and check that it can be written.

    Raises:
        OSError: if it cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Convert any `OSError` while writing to ``folder``, below the cache folder, to an `InputError`.

    Raises:
        InputError: if the disk is full, the folder cannot be written, or the folder was removed meanwhile.
    """
    try:
        yield
    except FileNotFoundError as problem:
        raise removed(problem.filename or folder) from problem
    except OSError as problem:
        raise _not_writable(folder, problem) from problem


def check_there(*files: Path | None) -> None:
    """Check that files that existed before still exist.

    Raises:
        InputError: if a file was removed meanwhile.
    """
    if missing := [file for file in files if file is not None and not file.exists()]:
        raise removed(missing[0])


def _not_writable(folder: Path, problem: OSError) -> InputError:
    return InputError(
        f"cannot write to the cache folder {folder}: {problem.strerror or problem}; "
        "free some space, or set the environment variable ADAFOCUS_CACHE, which moves it, to another folder"
    )


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``. A second process logs that it waits, and continues when the first process is done.

    The system releases the lock of a process that dies, so that the next process continues.

    Args:
        path: the lock file, created if missing.
        what: name of the files being created, for the message.

    Raises:
        InputError: if the lock file cannot be created.
    """
    lock = filelock.FileLock(path)
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.warning("another process is making %s; waiting for it", what)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
