"""Scores of random patches and of the oracle on the benchmark ids, and normalized scores to compare results across tasks."""

import json
from functools import cache
from pathlib import Path

from classifiers.errors import lookup

SCORES = Path(__file__).with_name("scores.json")
"""Scores on a task's first 2,000 test clips by id, policy and metric, written by ``python -m benchmarks.task_scores``."""


def normalized_score(id: str, score: float, metric: str = "top1_anytime") -> float:
    """Return a score on a scale from 0 for random patches to 1 for the oracle, as in D4RL (Fu et al., 2020).

    Args:
        id: a benchmark id of version 1, such as ``"AdaFocusTrack-v1"``.
        score: the mean over test clips; accuracies are in 0-1.
        metric: ``top1`` (after the last step), ``top1_anytime`` (averaged over steps) or ``return`` (of the reward `random`).

    Raises:
        InputError: if there are no reference scores for the id or the metric.
    """
    scores = reference_scores(id)
    random, oracle = (lookup("metric", metric, scores[policy]) for policy in ("random", "oracle"))
    return (score - random) / (oracle - random)


def reference_scores(id: str) -> dict[str, dict[str, float]]:
    """Return the scores of the policies ``random`` (mean of five seeds) and ``oracle`` on a benchmark id, by policy and metric.

    Raises:
        InputError: if there are no scores for the id.
    """
    return lookup("id", id, _scores())


@cache
def _scores() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(SCORES.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
