"""The display of work in progress: one bar per stage, with the latest metrics and the remaining time. Without a terminal, log lines."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from adafocus_env.terminal import printable

REFRESHES = 2  # refreshes of the bars per second, on a terminal
PATIENCE = 30.0  # after so many seconds without output, a line about the work in progress is logged

FIGURES = {
    "return": "return {:.2f}", "loss": "loss {:.3f}", "accuracy": "accuracy {:.1%}", "val_top1": "validation {:.1%}",
    "val_hit_rate": "hits {:.1%}",
    "entropy": "entropy {:.1f}", "learning_rate": "lr {:.1e}",
}  # fmt: skip
"""The metrics that a bar shows: their keys in a line of metrics, with their names and formats on the bar."""


def figures(metrics: Mapping[str, object]) -> str:
    """Return, for a line of metrics, the text that a bar shows."""
    values = {key: metrics[key] for key in FIGURES if key in metrics}
    return " ".join(FIGURES[key].format(value) for key, value in values.items() if isinstance(value, int | float))


class Display:
    """Progress bars on a terminal, with lines of text above them.

    If the output is a file or a pipe, there are no bars, and only lines of text are written.

    On a terminal, every bar shows the finished share, the remaining time and, below them, the latest metrics. A finished bar is replaced by
    one line. In a file or a pipe, a bar writes a line after every tenth of its work and at its end. If nothing was written for `PATIENCE`
    seconds, the bar that moved last writes another line.

        with Display() as display:
            bar = display.bar("stage 0: glancer", 10, unit="epoch", clips=1800)
            bar.at(1, figures({"loss": 0.7, "accuracy": 0.5}))

    Args:
        console: The console to write to; by default the terminal.
        clock: Function that returns seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console()
        columns = TextColumn("{task.description}", markup=False), BarColumn(None), TaskProgressColumn(), TextColumn("{task.fields[speed]}")
        self.progress = _Bars(
            *columns, TimeRemainingColumn(), console=self.console, get_time=clock, refresh_per_second=REFRESHES,
            speed_estimate_period=math.inf,  # a unit may take minutes
            transient=True, expand=True,
        )  # fmt: skip
        self._bars: list[Bar] = []
        self._clock, self._said_at, self._closed = clock, clock(), threading.Event()
        self.moved: Bar | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.progress.start()
        else:
            self._closed.clear()
            threading.Thread(target=self._remind_now_and_then, daemon=True, name="progress").start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._closed.set()
        if self.console.is_terminal:
            self.progress.stop()
        for bar in self._bars:
            bar.interrupt()

    def _remind_now_and_then(self) -> None:
        while not self._closed.wait(PATIENCE / 10):
            self.remind()

    def remind(self) -> None:
        """Print the state of the bar that moved last if nothing was printed for `PATIENCE` seconds. (One unit of work may take minutes.)"""
        if self.moved is not None and self._clock() - self._said_at >= PATIENCE:
            self.say(self.moved.line())

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._said_at = self._clock()
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True, emoji=False)

    def bar(self, description: str, total: float, done: int = 0, *, unit: str = "", clips: float = 0) -> Bar:
        """Add a bar.

        Args:
            description: The work in progress.
            total: Number of units.
            done: Number of units that an earlier start finished.
            unit: Name of a unit, such as epoch or step. If ``unit`` is empty, no name is shown.
            clips: Clips that the networks process per unit, from which the speed in clips per second is computed; 0: no speed is shown.
        """
        self.progress.add_task(description, total=total, completed=done, visible=done < total, speed="", text="")
        bar = Bar(self, self.progress.tasks[-1], unit, clips)
        self._bars.append(bar)
        self.moved = bar if done < total else self.moved
        return bar


class Bar:
    """One bar of a `Display`, created by `Display.bar`."""

    def __init__(self, display: Display, task: Task, unit: str, clips: float) -> None:
        self._display, self._task, self._unit, self._clips = display, task, unit, clips
        self._text, self._began, self._ended = "", task.completed, not task.visible
        self._logged = task.completed

    def at(self, done: float, text: str | None = None) -> None:
        """Move the bar to ``done`` units, and show the latest metrics ``text``."""
        self._text, self._display.moved = self._text if text is None else text, self
        self._display.progress.update(self._task.id, completed=done)
        self._display.progress.update(self._task.id, speed=self._speed(), text=" ".join(filter(None, (self._count(), self._text))))
        if done >= (self._task.total or 0):
            self._end()
        elif not self._display.console.is_terminal:
            self._log()

    def advance(self, count: float = 1, text: str | None = None) -> None:
        """Advance the bar by ``count`` units."""
        self.at(self._task.completed + count, text)

    def line(self) -> str:
        """Return one line with the finished share, the metrics, the speed and the remaining time."""
        remaining = self._task.time_remaining
        left = "" if remaining is None else f"{timedelta(seconds=round(remaining))} left"
        details = ", ".join(filter(None, (self._task.fields["text"], self._task.fields["speed"], left)))
        return f"{self._task.description} {self._task.percentage:.0f}% {details}".rstrip()

    def interrupt(self) -> None:
        """Print the last state of the bar if the work was not finished."""
        if not self._ended and self._task.completed > self._began:
            self._display.say(self.line())

    def _end(self) -> None:
        seconds = self._task.elapsed or 0
        self._display.progress.update(self._task.id, visible=False)
        if not self._ended and (self._unit or seconds >= 1):  # short work without units needs no line
            count, text = (self._count(), self._text) if self._unit else (f"{self._task.total:,.0f}", "")
            self._display.say(f"{self._task.description}: {count} in {timedelta(seconds=round(seconds))} {text}".rstrip())
        self._ended, self._display.moved = True, None

    def _log(self) -> None:
        """Print a line after every tenth of the work, if the work has units."""
        tenths = 10 / (self._task.total or 1)
        if self._unit and int(self._task.completed * tenths) > int(self._logged * tenths):
            self._logged = self._task.completed
            self._display.say(self.line())
        else:
            self._display.remind()

    def _count(self) -> str:
        return f"{self._unit} {int(self._task.completed):,}/{self._task.total:,.0f}" if self._unit else ""

    def _speed(self) -> str:
        speed = (self._task.speed or 0) * self._clips
        return f"{speed:,.{0 if speed >= 10 else 1}f} clips/s" if speed else ""


class _Bars(Progress):
    """Progress bars with the metrics of each task on a line below its bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and the metrics of every visible task."""
        for task in self.tasks:
            if task.visible:
                yield self.make_tasks_table([task])
                if task.fields["text"]:
                    yield Text(f"  {task.fields['text']}")
