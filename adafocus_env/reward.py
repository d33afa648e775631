"""Rewards of the environments. Rewards are functions of the confidence p, which is the softmax score of the true class.

| name | reward of step t |
|---|---|
| `random` (the paper's, eq. 5) | p_t(chosen patch) − the mean of p_t(patch) over uniformly random patches, all from the same state |
| `previous` | p_t − p_{t−1}, with p_{−1} = 0 |
| `confidence` | p_t |
| `padding` | p_t − p_t(zeros in place of the focus vector), from the same state |
| `standalone` | as `random`, with p⁰_t in place of p_t, the confidence after this frame alone (the head starts in its initial state) |
| `log_confidence` | ln p_t(chosen patch) − ln of the mean of p_t(patch) over uniformly random patches, all from the same state |

`random` rewards a policy for finding the target only once. After a patch on the target has determined the class, further patches on the
target gain nothing, and a patch elsewhere may even be better. `standalone` judges every patch on its own and therefore rewards all frames
equally. `log_confidence` saturates later than `random`: it still rewards good patches after earlier patches have determined the class.
Confidences below `FLOOR` are replaced by `FLOOR` before the logarithm, so that rewards are finite.

A custom reward is a `Reward`. Add the custom reward to `REWARDS`, or pass it to an environment as ``reward``. Define the reward's function
at the top level of a module (not as a lambda); otherwise, environments with this reward cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

FLOOR = 1e-6  # the largest reward is −ln(FLOOR) = 13.8; the error of float32 scores is about 1e-7

ALONE = (
    "reward='standalone' judges every patch on its own and cannot reward skipped frames; set reward='random', or an action "
    "without skipping"
)


@dataclass(frozen=True)
class Reward:
    """A reward and its baseline.

    Attributes:
        value: Function that returns the rewards (N,). The three arguments are the confidence, the previous confidence and the baseline
            confidence, each a float32 array (N,).
        baseline: Which focus vectors determine the baseline confidence.
        on_tensors: Whether ``value`` also accepts tensors. If ``on_tensors`` is false, an environment with ``output="torch"`` copies the
            confidences to the host, and copies the rewards back to the device.
        elementwise: Whether each reward depends only on the numbers at the same position. If ``elementwise`` is true, ``value`` also
            accepts the confidences (A, N) of A actions, together with arrays (N,) for the other two arguments. ``full_information``
            requires this.
        alone: Whether the confidence and the baseline of a step are computed from this step alone, with the head in its initial state. If
            ``alone`` is true, the reward cannot be used with actions that skip.
    """

    value: Callable[[Any, Any, Any], Any]
    baseline: Literal["random patches", "zeros", "none"] = "none"
    on_tensors: bool = False
    elementwise: bool = False
    alone: bool = False


def above_baseline(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence minus the baseline's confidence."""
    return now - baseline


def above_previous(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence minus the previous step's confidence."""
    return now - previous


def itself(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the confidence."""
    return now


def above_log_baseline(now: Any, previous: Any, baseline: Any) -> Any:
    """Return the logarithm of the confidence minus the logarithm of the baseline's mean confidence."""
    return _log(now) - _log(baseline)


def _log(confidence: Any) -> Any:
    """Return the elementwise logarithm of a tensor or an array. Values below `FLOOR` are replaced by `FLOOR` first."""
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
"""Rewards by name, as `adafocus_env.env.AdaFocusEnv` lists them. A plugin adds entries."""
