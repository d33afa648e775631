"""The accuracy and cost of a policy with a conditional exit, computed from the scores of one evaluation without an exit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.evaluation.conditional_exit import ExitFit
from agents.evaluation.metrics import PolicyEvaluation, step_metrics
from classifiers.flops import VideoFlops

PUBLISHED_P: tuple[float, ...] = tuple(np.linspace(0.5, 3.9, 35).round(1).tolist())
"""Values of p in the published curves."""


def stop(evaluation: PolicyEvaluation, steps: NDArray[np.int64], flops: VideoFlops) -> PolicyEvaluation:
    """Return the evaluation that results if clip n ends after step ``steps[n]``, counted from 0.

    After the end of a clip, the scores of its last step are repeated, and further steps cost nothing.
    """
    later = np.arange(evaluation.patch_mask.shape[1]) > steps[:, None]
    last = evaluation.scores[np.arange(len(steps)), steps][:, None]
    patch_mask = evaluation.patch_mask & ~later
    macs = float(flops.total(patch_mask.sum(1), steps + 1).mean())
    return replace(evaluation, scores=np.where(later[..., None], last, evaluation.scores), patch_mask=patch_mask, macs=macs)


def exit_curve(evaluation: PolicyEvaluation, fit: ExitFit, confidence: str, flops: VideoFlops) -> list[dict[str, float]]:
    """Return the accuracy and the cost for every p in `PUBLISHED_P`, computed from the scores of one evaluation without an exit.

    Each point has ``p``, ``gflops``, ``steps`` (the mean number of steps before the exit) and the metrics of
    `agents.evaluation.metrics.STEP_METRICS`.
    """
    points = []
    for p in PUBLISHED_P:
        steps = fit.thresholds(p, confidence).steps(evaluation.scores)
        stopped = stop(evaluation, steps, flops)
        metrics = step_metrics(stopped.scores[:, -1:], evaluation.label_sets)
        accuracies = {name: values[0] for name, values in metrics.items()}
        points.append({"p": p, "gflops": stopped.macs / 1e9, "steps": float(steps.mean() + 1), **accuracies})
    return points
