"""Times things against each other on a machine that is never quite idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Act = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """Seconds of one act.

    Attributes:
        wall: by the clock on the wall.
        cpu: of all threads of this process; says what an act costs where others take the processor away meanwhile.
    """

    wall: float
    cpu: float


Times = dict[str, list[Time]]


def interleaved(acts: Mapping[str, Act], rounds: int) -> Times:
    """Times every act once a round, one after the other, and in reverse in every second round; each runs once before, untimed.

    A machine that slows down for a while slows all acts of a round, so the ratios within rounds say more than the times do.
    """
    for act in acts.values():
        act()
    times: Times = {name: [] for name in acts}
    for number in range(rounds):
        for name in list(acts)[:: -1 if number % 2 else 1]:
            times[name].append(timed(acts[name]))
    return times


def timed(act: Act) -> Time:
    """Times one act, and what it has left running on a GPU."""
    _finish()
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    _finish()
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """That of at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(times: Times, what: str, over: str, clock: str = "wall") -> Spread:
    """How long ``what`` took, in units of ``over``, round by round."""
    pairs = zip(times[what], times[over], strict=True)
    return Spread.of([getattr(one, clock) / getattr(other, clock) for one, other in pairs])


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
