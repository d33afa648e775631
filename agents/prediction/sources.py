"""Find the videos that the setting ``source`` names."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adafocus_env.videos.containers import VIDEO_SUFFIXES
from adafocus_env.videos.readers import IMAGE_SUFFIXES
from classifiers.errors import InputError, refuse_if


@dataclass(frozen=True)
class Sources:
    """The videos to predict.

    Attributes:
        files: Paths of the video files and folders of frames. The results contain the same paths.
        root: The folder to which the names of pictures are relative. If ``root`` is None, pictures are named after the file without its
            folder.
        single: True if ``source`` is one video; False if it is a folder of videos, a pattern or a list.
    """

    files: tuple[str, ...]
    root: Path | None
    single: bool

    def names(self) -> dict[str, str]:
        """Map every video to the name of its pictures, without suffix.

        The pictures have the name of the video without its suffix if no other video has this name. If several videos have the same name,
        the names of their pictures include the suffix or, if that is not enough, a number.
        """
        relative = {file: Path(file).relative_to(self.root) if self.root else Path(Path(file).name) for file in self.files}
        stems = Counter(path.with_suffix("") for path in relative.values())
        names = {file: str(path if stems[path.with_suffix("")] > 1 else path.with_suffix("")) for file, path in relative.items()}
        if len(set(names.values())) == len(names):
            return names
        return {file: f"{number:05d}-{Path(name).name}" for number, (file, name) in enumerate(names.items())}


def find_sources(source: str, out: Path) -> Sources:
    """Return the videos that ``source`` names.

    ``source`` is a file, a folder, a pattern, or ``-`` for a list on standard input. The subfolders of a folder are searched, too.

    Args:
        source: The value of the setting.
        out: The folder of the results, which is not searched for videos.

    Raises:
        InputError: If there are no videos.
    """
    path = Path(source).expanduser()
    if source == "-":
        listed = tuple(dict.fromkeys(line.strip() for line in sys.stdin if line.strip()))
        refuse_if(not listed, "source=- reads paths of videos from standard input, one per line, and there were none; pipe a list into it")
        return Sources(listed, None, single=False)
    if path.is_dir() and not _has_images(path):
        files = tuple(str(file) for file in _below(path, out.resolve()))
        refuse_if(not files, f"source={source} holds no videos: neither files ({', '.join(VIDEO_SUFFIXES)}) nor folders of images")
        return Sources(files, path, single=False)
    if path.exists():
        return Sources((str(path),), None, single=True)
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(source) else []  # noqa: PTH207  # absolute patterns, too
    found = tuple(str(file) for file in _videos(map(Path, matches), out.resolve()))
    if not found:
        problem = f"matches no videos ({len(matches)} files and folders)" if glob.has_magic(source) else "does not exist"
        raise InputError(f"source={source} {problem}; give a video, a folder, a pattern such as 'videos/*.mp4', or - for a list")
    return Sources(found, None, single=False)


def _below(folder: Path, out: Path) -> Iterator[Path]:
    """Yield the videos in a folder and its subfolders, in sorted order."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        here = [Path(root, name) for name in sorted([*files, *folders]) if not name.startswith(".")]
        videos = list(_videos(here, out))
        yield from videos
        folders[:] = [name for name in folders if Path(root, name) not in videos and not _hidden(Path(root, name), out)]


def _videos(paths: Iterable[Path], out: Path) -> Iterator[Path]:
    """Yield the paths of videos outside the folder ``out``. A folder of images is a video, too."""
    for path in paths:
        if not _hidden(path, out) and (_has_images(path) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES):
            yield path


def _hidden(path: Path, out: Path) -> bool:
    return path.name.startswith(".") or out in (path.resolve(), *path.resolve().parents)


def _has_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") for entry in folder.iterdir())
