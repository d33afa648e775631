"""How good class scores are after every step: top-1, top-5, mean average precision. Everything is a share in 0-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from classifiers.errors import InputError

Metric = Literal["top1", "map"]
Scores = NDArray[np.float32]
LabelSets = Sequence[tuple[int, ...]]
METRICS: dict[str, str] = {"top1": "top-1", "map": "mAP"}
TOP5 = 5


def after_every_step(scores: Scores, labels: LabelSets) -> dict[str, list[float]]:
    """All measures after every step.

    Args:
        scores: (N, T, K), class scores of N clips after each of T steps, before the softmax.
        labels: all labels of each clip; the first is the one that counts for top-1 and top-5.

    Returns:
        Lists of length T: `top1`, `map`, and `top5` where there are more than five classes.

    Raises:
        InputError: scores or labels cannot be measured (see `check`).
    """
    first = check(scores, labels)
    measured = {"top1": top_k(scores, first, 1), "map": mean_average_precision(scores, labels)}
    if scores.shape[2] > TOP5:
        measured["top5"] = top_k(scores, first, TOP5)
    return {name: values.tolist() for name, values in measured.items()}


def check(scores: Scores, labels: LabelSets) -> NDArray[np.int64]:
    """Returns the first label of each clip (N,), if scores and labels can be measured.

    Raises:
        InputError: the scores are not (N, T, K) of one clip or more, or not finite; the labels are not one set a clip, or a
            set is empty or holds a label that is no class.
    """
    if scores.ndim != 3 or 0 in scores.shape:
        raise InputError(f"scores have shape {scores.shape}; give (N, T, K): classes after every step of one clip or more")
    if len(labels) != len(scores):
        raise InputError(f"labels are those of {len(labels)} clips, scores of {len(scores)}; give one set of labels a clip")
    classes = scores.shape[2]
    for clip, found in enumerate(labels):
        if not found:
            raise InputError(f"labels of clip {clip} are empty; give each clip one label or more")
        if not 0 <= min(found) <= max(found) < classes:
            raise InputError(f"labels of clip {clip} are {tuple(found)}; with {classes} classes they are numbers from 0 to {classes - 1}")
    if (bad := np.argwhere(~np.isfinite(scores))).size:
        clip, step, number = bad[0]
        raise InputError(
            f"scores of clip {clip} hold {scores[clip, step, number]} after step {step + 1}: the classifier's weights are broken; "
            "take another classifier, or train this one anew with a lower learning rate"
        )
    return np.array([found[0] for found in labels], np.int64)


def hits(scores: Scores, first: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether the label is among the k highest scores, (N, T); of equal scores the lower class counts as the higher one.

    That is how `argmax` answers. It is not scikit-learn's `top_k_accuracy_score`: that agrees where scores differ, but prefers the
    higher class of equal ones, wants another shape for two classes and warns from k = K on, where every clip is a hit.

    Args:
        scores: (N, T, K).
        first: (N,), the label of each clip that counts.
        k: how many answers a clip has.
    """
    own = np.take_along_axis(scores, first[:, None, None], axis=2)
    before = np.arange(scores.shape[2]) < first[:, None, None]
    return ((scores > own) | ((scores == own) & before)).sum(-1) < k


def top_k(scores: Scores, first: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Share of the clips with their label among the k highest scores, (T,); arguments as those of `hits`."""
    return hits(scores, first, k).mean(0)


def confidence(scores: Scores, first: NDArray[np.int64]) -> NDArray[np.float32]:
    """Softmax score of the label, (N, T); scores (N, T, K), labels (N,)."""
    return np.take_along_axis(torch.from_numpy(scores).softmax(-1).numpy(), first[:, None, None], axis=2)[..., 0]


def mean_average_precision(scores: Scores, labels: LabelSets) -> NDArray[np.float64]:
    """Mean average precision after every step, (T,): the published measure of ActivityNet and FCVID, with one label a clip or more.

    Of each class: all clips in the order of its softmax score, and the mean of the precision at each clip that has the label. The
    average is over all K classes; one that no clip has counts 0, as in scikit-learn. Where every class occurs this is what the
    authors' code computes. Where one is absent it is not: that code then numbers the remaining classes anew and compares labels with
    the scores of other classes (10.377 % instead of 10.458 % on the same scores and labels), which is not followed here. Clips with
    equal scores are ranked as one; the authors' code ranks them in any order, and has more of them: a softmax in float32 makes
    all sure answers equal, so its logarithm in float64 is ranked here.

    Args:
        scores: (N, T, K), before the softmax. It matters: it changes the order of clips within a class.
        labels: all labels of each clip.
    """
    truth = np.zeros((len(scores), scores.shape[2]), bool)
    for clip, found in enumerate(labels):
        truth[clip, list(found)] = True
    return np.array([_mean_average_precision(scores[:, step], truth) for step in range(scores.shape[1])])


def _mean_average_precision(scores: Scores, truth: NDArray[np.bool_]) -> float:
    """Of one step: scores (N, K), truth (N, K)."""
    ranked = torch.from_numpy(scores).double().log_softmax(-1).numpy()
    present = np.flatnonzero(truth.any(0))  # scikit-learn warns about each of the others
    return sum(average_precision_score(truth[:, each], ranked[:, each]) for each in present) / truth.shape[1]
