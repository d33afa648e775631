"""Times acts against each other on a machine that is never quite idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.benchmark.utils.timer import timer

Act = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """Seconds of one act.

    Attributes:
        wall: Wall-clock time, including the work that the act has started on a GPU.
        cpu: Time of all threads of this process: the cost of an act on a machine that other processes share.
    """

    wall: float
    cpu: float

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, factor: float) -> Time:
        return Time(self.wall * factor, self.cpu * factor)


Times = dict[str, list[Time]]


def interleaved(acts: Mapping[str, Act], rounds: int) -> Times:
    """Time every act once per round, in reverse order in every second round; each act runs once before, untimed.

    `torch.utils.benchmark.Timer` times one act after the other, each many times. Here the ratios of acts are of interest: a machine
    that slows down for a while slows all acts of a round, so that ratios within rounds vary less than the times.
    """
    for act in acts.values():
        act()
    times: Times = {name: [] for name in acts}
    for number in range(rounds):
        for name in list(acts)[:: -1 if number % 2 else 1]:
            times[name].append(timed(acts[name]))
    return times


def timed(act: Act) -> Time:
    """Time one act."""
    wall, cpu = timer(), time.process_time()  # `timer` waits for the GPU, if there is one
    act()
    return Time(timer() - wall, time.process_time() - cpu)


def repeated(times: int, act: Act) -> Act:
    """Return an act that repeats another one, for acts that are too short for a clock."""

    def acts() -> None:
        for _ in range(times):
            act()

    return acts


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return those of at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(times: Times, what: str, over: str, clock: str = "wall") -> Spread:
    """Return the time of ``what`` in units of ``over``, round by round."""
    pairs = zip(times[what], times[over], strict=True)
    return Spread.of([getattr(one, clock) / getattr(other, clock) for one, other in pairs])
