"""What a benchmark finds: sections of rows, as tables, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.clock import Spread, Times, ratio


@dataclass(frozen=True)
class Aim:
    """A figure to reach."""

    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"

    def reached(self, value: float) -> bool:
        """Whether ``value`` does."""
        return value <= self.limit if self.sign == "≤" else value >= self.limit


def at_most(limit: float) -> Aim:
    """The figure may not be above ``limit``."""
    return Aim("≤", limit)


def at_least(limit: float) -> Aim:
    """The figure may not be below ``limit``."""
    return Aim("≥", limit)


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: median, and quartiles where it was measured several times.
        unit: "×" for ratios.
        over: what it is compared with.
        cpu: the same ratio by processor time.
        aim: what it should be.
    """

    name: str
    value: Spread
    unit: str = "×"
    over: str = ""
    cpu: float | None = None
    aim: Aim | None = None

    @classmethod
    def of(cls, data: dict[str, Any]) -> Row:
        """From JSON."""
        aim = None if data["aim"] is None else Aim(**data["aim"])
        return cls(**{**data, "value": Spread(**data["value"]), "aim": aim})

    @property
    def verdict(self) -> str:
        """Whether the aim is reached: yes, no, or nothing where there is none."""
        return "" if self.aim is None else "yes" if self.aim.reached(self.value.median) else "no"

    def cells(self) -> list[str]:
        """The row of a table."""
        low, high = _short(self.value.low), _short(self.value.high)
        spread = f" ({low} to {high})" if low != high else ""
        figure = f"{_short(self.value.median)}{'' if self.unit == '×' else ' '}{self.unit}{spread}"
        cpu = "" if self.cpu is None else f"{_short(self.cpu)}×"
        return [self.name, self.over, figure, cpu, "" if self.aim is None else str(self.aim), self.verdict]


HEADINGS = ["what", "against", "median (quartiles)", "by processor time", "aim", "reached"]


@dataclass
class Section:
    """Figures that belong together.

    Attributes:
        title: of the table.
        note: how it was measured.
        times: seconds of every act and round.
        rows: the figures.
        points: series for a picture, as (size, value).
        failure: the traceback of what could not be measured.
    """

    title: str
    note: str = ""
    times: Times = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    failure: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Section:
        """From JSON, without the single times."""
        return cls(data["title"], data["note"], {}, [Row.of(row) for row in data["rows"]], failure=data.get("failure", ""))

    def ratio(self, what: str, against: str, *, name: str = "", over: str = "", aim: Aim | None = None) -> Section:
        """Adds how long ``what`` took in units of ``against``, by these names or by others."""
        wall, cpu = ratio(self.times, what, against), ratio(self.times, what, against, "cpu")
        self.rows.append(Row(name or what, wall, over=over or against, cpu=cpu.median, aim=aim))
        return self

    def figure(self, name: str, value: float, unit: str, *, over: str = "", aim: Aim | None = None) -> Section:
        """Adds a number that was measured once."""
        self.rows.append(Row(name, Spread(value, value, value), unit, over, aim=aim))
        return self

    def rate(self, what: str, count: int, unit: str, *, aim: Aim | None = None) -> Section:
        """Adds how many of ``count`` things, which ``what`` did in every round, it did in a second."""
        self.rows.append(Row(what, Spread.of([count / time.wall for time in self.times[what]]), unit, aim=aim))
        return self

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
        for row in self.rows:
            style = {"yes": "green", "no": "red", "": ""}[row.verdict]
            table.add_row(*row.cells(), style=style)
        return table

    def markdown(self) -> str:
        """For RESULTS.md."""
        lines = [f"### {self.title}", "", *([self.note, ""] if self.note else [])]
        if self.failure:
            lines += ["```", self.failure.strip(), "```", ""]
        lines += [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
        return "\n".join([*lines, *(_line(row.cells()) for row in self.rows), ""])


@dataclass
class Result:
    """What one benchmark found, and where."""

    name: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    sections: list[Section]

    def write(self, folder: Path) -> None:
        """Writes ``NAME.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Reads what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(data["name"], data["settings"], data["machine"], [Section.of(part) for part in data["sections"]])


def write_markdown(results: Iterable[Result], path: Path) -> None:
    """Writes all results on one page."""
    parts = [_OPENING]
    for result in results:
        command = f"python -m benchmarks.{result.name}"
        about = ", ".join(f"{key} {value}" for key, value in {**result.machine, **result.settings}.items())
        parts += [f"## {result.name}", f"`{command}` ({about})", *(section.markdown() for section in result.sections)]
    path.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")


_OPENING = """# Results

Written by `python -m benchmarks` from `benchmarks/results/*.json`, which hold every single time. A figure with × is a time in units
of another one that was measured in the same run, round by round in turn: the median of the rounds and the quartiles. Where other
work shares the machine, the ratio by processor time says more. Times of a CPU are no claims."""


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
