"""What a user sees of work that goes on: bars with what was measured last, and the time that is left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Display:
    """Progress bars and lines of text above them, on one console.

    Args:
        console: where to show them; by default the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
            expand=True,  # the bar takes what 80 columns leave
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, highlight=False)

    def bar(self, description: str, total: int, done: int = 0) -> Bar:
        """A new bar of ``total`` units, ``done`` of them already."""
        return Bar(self._progress, description, total, done)


class Bar:
    """One bar of a `Display`."""

    def __init__(self, progress: Progress, description: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, text="")

    def at(self, done: int, text: str | None = None) -> None:
        """Moves the bar to ``done`` units, with what was measured last."""
        if text is None:
            self._progress.update(self._task, completed=done)
        else:
            self._progress.update(self._task, completed=done, text=text)

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """Moves the bar on by ``count`` units."""
        self.at(int(self._progress.tasks[self._task].completed) + count, text)
