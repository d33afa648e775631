"""The cache folder, and locks for one process at a time in it."""

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
    """Return the folder of everything that can be made again: ``$ADAFOCUS_CACHE``, or the user's cache folder; made if missing.

    Raises:
        InputError: the folder cannot be made or written.
    """
    folder = Path(os.environ.get("ADAFOCUS_CACHE") or platformdirs.user_cache_dir("adafocus-env")).expanduser()
    try:
        make_writable(folder)
    except OSError as problem:
        raise _not_writable(folder, problem) from problem
    return folder


def make_writable(folder: Path) -> None:
    """Make ``folder`` if it is missing.

    Raises:
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn any error of the system while writing to ``folder``, below the cache folder, into an `InputError`.

    Raises:
        InputError: the disk is full, the folder cannot be written, or it was removed meanwhile.
    """
    try:
        yield
    except FileNotFoundError as problem:
        raise removed(problem.filename or folder) from problem
    except OSError as problem:
        raise _not_writable(folder, problem) from problem


def check_there(*files: Path | None) -> None:
    """Check that files which this process has made or found still exist.

    Raises:
        InputError: one was removed meanwhile.
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
    """Hold the lock file ``path``; a second process logs what it waits for, and continues when the first one is done.

    The system frees the lock of a process that dies, so that the next one takes over.

    Args:
        path: the lock file, made if missing.
        what: what is being made, for the message.

    Raises:
        InputError: the lock file cannot be made.
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
