"""Confidence → reward. p is the softmax score of the true class, at the step before (previous), now, and with other patches.

| name | reward of step t |
|---|---|
| `random` (the paper's, eq. 5) | p_t(chosen patch) − E over uniformly random patches of p_t(patch), all from the same state |
| `previous` | p_t − p_{t−1}, with p_{−1} = 0 |
| `confidence` | p_t |
| `padding` | p_t − p_t(zeros in place of the focus vector), from the same state |

A further one is a `Reward`: an entry of `REWARDS`, or the argument ``reward`` of an environment. Its function belongs at the top of a
module (no lambda), or environments with it cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reward:
    """A reward and what it is measured against.

    Attributes:
        value: (confidence (N,), previous confidence (N,), baseline confidence (N,)) → reward (N,).
        baseline: which focus vectors the baseline confidence comes from.
    """

    value: Callable[[Floats, Floats, Floats], Floats]
    baseline: Literal["random patches", "zeros", "none"] = "none"


def above_baseline(now: Floats, previous: Floats, baseline: Floats) -> Floats:
    """What is gained over other patches, or none."""
    return now - baseline


def above_previous(now: Floats, previous: Floats, baseline: Floats) -> Floats:
    """What is gained over the step before."""
    return now - previous


def itself(now: Floats, previous: Floats, baseline: Floats) -> Floats:
    """The confidence."""
    return now


REWARDS: dict[str, Reward] = {
    "random": Reward(above_baseline, "random patches"),
    "previous": Reward(above_previous),
    "confidence": Reward(itself),
    "padding": Reward(above_baseline, "zeros"),
}
