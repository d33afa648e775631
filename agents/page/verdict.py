"""The gain of the learned policy, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.metrics import interval, share_of_gap
from agents.page.finished import FinishedRun
from agents.policies.baselines import RULES
from agents.runs.confidence import half_width
from agents.runs.predictions import LEARNED

Accuracy = Literal["correct", "anytime"]
ORACLES = {"oracle": "which knows where the target is", "greedy_oracle": "which knows the class and tries every patch"}


@dataclass(frozen=True)
class Estimate:
    """A mean in per cent or percentage points, and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        digits = 0 if self.half >= 1 else 1
        return f"{abs(self.mean):.{digits}f} ± {self.half:.{digits}f}"

    @property
    def signed(self) -> str:
        """The text with a sign."""
        return f"{'−' if self.mean < 0 else '+'}{self}"

    @property
    def direction(self) -> int:
        """1 if the interval lies above zero, -1 if it lies below, otherwise 0."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half else 0


def estimate(values: Sequence[NDArray[np.float64]]) -> Estimate:
    """Return the mean of values per clip, with an interval.

    Args:
        values: Values (N,) of each run, in 0-1. For a single run, the interval is a bootstrap over clips; for several runs, it is
            Student's interval over the means of the runs.
    """
    means = np.array([each.mean() for each in values])
    if len(means) > 1:
        return Estimate(float(100 * means.mean()), float(100 * half_width(means)))
    low, high = interval(values[0], np.ones(len(values[0])))
    return Estimate(float(100 * means[0]), 50 * (high - low))


def gain(runs: Sequence[FinishedRun], policy: str = LEARNED, accuracy: Accuracy = "correct", over: str = "random") -> Estimate:
    """Return the gain of a policy over another on the same clips, in points; see `estimate`."""
    return estimate([getattr(run.predictions, accuracy)(policy) - getattr(run.predictions, accuracy)(over) for run in runs])


def mean_of(runs: Sequence[FinishedRun], policy: str, key: str) -> float:
    """Return the mean over runs of a metric in ``result.json``; NaN if it is not known."""
    return float(np.mean([run.result["policies"].get(policy, {}).get(key, np.nan) for run in runs]))


def headline(runs: Sequence[FinishedRun]) -> str:
    """Return the first sentence of the page."""
    found = gain(runs)
    words = {
        1: f"gains {found} points over random patches.",
        -1: f"loses {found} points against random patches.",
        0: f"cannot be distinguished from random patches: {found.signed} points.",
    }
    return f"The learned policy {words[found.direction]}"


def findings(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield the sentences below the headline."""
    top1, random = (estimate([run.predictions.correct(name) for run in runs]) for name in (LEARNED, "random"))
    yield f"After the last frame it classifies {top1.mean:.1f} % of the clips correctly; random patches reach {random.mean:.1f} %."
    early = gain(runs, accuracy="anytime")
    yield f"Averaged over all frames of a clip, it {_verb(early)} {early} points: a better policy knows earlier."
    if (hits := 100 * mean_of(runs, LEARNED, "hit_rate")) >= 0:
        share = 100 * mean_of(runs, "random", "hit_rate")
        yield f"Its patch covers the target in {hits:.0f} % of the frames that show it; a random patch in {share:.0f} %."
    policies = runs[0].predictions.policies
    best = max((name for name in RULES if name in policies), key=lambda name: gain(runs, name).mean)
    rule = gain(runs, best)
    yield f"The best of {len(RULES)} rules that learn nothing, {best.replace('_', ' ')}, {_verb(rule)} {rule} points."
    oracle = next((name for name in ORACLES if name in policies), None)
    if oracle is not None:
        bound = estimate([run.predictions.correct(oracle) for run in runs])
        closed = share_of_gap(top1.mean / 100, random.mean / 100, bound.mean / 100)
        share_text = "" if closed is None else f": the learned policy closes {100 * closed:.0f} % of that gap"
        yield f"The {oracle.replace('_', ' ')}, {ORACLES[oracle]}, reaches {bound.mean:.1f} %{share_text}."
    cost, whole = mean_of(runs, LEARNED, "gflops"), mean_of(runs, "full_frame", "gflops")
    yield f"A video costs {cost:.3g} GFLOPs, {whole / cost:.1f} times less than with whole frames in place of patches."


def _verb(found: Estimate) -> str:
    return "loses" if found.mean < 0 else "gains"
