"""The progress display for work that an environment does on demand: rendering videos, decoding clips and computing features.

On a terminal, the display is a bar; otherwise, a line is printed every `EVERY` seconds. Both go to stderr. Only the main process shows
progress, not the workers of a vector environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds


class Waiting:
    """Progress display of a task whose work is done in several pieces.

    Args:
        what: Name of the work, such as ``render videos``.
        total: Total number of units.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._said = what, total, time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[Callable[[int], None]]:
        """Show progress during one piece of the work.

        The yielded function must be called with the total number of units finished so far.
        """
        console = Console(stderr=True, quiet=parent_process() is not None)
        columns = TextColumn(self._what), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
        with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=self._total)

            def at(done: int) -> None:
                bar.update(task, completed=done)
                if not console.is_terminal and time.monotonic() - self._said >= EVERY:
                    self._said = time.monotonic()
                    console.print(f"{self._what}: {done:,} of {self._total:,}", highlight=False, markup=False, soft_wrap=True)

            yield at
