"""Scores of random patches and of the oracle on the benchmark ids, to compare results across tasks: `normalized_score`."""

import json
from functools import cache
from pathlib import Path

from classifiers.errors import lookup

SCORES = Path(__file__).with_name("scores.json")
"""Written by ``python -m benchmarks.task_scores``: id → policy → metric → score on the task's first 2,000 test clips."""


def normalized_score(id: str, score: float, metric: str = "top1_anytime") -> float:
    """Return a score on a scale on which random patches have 0 and the oracle has 1, as D4RL does (Fu et al. 2020).

    Args:
        id: a benchmark id of version 1, such as ``"AdaFocusTrack-v1"``.
        score: mean over test clips; accuracies in 0-1.
        metric: ``top1`` after the last step, ``top1_anytime``, the mean over steps, or ``return``, of the reward `random`.

    Raises:
        InputError: there are no scores of that id, or not of that metric.
    """
    scores = reference_scores(id)
    random, oracle = (lookup("metric", metric, scores[policy]) for policy in ("random", "oracle"))
    return (score - random) / (oracle - random)


def reference_scores(id: str) -> dict[str, dict[str, float]]:
    """Return the scores of the policies ``random`` (mean of five seeds) and ``oracle`` on a benchmark id: policy → metric → score.

    Raises:
        InputError: there are no scores of that id.
    """
    return lookup("id", id, _scores())


@cache
def _scores() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(SCORES.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
