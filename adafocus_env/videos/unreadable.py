"""Videos that cannot be read, and one warning for all of them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from adafocus_env import distributed
from adafocus_env.videos.text_lines import shortened

_log = logging.getLogger("adafocus_env")


class Unreadable:
    """Collects the videos that cannot be read, so that one warning names those of several splits; without it, every split warns at once.

        with Unreadable() as unreadable:
            train, test = (open_clips(data, split, num_frames=8, size=96, unreadable=unreadable) for split in ("train", "test"))
    """

    def __init__(self) -> None:
        self._new: list[tuple[str, str]] = []
        self._folders: list[Path] = []

    def __enter__(self) -> "Unreadable":
        return self

    def __exit__(self, *problem: object) -> None:
        self.warn()

    def add(self, failures: Iterable[tuple[str, str]], folder: Path | None = None) -> None:
        """Collect the (name, reason) of videos; ``folder`` stores that they failed, without one they are tried again."""
        new = list(failures)
        self._new += new
        if new and folder is not None:
            self._folders.append(folder)

    def warn(self) -> None:
        """Warn about the videos collected since the last call, if any; of several processes only the main one does."""
        if self._new and distributed.is_main():
            how = "1 video cannot be read and is" if len(self._new) == 1 else f"{len(self._new)} videos cannot be read and are"
            again = f"\nto try them again, change them or remove {', '.join(map(str, self._folders))}" if self._folders else ""
            _log.warning("%s left out:\n%s%s", how, listed(self._new), again)
        self._new, self._folders = [], []


def listed(failures: Sequence[tuple[str, str]]) -> str:
    """Return the first failures as lines of name and reason, and the number of the others."""
    more = "  and {} more; python -m agents.check_dataset names all of them"
    return "\n".join(shortened([f"  {name}: {reason}" for name, reason in failures], limit=10, more=more))
