"""Rewards: confidence p, the softmax score of the true class, → reward of step t.

| name | reward of step t |
|---|---|
| `random` (the paper's, eq. 5) | p_t(chosen patch) − E over uniformly random patches of p_t(patch), all from the same state |
| `previous` | p_t − p_{t−1}, with p_{−1} = 0 |
| `confidence` | p_t |
| `padding` | p_t − p_t(zeros in place of the focus vector), from the same state |
| `standalone` | p⁰_t(chosen patch) − E over uniformly random patches of p⁰_t(patch), where p⁰ is the confidence from this frame alone |
| `log_confidence` | ln p_t(chosen patch) − ln E over uniformly random patches of p_t(patch), all from the same state |

`random` teaches to find the target once: after a patch on it has settled the class, another one gains nothing, and a patch elsewhere may
even be better. `standalone` judges every patch by itself, with the head in its initial state, and so rewards each frame alike.
`log_confidence` saturates later than `random`: it still rewards a good patch after earlier ones have settled the class. Logarithms are
those of at least `FLOOR`, so that a confidence that is rounded to 0 does not give an infinite reward.

A custom reward is a `Reward`: an entry of `REWARDS`, or the argument ``reward`` of an environment. Its function must be defined at the
top of a module (not a lambda), otherwise environments with it cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FLOOR = 1e-6  # −ln of it, 13.8, is the largest size of a reward; float32 rounds scores near 1, and with them those near 0, to about 1e-7

ALONE = (
    "reward='standalone' judges every patch by itself, so it cannot value a frame that is skipped; set reward='random', or an action "
    "without skipping"
)


@dataclass(frozen=True)
class Reward:
    """A reward and its baseline.

    Attributes:
        value: (confidence (N,), previous confidence (N,), baseline confidence (N,)) → reward (N,), float32 arrays.
        baseline: The focus vectors that the baseline confidence comes from.
        on_tensors: Whether ``value`` also takes tensors; otherwise an environment with ``output="torch"`` copies them to the host and back.
        elementwise: Whether each reward depends on the numbers at its position alone, so that ``value`` also takes confidences (A, N) of A
            actions, against (N,) of the other two. ``full_information`` needs it.
        alone: Whether confidence and baseline are those of the step alone, with the head in its initial state; not for actions that skip.
    """

    value: Callable[[Any, Any, Any], Any]
    baseline: Literal["random patches", "zeros", "none"] = "none"
    on_tensors: bool = False
    elementwise: bool = False
    alone: bool = False


def above_baseline(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence minus that of the baseline."""
    return now - baseline


def above_previous(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence minus that of the previous step."""
    return now - previous


def itself(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence."""
    return now


def above_log_baseline(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the log-confidence minus the logarithm of the baseline's (mean) confidence."""
    return _log(now) - _log(baseline)


def _log(confidence: Any) -> Any:
    """Return the logarithm, element by element; NumPy arrays have no method of that name, tensors have."""
    bounded = confidence.clip(FLOOR)
    return np.log(bounded) if isinstance(bounded, np.ndarray | np.generic) else bounded.log()


REWARDS: dict[str, Reward] = {
    "random": Reward(above_baseline, "random patches", on_tensors=True, elementwise=True),
    "previous": Reward(above_previous, on_tensors=True, elementwise=True),
    "confidence": Reward(itself, on_tensors=True, elementwise=True),
    "padding": Reward(above_baseline, "zeros", on_tensors=True, elementwise=True),
    "standalone": Reward(above_baseline, "random patches", on_tensors=True, elementwise=True, alone=True),
    "log_confidence": Reward(above_log_baseline, "random patches", on_tensors=True, elementwise=True),
}
"""Name → reward, as `adafocus_env.env.AdaFocusEnv` lists them. A plugin adds entries."""
