"""The scores of random patches and of the oracle on every benchmark id. Normalized scores make results comparable across tasks."""

import json
from functools import cache
from pathlib import Path

from classifiers.errors import lookup

SCORES = Path(__file__).with_name("scores.json")
"""The scores on the first 2,000 test clips of every task, by id, policy and metric. ``python -m benchmarks.task_scores`` writes this
file."""


def normalized_score(id: str, score: float, metric: str = "top1_anytime") -> float:
    """Return a score on a scale from 0 for random patches to 1 for the oracle, as in D4RL (Fu et al., 2020).

    Args:
        id: a benchmark id of version 1, such as ``"AdaFocusTrack-v1"``.
        score: the metric's mean over test clips. Accuracies are between 0 and 1.
        metric: ``top1`` (accuracy after the last step), ``top1_anytime`` (accuracy averaged over steps) or ``return`` (the return with the
            reward `random`).

    Raises:
        InputError: if there are no reference scores for the id or the metric.
    """
    scores = reference_scores(id)
    random, oracle = (lookup("metric", metric, scores[policy]) for policy in ("random", "oracle"))
    return (score - random) / (oracle - random)


def reference_scores(id: str) -> dict[str, dict[str, float]]:
    """Return the scores of the policies ``random`` (mean of five seeds) and ``oracle`` on a benchmark id.

    The result is a nested dictionary: the outer keys are policies, and the inner keys are metrics.

    Raises:
        InputError: if there are no scores for the id.
    """
    return lookup("id", id, _scores())


@cache
def _scores() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(SCORES.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
