"""What a user sees of work that goes on: a bar with what was measured last, and the time that is left of it and of the whole run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESHES = 2
"""A second, on a terminal."""

PATIENCE = 600.0
"""Seconds after which a log gets a line of a bar whatever it has reached."""

FIGURES = {
    "return": "return {:.2f}", "loss": "loss {:.3f}", "accuracy": "accuracy {:.1%}", "val_top1": "validation {:.1%}",
    "entropy": "entropy {:.1f}", "learning_rate": "lr {:.1e}",
}  # fmt: skip


def figures(measured: Mapping[str, object]) -> str:
    """The measurements that a bar shows, in words: those of a line of metrics that `FIGURES` has."""
    found = {key: measured[key] for key in FIGURES if key in measured}
    return " ".join(FIGURES[key].format(value) for key, value in found.items() if isinstance(value, int | float))


@dataclass(frozen=True)
class Leg:
    """A part of a run that is known before it begins.

    Attributes:
        name: "stage 2: policy" or "round 1, stage 2: policy": a round makes no other kind of work of it.
        units: the total of its bar: epochs, for one.
        weight: what a unit costs, in any measure that the legs of a run share: frames that pass the networks, for one.
    """

    name: str
    units: float
    weight: float

    @property
    def kind(self) -> str:
        """What legs that take the same time for a unit have in common."""
        return _kind(self.name)


def _kind(name: str) -> str:
    return re.sub(r"^round \d+, ", "", name)


class Display:
    """Bars of what is under way, on a terminal; lines of text above them. A file or a pipe gets lines only.

    On a terminal every bar shows its share, the time that is left and, below, what was measured last; it leaves one line when it
    ends. Elsewhere a bar writes a line for every tenth that it has done, after `PATIENCE` seconds, and at its end.

    The time left of a bar is what its units took in this start, the mean of them, times the units that are missing. That of the
    whole run is the sum over the legs of a `plan`: a leg of a kind that has been measured in this start goes by what was
    measured ("about"); any other by its weight and the mean seconds that a unit of weight took ("roughly"). Work outside the plan
    does not count.

        display.plan([("stage 0: glancer", 10, 8 * 1800), ("stage 2: policy", 100_000, 1), ("round 1, stage 2: policy", 20_000, 1)])
        display.leg("stage 0: glancer")
        bar = display.bar("stage 0: glancer", 10, unit="epoch", clips=1800)
        bar.at(1, figures({"loss": 0.7, "accuracy": 0.5}))

    Args:
        console: where to show them; by default the terminal.
        clock: seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console()
        self.clock = clock
        self._bars: list[Bar] = []
        self._plan = Plan(())
        self._live = Live(get_renderable=self._shown, console=self.console, refresh_per_second=REFRESHES, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        for bar in self._bars:  # what an exception has cut short
            if bar.done > bar.began:
                self.say(bar.line())
        self._bars = []

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def plan(self, legs: Sequence[tuple[str, float, float]]) -> None:
        """Tells what the whole run will be: (name, units, what a unit costs) of every leg in order; see `Leg`."""
        self._plan = Plan([Leg(*leg) for leg in legs])

    def leg(self, name: str) -> None:
        """The leg of the plan that is under way from now on. Those before it are over; a bar of its kind is that of the leg."""
        self._plan.begin(name)

    def bar(self, description: str, total: float, done: float = 0, *, unit: str = "", clips: float = 0) -> Bar:
        """A new bar.

        Args:
            description: what is under way.
            total: units in all.
            done: those that an earlier start has done.
            unit: what a unit is called, if that shall be shown: epoch or step.
            clips: that pass the networks in a unit; 0: no clips a second are shown.
        """
        bar = Bar(self, description, total, done, unit, clips)
        self._plan.take(bar)
        if done < total:
            self._bars.append(bar)
        return bar

    def moved(self, bar: Bar) -> None:
        """Shows what has changed; bars call it."""
        if bar.done >= bar.total:
            if bar in self._bars:
                self._bars.remove(bar)
                if self._live.is_started:
                    self._live.refresh()  # lest the line stand above the bar that it replaces
                self._end(bar)
        elif not self.console.is_terminal and bar.is_due():
            left = self._plan.text()
            self.say(f"{bar.line()}; {left}" if left else bar.line())

    def _end(self, bar: Bar) -> None:
        if bar.unit or bar.seconds >= 1:  # what was done before ends at once, and is not worth a line
            self.say(f"{bar.description}: {bar.count()} in {_shown(bar.seconds)} {bar.text if bar.unit else ''}".rstrip())

    def _shown(self) -> RenderableType:
        rows = [row for bar in list(self._bars) for row in bar.rows()]
        left = self._plan.text()
        return Group(*rows, *([Text(left, style="dim")] if left and rows else []))


class Bar:
    """One bar of a `Display`, which makes it.

    Attributes:
        description: what is under way.
        total: units in all.
        done: units that are done; a part of one counts.
        began: ``done`` at the beginning.
        unit: what a unit is called.
        text: what was measured last.
        seconds: from the beginning to the last move.
    """

    def __init__(self, display: Display, description: str, total: float, done: float, unit: str, clips: float) -> None:
        self.description, self.total, self.done, self.began, self.unit = description, total, done, done, unit
        self.text, self.seconds = "", 0.0
        self._display, self._clips, self._start = display, clips, display.clock()
        self._told, self._told_at = done, self._start

    def at(self, done: float, text: str | None = None) -> None:
        """Moves the bar to ``done`` units, with what was measured last."""
        self.done, self.seconds = done, self._display.clock() - self._start
        self.text = self.text if text is None else text
        self._display.moved(self)

    def advance(self, count: float = 1, text: str | None = None) -> None:
        """Moves the bar on by ``count`` units."""
        self.at(self.done + count, text)

    def seconds_left(self) -> float | None:
        """Seconds until the end; None where no unit has been done yet."""
        if self.done <= self.began:
            return None
        each = self.seconds / (self.done - self.began)
        since = self._display.clock() - self._start - self.seconds
        missing = self.total - self.done
        # The unit that is under way may take longer than those before it; the others then still lie ahead.
        return each * max(missing - 1, 0) + max(each * min(missing, 1) - since, 0)

    def is_due(self) -> bool:
        """Whether a log should have a line: once a tenth, where there are units to speak of, and after `PATIENCE` seconds."""
        now, tenths = self._display.clock(), 10 / self.total
        if now - self._told_at < PATIENCE and not (self.unit and int(self.done * tenths) > int(self._told * tenths)):
            return False
        self._told, self._told_at = self.done, now
        return True

    def count(self) -> str:
        """How many units are done."""
        if not self.unit:
            return f"{self.total:,.0f}"
        return f"{self.unit} {int(self.done):,}/{self.total:,.0f}"

    def line(self) -> str:
        """All there is to say, on one line."""
        return f"{self.description} {self.done / self.total:.0%} " + ", ".join(part for part in (self._measured(), *self._times()) if part)

    def rows(self) -> Iterator[RenderableType]:
        """For a terminal."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        share = ", ".join([f"{self.done / self.total:4.0%}", *self._times()])
        grid.add_row(Text(self.description), ProgressBar(total=self.total, completed=self.done), Text(share))
        yield grid
        if measured := self._measured():
            yield Text(f"  {measured}")

    def _measured(self) -> str:
        return " ".join(part for part in (self.count() if self.unit else "", self.text) if part)

    def _times(self) -> list[str]:
        """Clips a second, and the time that is left."""
        speed = (self.done - self.began) * self._clips / self.seconds if self.seconds else 0
        left = self.seconds_left()
        times = [f"{speed:,.{0 if speed >= 10 else 1}f} clips/s" if speed else "", "" if left is None else f"{_shown(left)} left"]
        return [time for time in times if time]


class Plan:
    """The legs of a run, and what those behind us tell about those ahead.

    Args:
        legs: in order.
    """

    def __init__(self, legs: Sequence[Leg]) -> None:
        self._legs = list(legs)
        self._at = -1
        self._bars: dict[int, Bar] = {}

    def begin(self, name: str) -> None:
        """The leg of that name is under way."""
        self._at = [leg.name for leg in self._legs].index(name)

    def take(self, bar: Bar) -> None:
        """The bar is that of the leg under way, if it is of its kind."""
        if self._at >= 0 and _kind(bar.description) == self._legs[self._at].kind:
            self._bars[self._at] = bar

    def seconds_left(self) -> tuple[float, bool] | None:
        """Seconds until the end, and whether all that is left is of a kind that has been measured; None before any has."""
        measured = [(self._legs[number], bar.done - bar.began, bar.seconds) for number, bar in self._bars.items() if bar.done > bar.began]
        if not measured:
            return None
        weighed = sum(leg.weight * units for leg, units, _ in measured)
        mean = sum(seconds for _, _, seconds in measured) / weighed if weighed else 0.0
        known: dict[str, float] = {}
        for kind in {leg.kind for leg, _, _ in measured}:
            same = [(units, seconds) for leg, units, seconds in measured if leg.kind == kind]
            known[kind] = sum(seconds for _, seconds in same) / sum(units for units, _ in same)
        bar, leg = self._bars.get(self._at), self._legs[self._at]
        now = bar.seconds_left() if bar else None
        ahead = [(leg, leg.units) for leg in self._legs[self._at + 1 :]]
        if now is None:  # its first unit is not done yet
            ahead.append((leg, bar.total - bar.done if bar else leg.units))
        seconds = sum(units * known.get(leg.kind, leg.weight * mean) for leg, units in ahead)
        return (now or 0.0) + seconds, all(leg.kind in known for leg, _ in ahead)

    def text(self) -> str:
        """For the user; empty where there is no plan, nothing of it has begun, or all of it is done."""
        if self._at < 0 or len(self._legs) < 2:
            return ""
        left = self.seconds_left()
        if left is not None and not left[0] and self._at == len(self._legs) - 1:
            return ""
        when = "time left not known yet" if left is None else f"{'about' if left[1] else 'roughly'} {_shown(left[0])} left"
        return f"whole run: part {self._at + 1} of {len(self._legs)}, {when}"


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
