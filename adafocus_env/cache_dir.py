"""The cache folder, and file locks that only one process can hold at a time."""

import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from classifiers.atomic_files import removed
from classifiers.errors import InputError

PRIVATE = 0o700
_log = logging.getLogger("adafocus_env")


def cache_folder(name: str = "") -> Path:
    """Return the cache folder, which is ``$ADAFOCUS_CACHE`` or the user's cache folder, or its subfolder ``name``.

    The folder is created if it is missing. All files in the cache folder can be created again.

    Commands trust the files in the cache. Folders that this function creates can therefore be read and written only by the user, and so is
    the default folder from now on if it was open to others. A folder in ``$ADAFOCUS_CACHE`` that others can write to is used with a
    warning, because a group may share its cache; its subfolders get the usual permissions.

    Raises:
        InputError: if the folder cannot be created or written.
    """
    given = os.environ.get("ADAFOCUS_CACHE")
    folder = Path(given or platformdirs.user_cache_dir("adafocus-env")).expanduser()
    try:
        make_writable(folder, PRIVATE)
        about = folder.stat()
        if not given and about.st_uid == os.getuid() and stat.S_IMODE(about.st_mode) != PRIVATE:
            folder.chmod(PRIVATE)
            about = folder.stat()
        if shared := _who_else(about):
            _warn_of(folder, shared)
        if name:
            folder /= name
            folder.mkdir(mode=0o777 if shared else PRIVATE, exist_ok=True)
    except OSError as problem:
        raise _not_writable(folder, problem) from problem
    return folder


def _who_else(about: os.stat_result) -> str:
    """Return in words who else can change the files of a folder; empty if only the user and root can."""
    if about.st_uid not in (os.getuid(), 0):
        return f"belongs to another user (id {about.st_uid})"
    return f"can be written by other users (mode {stat.S_IMODE(about.st_mode):o})" if about.st_mode & 0o022 else ""


@functools.cache
def _warn_of(folder: Path, shared: str) -> None:
    """Warn once about a cache folder that others can write to."""
    _log.warning(
        "the cache folder %s %s. They can change the clips and classifiers that your commands read. If you do not trust them, set the "
        "environment variable ADAFOCUS_CACHE to a folder of yours, or change the permissions (chmod 700)",
        folder, shared,
    )  # fmt: skip


def make_writable(folder: Path, mode: int = 0o777) -> None:
    """Create ``folder`` with the permissions ``mode`` if it is missing, and check that it can be written.

    Raises:
        OSError: if it cannot be created or written.
    """
    folder.mkdir(mode, parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Run the body, which writes to a folder below the cache folder, and convert any `OSError` to an `InputError`.

    Raises:
        InputError: if the disk is full, or the folder cannot be written or was removed in the meantime.
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
        InputError: if one of the files was removed.
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
    """Hold the lock file ``path`` while the body runs. A second process logs that it waits, and continues when the first process is done.

    If a process dies, the system releases its lock, so that the next process can continue.

    Args:
        path: the lock file, created if missing.
        what: name of the files that the body creates. The name appears in the log message of a waiting process.

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
