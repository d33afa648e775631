"""The progress display of an environment that renders videos, decodes clips or computes features when they are first needed.

It is a bar on a terminal, otherwise a line every `EVERY` seconds, on stderr. Only the main process shows it, not the workers of a vector
environment.
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
    """Progress of work that is done in several pieces.

    Args:
        what: Name of the work, such as ``render videos``.
        total: Total number of units.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._said = what, total, time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[Callable[[int], None]]:
        """Show one piece of the work. Call the yielded function with the total number of finished units."""
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
