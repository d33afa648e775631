"""Compare the times of functions on a machine that is never completely idle, and write the results as JSON and Markdown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from torch.utils.benchmark.utils.timer import timer

HEADINGS = ["what", "against", "median (quartiles)", "by processor time", "aim", "reached"]
Act = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """The seconds that one call of a function took.

    Attributes:
        wall: Wall-clock time, including work on a GPU.
        cpu: Processor time of all threads of this process. On a shared machine, ``cpu`` is more reliable than ``wall``.
    """

    wall: float
    cpu: float

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, factor: float) -> Time:
        return Time(self.wall * factor, self.cpu * factor)


Times = dict[str, list[Time]]


def interleaved(acts: Mapping[str, Act], rounds: int) -> Times:
    """Measure the time of every function once per round. Before the first round, each function runs once without being timed.

    The order of the functions is reversed in every second round. `torch.utils.benchmark.Timer`, in contrast, calls one function many times
    before the next one. `interleaved` is made for ratios of two times: if the machine slows down for a while, all functions of a round slow
    down. Ratios of times from the same round therefore vary less than the times.
    """
    for act in acts.values():
        act()
    times: Times = {name: [] for name in acts}
    for number in range(rounds):
        for name in list(acts)[:: -1 if number % 2 else 1]:
            times[name].append(timed(acts[name]))
    return times


def timed(act: Act) -> Time:
    """Time one call of a function."""
    wall, cpu = timer(), time.process_time()  # `timer` waits for the GPU, if there is one
    act()
    return Time(timer() - wall, time.process_time() - cpu)


def repeated(times: int, act: Act) -> Act:
    """Return a function that calls ``act`` ``times`` times, for the case that one call of ``act`` is too short to be timed."""

    def acts() -> None:
        for _ in range(times):
            act()

    return acts


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return the median and quartiles of at least one number."""
        low, median, high = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)


def ratio(times: Times, what: str, over: str, clock: str = "wall") -> Spread:
    """For every round, divide the time of ``what`` by the time of ``over``. Return the median and the quartiles of these ratios."""
    pairs = zip(times[what], times[over], strict=True)
    return Spread.of([getattr(one, clock) / getattr(other, clock) for one, other in pairs])


@dataclass(frozen=True)
class Aim:
    """An upper limit (sign ≤) or a lower limit (sign ≥)."""

    sign: str
    limit: float

    def reached(self, value: float) -> bool:
        """Return whether a value is within the limit."""
        return value <= self.limit if self.sign == "≤" else value >= self.limit


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        name: Name of the measurement.
        value: The value, or the median and the quartiles if the value was measured several times.
        unit: Unit; "×" for ratios.
        over: Name of the reference.
        cpu: For a ratio, the same ratio computed from processor time instead of wall-clock time.
        aim: The limit that the value should reach, if any.
    """

    name: str
    value: Spread
    unit: str = "×"
    over: str = ""
    cpu: float | None = None
    aim: Aim | None = None

    @property
    def verdict(self) -> str:
        """Whether the aim is reached: "yes", "no", or empty if there is no aim."""
        return "" if self.aim is None else "yes" if self.aim.reached(self.value.median) else "no"

    def cells(self) -> list[str]:
        """Return the row of a table."""
        median, low, high = map(_short, (self.value.median, self.value.low, self.value.high))
        figure = f"{median}{'' if self.unit == '×' else ' '}{self.unit}" + (f" ({low} to {high})" if low != high else "")
        aim = "" if self.aim is None else f"{self.aim.sign} {self.aim.limit:g}"
        return [self.name, self.over, figure, "" if self.cpu is None else f"{_short(self.cpu)}×", aim, self.verdict]


@dataclass
class Section:
    """Measured numbers that belong together.

    Attributes:
        title: Title of the table.
        note: Description of the measurement.
        times: Seconds of every function in every round.
        rows: The measured numbers.
        failure: Traceback of a measurement that failed.
    """

    title: str
    note: str = ""
    times: Times = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failure: str = ""

    def ratio(self, what: str, against: str, *, name: str = "", over: str = "", aim: Aim | None = None) -> Section:
        """Add a row with the ratio of two times: the time of ``what`` divided by the time of ``against``. If ``name`` or ``over`` is set,
        the table shows it instead of ``what`` or ``against``."""
        wall, cpu = ratio(self.times, what, against), ratio(self.times, what, against, "cpu")
        self.rows.append(Row(name or what, wall, over=over or against, cpu=cpu.median, aim=aim))
        return self

    def figure(self, name: str, value: float, unit: str, *, over: str = "", aim: Aim | None = None) -> Section:
        """Add a number that was measured once."""
        self.rows.append(Row(name, Spread.of([value]), unit, over, aim=aim))
        return self

    def rate(self, what: str, count: int, unit: str, *, aim: Aim | None = None) -> Section:
        """Add the rate of the function ``what``, which processes ``count`` units per call."""
        self.rows.append(Row(what, Spread.of([count / time.wall for time in self.times[what]]), unit, aim=aim))
        return self

    def markdown(self) -> str:
        """Return the section as Markdown for RESULTS.md."""
        failure = ["```", self.failure.strip(), "```", ""] if self.failure else []
        rows = [f"| {' | '.join(cells)} |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *(row.cells() for row in self.rows))]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), *failure, *rows, ""])


def compare(title: str, note: str, pairs: Mapping[tuple[str, str], tuple[Act, Act, Aim | None]], rounds: int) -> Section:
    """Return a section with one ratio per pair of functions: the time of the first function divided by the time of the second.

    Args:
        title: Title of the table.
        note: Description of the measurement.
        pairs: A dictionary. Each key has the names of two functions; its value has these functions and the aim for the ratio of their
            times.
        rounds: Rounds of the comparison.
    """
    acts = {name: act for names, both in pairs.items() for name, act in zip(names, both[:2], strict=True)}
    section = Section(title, note, interleaved(acts, rounds))
    for (what, against), (_, _, aim) in pairs.items():
        section.ratio(what, against, aim=aim)
    return section


@dataclass
class Result:
    """The sections of one benchmark, with its settings and the machine."""

    name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    sections: list[Section]

    def write(self, folder: Path) -> None:
        """Write ``NAME.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a file that `write` wrote."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


def write_markdown(results: Iterable[Result], path: Path) -> None:
    """Write all results to one page."""
    blocks = [_OPENING]
    for result in results:
        about = ", ".join(f"{key} {value}" for key, value in {**result.machine, **result.settings}.items())
        blocks += [f"## {result.name}", f"`python -m benchmarks.{result.name}` ({about})", *(each.markdown() for each in result.sections)]
    path.write_text("\n\n".join(block.strip("\n") for block in blocks) + "\n", encoding="utf-8")


_OPENING = """# Results

Written by `python -m benchmarks` from `benchmarks/results/*.json`, which hold the time of every round. A figure with × is a time in
units of another one that was measured in the same run, round by round in turn: the median of the rounds and the quartiles. Where
other processes share the machine, the ratio by processor time is more reliable. CPU times are not claims."""


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
