"""A sentence that a run prints at its end if the choice of patches does not matter in the data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.evaluation.metrics import CLIP_METRICS, GAPS, LEAST_GAP, PolicyEvaluation, interval

HEADINGS = {"top1": "top-1", "top1_anytime": "anytime"}
"""The column headings of the accuracies in `GAPS`, in the table of results."""


def verdict(metrics: Mapping[str, Mapping[str, Any]], evaluations: Mapping[str, PolicyEvaluation]) -> str | None:
    """Return a sentence if the choice of patches affects neither the final nor the anytime accuracy; otherwise return None.

    The choice does not matter in two cases:

    - The accuracy of the greedy oracle, which knows the class and tries every patch, is less than `LEAST_GAP` above that of random patches.
      On a few hundred clips, such a small gain is hard to distinguish from noise.
    - The policy is not significantly better than random patches: the 95 % bootstrap interval of its gain over random patches, on the
      same clips, does not lie entirely above 0. A policy that skips frames is not compared with random patches, because it may reach the
      same accuracy at a lower cost.

    Args:
        metrics: Maps the name of each policy to its metrics, as `agents.evaluation.evaluate.evaluate` returns them.
        evaluations: Evaluations of the policies `random` and, if there is one, `learned`.
    """
    random, greedy, learned = metrics["random"], metrics.get("greedy_oracle"), evaluations.get("learned")
    room = {key: greedy[key] - random[key] for key in GAPS.values()} if greedy else {}
    if room and round(max(room.values()), 9) < LEAST_GAP:
        above = ", ".join(f"{HEADINGS[key]} {100 * gap:+.1f} points" for key, gap in room.items())
        return f"Looking does not matter in these clips: even the best patches for the true class gain little over random ones ({above})."
    if learned is None or not learned.patch_mask.all():
        return None
    gains = {key: _right(learned, key) - _right(evaluations["random"], key) for key in GAPS.values()}
    intervals = {key: interval(gain, np.ones_like(gain)) for key, gain in gains.items()}
    if any(low > 0 for low, _ in intervals.values()):
        return None
    gained = ", ".join(
        f"{HEADINGS[key]} {100 * gain.mean():+.1f} points, from {100 * intervals[key][0]:+.1f} to {100 * intervals[key][1]:+.1f}"
        for key, gain in gains.items()
    )
    hint = "; the greedy oracle shows that better patches exist" if room else ""
    return f"Looking does not matter with this policy: random patches are as good, within the 95 % interval (gain: {gained}){hint}."


def _right(evaluation: PolicyEvaluation, key: str) -> Any:
    """Return the accuracy of each clip (N,): for ``top1``, 0 or 1 after the last step; for ``top1_anytime``, the share of correct steps."""
    return evaluation.correct.astype(np.float64) if key == "top1" else CLIP_METRICS[key].value(evaluation)[0]
