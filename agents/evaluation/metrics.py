"""Metrics of a policy: accuracy after every step, hits of the target, cost and movement.

To add a metric, add an entry to `STEP_METRICS`, `CLIP_METRICS` or `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.metrics import average_precision_score

from adafocus_env.action import Action, GridAction, boxes_of
from adafocus_env.clips.transforms import Targets
from classifiers.errors import InputError

Actions = NDArray[Any]
Scores = NDArray[np.float32]
LabelSets = Sequence[tuple[int, ...]]
Counts = NDArray[Any]

COVERED = 0.75  # a hit is a patch that covers at least this share of the target's box
RESAMPLES = 1000  # number of bootstrap samples of the clips for an interval
SAMPLES_AT_ONCE = 1_000_000  # limit on the clips of all bootstrap samples that are in memory together
LEAST_GAP = 0.1  # smallest gap between random patches and the oracle; a share of a smaller gap is mostly noise


@dataclass(frozen=True)
class PolicyEvaluation:
    """The actions of a policy in N clips of D steps, and the resulting class scores.

    Attributes:
        scores: (N, D, K), class scores after every step, before the softmax.
        label_sets: All labels of each clip. Accuracy and confidence use the first label.
        macs: Multiply-adds per video, averaged over videos.
        patch_mask: (N, D) bool, the steps with a patch. If ``actions`` is None, the focuser sees whole frames in the steps of the mask.
        actions: (N, D, …), the selected patches, undefined in skipped steps; or None if the policy selects no patches.
        action: Kind of ``actions``.
        targets: Boxes (N, T, 4) of the target and its visibility (N, T) in the T frames of the D decisions. None if they are not known.
    """

    scores: Scores
    label_sets: LabelSets
    macs: float
    patch_mask: NDArray[np.bool_]
    actions: Actions | None = None
    action: Action | None = None
    targets: Targets | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """First label of each clip (N,)."""
        return _first(self.label_sets)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction after the last step is correct (N,)."""
        return hits(self.scores[:, -1:], self.labels, 1)[:, 0]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Softmax score of the label after the last step (N,)."""
        return confidence(self.scores[:, -1:], self.labels)[:, 0]

    @property
    def confidence_anytime(self) -> NDArray[np.float32]:
        """Softmax score of the label, averaged over steps (N,)."""
        return confidence(self.scores, self.labels).mean(1)


@dataclass(frozen=True)
class Metric:
    """A metric, which is either a number that summarizes a policy, or the accuracy after every step.

    Attributes:
        value: The function that computes the metric. In `METRICS`, the function takes the evaluation and returns the metric, or None if the
            metric is undefined. In `CLIP_METRICS`, the function takes the evaluation and returns a numerator (N,) and a denominator (N,)
            for every clip. The metric is the sum of the numerators divided by the sum of the denominators. In `STEP_METRICS`, the function
            takes scores (N, D, K) and the labels of each clip and returns the accuracy after every step (D,), in 0-1. The table of results
            has the accuracy after the last step.
        heading: Heading of the column in the table of results; empty: no column.
        format: Format specification of the column's values.
        optional: If True, omit the column when all its values are 1.
        min_classes: Smallest number of classes with which the accuracy is computed.
    """

    value: Callable[..., Any]
    heading: str = ""
    format: str = ".2f"
    optional: bool = False
    min_classes: int = 0


def summarize(evaluation: PolicyEvaluation) -> dict[str, Any]:
    """Return a dictionary with all metrics of a policy.

    For each metric ``NAME`` of `CLIP_METRICS`, the entry ``NAME_interval`` is the 95 % confidence interval of the metric. The entry
    ``steps`` has lists of length D: the metrics after every step, and the hit rate of every step (None if no clip shows a target in it).
    """
    steps: dict[str, list[Any]] = dict(step_metrics(evaluation.scores, evaluation.label_sets))
    values: dict[str, Any] = {name: accuracy[-1] for name, accuracy in steps.items()}
    values |= ratios(evaluation)
    values |= {f"{name}_interval": interval(*CLIP_METRICS[name].value(evaluation)) for name in CLIP_METRICS if name in values}
    values |= {name: metric.value(evaluation) for name, metric in METRICS.items()}
    if "hit_rate" in values and (counts := count_hits(evaluation)) is not None:
        steps["hit_rate"] = [float(hit / seen) if seen else None for hit, seen in zip(*(each.sum(0) for each in counts), strict=True)]
    return {**{name: value for name, value in values.items() if value is not None}, "steps": steps}


def ratios(evaluation: PolicyEvaluation) -> dict[str, float]:
    """Return the metrics of `CLIP_METRICS` that are defined."""
    counted = {name: metric.value(evaluation) for name, metric in CLIP_METRICS.items()}
    return {name: float(each[0].sum() / each[1].sum()) for name, each in counted.items() if each is not None and each[1].any()}


VALIDATED = ("top1_anytime", "hit_rate")


def validation_metrics(evaluation: PolicyEvaluation) -> dict[str, float]:
    """Return the metrics that a line of ``metrics.jsonl`` reports for a policy on the validation clips.

    The best policy is selected by ``val_confidence_anytime``, which is the confidence averaged over steps. Unlike the accuracy after the
    last step, this metric does not saturate.
    """
    metrics = {f"val_{name}": value for name, value in ratios(evaluation).items() if name in VALIDATED}
    metrics |= {"val_top1": float(evaluation.correct.mean()), "val_confidence": float(evaluation.confidence.mean())}
    return {**metrics, "val_confidence_anytime": float(evaluation.confidence_anytime.mean())}


def interval(sums: Counts, counts: Counts) -> list[float]:
    """Return the 95 % confidence interval of the ratio of two sums over clips, from a percentile bootstrap with a fixed seed.

    Args:
        sums: (N,), the numerator of each clip.
        counts: (N,), the denominator of each clip. Clips whose denominator is 0 are ignored.
    """
    pairs = np.stack([sums, counts], axis=1)[counts > 0].astype(np.float64)
    rng = np.random.default_rng(0)
    edges = [*range(0, RESAMPLES, max(1, SAMPLES_AT_ONCE // len(pairs))), RESAMPLES]
    totals = np.concatenate([pairs[rng.integers(len(pairs), size=(count, len(pairs)))].sum(1) for count in np.diff(edges)])
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return [float(low), float(high)]


def share_of_gap(value: float, random: float, oracle: float) -> float | None:
    """Return the position of ``value`` in the gap between random patches and the oracle: 0 at ``random``, 1 at ``oracle``.

    Return None if the gap is below `LEAST_GAP`.
    """
    return None if round(oracle - random, 9) < LEAST_GAP else (value - random) / (oracle - random)


def add_gaps(results: Mapping[str, dict[str, Any]]) -> None:
    """Add the shares of the gap (see `GAPS` and `share_of_gap`) to the metrics of each policy.

    If there is no ground truth, the greedy oracle replaces the oracle.

    Args:
        results: Maps the name of each policy to its metrics, as `summarize` returns them.
    """
    random, oracle = results["random"], results.get("oracle", results.get("greedy_oracle"))
    if oracle is None:
        return
    for result in results.values():
        shares = {name: share_of_gap(result[key], random[key], oracle[key]) for name, key in GAPS.items()}
        result |= {name: share for name, share in shares.items() if share is not None}


def step_metrics(scores: Scores, labels: LabelSets) -> dict[str, list[float]]:
    """Return the metrics of `STEP_METRICS` after every step.

    Args:
        scores: (N, T, K), class scores of N clips after each of T steps, before the softmax.
        labels: All labels of each clip. Top-1 and top-5 use the first label.

    Returns:
        Maps the name of each metric to a list of length T.

    Raises:
        InputError: If scores or labels are invalid (see `check`).
    """
    check(scores, labels)
    metrics = {name: metric for name, metric in STEP_METRICS.items() if scores.shape[2] >= metric.min_classes}
    return {name: metric.value(scores, labels).tolist() for name, metric in metrics.items()}


def table_columns(results: Iterable[Mapping[str, Any]], metric: str) -> dict[str, Metric]:
    """Return the metrics that have a column in the table of these results, in the order of the columns.

    Args:
        results: The metrics of each policy, as `summarize` returns them.
        metric: The accuracy metric of the data set. A metric other than top-1 has a column in addition to the column of top-1.
    """
    results = list(results)
    every = {**STEP_METRICS, **CLIP_METRICS, **METRICS}
    columns = {name: every[name] for name in ("top1_first", "top1_anytime", "top1", metric, "hit_rate", *METRICS)}
    constant = {name for name in columns if all(result.get(name, 1) == 1 for result in results)}
    return {name: column for name, column in columns.items() if column.heading and not (column.optional and name in constant)}


def check(scores: Scores, labels: LabelSets) -> None:
    """Check scores and labels.

    Raises:
        InputError: If the scores are not finite or do not have the shape (N, T, K) with N ≥ 1, if the number of label sets is not N, or if
            a label set is empty or contains a label that is not a class.
    """
    if scores.ndim != 3 or 0 in scores.shape:
        raise InputError(f"scores have shape {scores.shape}; give (N, T, K): classes after every step of one clip or more")
    if len(labels) != len(scores):
        raise InputError(f"labels are those of {len(labels)} clips, scores of {len(scores)}; give one set of labels per clip")
    classes = scores.shape[2]
    for clip, given in enumerate(labels):
        if not given:
            raise InputError(f"labels of clip {clip} are empty; give each clip one label or more")
        if not 0 <= min(given) <= max(given) < classes:
            raise InputError(f"labels of clip {clip} are {tuple(given)}; they must be integers from 0 to {classes - 1}")
    if (bad := np.argwhere(~np.isfinite(scores))).size:
        clip, step, number = bad[0]
        raise InputError(
            f"scores of clip {clip} hold {scores[clip, step, number]} after step {step + 1}: the classifier's weights are broken; "
            "take another classifier, or train this one again with a lower learning rate"
        )


def hits(scores: Scores, labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Return whether the label has one of the k highest scores, (N, T). Ties are broken in favour of the lower class, as in `argmax`.

    scikit-learn's `top_k_accuracy_score` is not used, because it breaks ties in favour of the higher class, needs scores of another shape
    if there are two classes, and warns if k ≥ K.

    Args:
        scores: (N, T, K).
        labels: (N,), one label per clip.
        k: Number of scores.
    """
    own = np.take_along_axis(scores, labels[:, None, None], axis=2)
    lower = np.arange(scores.shape[2]) < labels[:, None, None]
    return ((scores > own) | ((scores == own) & lower)).sum(-1) < k


def top_k(scores: Scores, labels: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return the share of clips (T,) whose label has one of the k highest scores. The arguments are those of `hits`."""
    return hits(scores, labels, k).mean(0)


def confidence(scores: Scores, labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the softmax score of the label (N, T) for scores (N, T, K) and labels (N,)."""
    return np.take_along_axis(torch.from_numpy(scores).softmax(-1).numpy(), labels[:, None, None], axis=2)[..., 0]


def mean_average_precision(scores: Scores, labels: LabelSets) -> NDArray[np.float64]:
    """Return the mean average precision (mAP) after every step, (T,). The mAP is the published metric for ActivityNet and FCVID.

    For each class, all clips are ranked by their softmax score of the class. The average precision of the class is the mean of the
    precisions at the ranks of the clips that have the class as a label. The mAP is the mean of the average precision over all K classes. As
    in scikit-learn, the average precision of a class without clips is 0.

    If every class occurs, the result equals that of the authors' code. If a class is absent, the results differ: the authors' code
    renumbers the remaining classes and therefore compares labels with the scores of other classes. For example, the authors' code returned
    10.377 % instead of 10.458 % on the same scores and labels. Clips with equal scores share one rank, while the authors' code ranks them
    in arbitrary order. Ties are also more frequent in the authors' code, because its float32 softmax scores are equal for all confident
    predictions. This function ranks the logarithm of the softmax in float64 and therefore has fewer ties.

    Args:
        scores: (N, T, K), class scores before the softmax. The function applies the softmax, which changes the ranking of the clips.
        labels: All labels of each clip.
    """
    truth = np.zeros((len(scores), scores.shape[2]), bool)
    for clip, classes in enumerate(labels):
        truth[clip, list(classes)] = True
    ranked = torch.from_numpy(scores).double().log_softmax(-1).numpy()
    present = np.flatnonzero(truth.any(0))  # scikit-learn warns about absent classes
    with config_context(assume_finite=True, skip_parameter_validation=True):  # scikit-learn's checks would take most of the time
        found = [average_precision_score(truth[:, present], step[:, present], average=None) for step in ranked.swapaxes(0, 1)]
    sums = [sum(np.atleast_1d(each)) for each in found]  # for a single class, the result is not an array
    return np.array(sums) / truth.shape[1]


def location_entropy(evaluation: PolicyEvaluation) -> float | None:
    """Return the entropy, in nats, of the distribution of selected cells over all clips and steps.

    Continuous locations are first mapped to the nearest cell of a grid with G = 7. The entropy is at most ln G².
    """
    if evaluation.actions is None or evaluation.action is None:
        return None
    cells, action = evaluation.actions[evaluation.patch_mask], evaluation.action
    if action.num_cells is None:
        grid = GridAction(7, action.size, action.patch_size)
        cells = grid.nearest(action.corners_of(cells) + (action.patch_size - 1) / 2)
    shares = np.unique(cells, return_counts=True)[1] / max(1, cells.size)
    return float(np.sum(shares * -np.log(shares))) + 0.0  # avoids -0.0


def movement(evaluation: PolicyEvaluation) -> float | None:
    """Return the mean distance between successive patches of a clip, in fractions of H − P. Skipped steps are ignored.

    Return 0 if no clip has two patches.
    """
    if evaluation.actions is None or evaluation.action is None:
        return None
    action = evaluation.action
    corners = action.corners_of(evaluation.actions) / max(1, action.size - action.patch_size)  # 0 if the patch is the frame
    tracks = (track[mask] for track, mask in zip(corners, evaluation.patch_mask, strict=True))
    moves = np.concatenate([np.linalg.norm(np.diff(track, axis=0), axis=-1) for track in tracks])
    return float(moves.mean()) if moves.size else 0.0


def seen_frames(evaluation: PolicyEvaluation) -> NDArray[np.bool_] | None:
    """Return whether each of the F frames of every decision shows the target and has a patch, (N, D, F) bool; None without ground truth."""
    if evaluation.targets is None:
        return None
    return evaluation.targets.visible.reshape(*evaluation.patch_mask.shape, -1) & evaluation.patch_mask[..., None]


def count_hits(evaluation: PolicyEvaluation) -> tuple[Counts, Counts] | None:
    """Count, for every decision, the hits, and the frames that show the target and have a patch.

    Returns:
        The number of hits (N, D), and the number of frames that show the target and have a patch (N, D). In a hit, the patch covers at
        least three quarters of the target's box. None is returned if there is no ground truth or no patch.
    """
    seen = seen_frames(evaluation)
    if seen is None or evaluation.targets is None or evaluation.actions is None or evaluation.action is None:
        return None
    boxes = evaluation.targets.boxes.reshape(*seen.shape, 4)
    patches = boxes_of(evaluation.action, evaluation.actions)[:, :, None]
    return (covers(patches, boxes) & seen).sum(-1), seen.sum(-1)


def covers(patches: NDArray[Any], boxes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each patch (…, 4) covers at least three quarters of its box (…, 4).

    Patches and boxes are (top, left, bottom, right) in pixels.
    """
    sides = np.minimum(boxes[..., 2:], patches[..., 2:]) - np.maximum(boxes[..., :2], patches[..., :2])
    return sides.clip(0).prod(-1) >= COVERED * (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def _hit_rate(evaluation: PolicyEvaluation) -> tuple[Counts, Counts] | None:
    counts = count_hits(evaluation)
    return None if counts is None else (counts[0].sum(1), counts[1].sum(1))


def _top1_first(evaluation: PolicyEvaluation) -> tuple[Counts, Counts] | None:
    """Return the accuracy after the first decision with a frame that shows the target and has a patch.

    A clip is ignored if none of its frames shows the target and has a patch.

    Returns:
        The numerator (N,) and the denominator (N,) of every clip (see `Metric`), or None if there is no ground truth.
    """
    if (seen := seen_frames(evaluation)) is None:
        return None
    decisions: NDArray[np.bool_] = np.asarray(seen.any(-1))
    right = hits(evaluation.scores, evaluation.labels, 1)[np.arange(len(seen)), decisions.argmax(1)]
    counts = np.asarray(decisions.any(1))
    return right & counts, counts


def _top1_anytime(evaluation: PolicyEvaluation) -> tuple[Counts, Counts]:
    right = hits(evaluation.scores, evaluation.labels, 1)
    return right.mean(1), np.ones(len(right))


def _first(labels: LabelSets) -> NDArray[np.int64]:
    return np.array([given[0] for given in labels], np.int64)


STEP_METRICS: dict[str, Metric] = {
    "top1": Metric(lambda scores, labels: top_k(scores, _first(labels), 1), "top-1", ".1%"),
    "map": Metric(mean_average_precision, "mAP", ".1%"),
    "top5": Metric(lambda scores, labels: top_k(scores, _first(labels), 5), min_classes=6),
}

CLIP_METRICS: dict[str, Metric] = {
    "top1_first": Metric(_top1_first, "first", ".1%", optional=True),
    "top1_anytime": Metric(_top1_anytime, "anytime", ".1%"),
    "hit_rate": Metric(_hit_rate, "hits", ".1%", optional=True),
}

METRICS: dict[str, Metric] = {
    "confidence": Metric(lambda e: float(e.confidence.mean())),
    "confidence_anytime": Metric(lambda e: float(e.confidence_anytime.mean())),
    "kept": Metric(lambda e: None if e.actions is None else float(e.patch_mask.mean()), "kept", ".1%", optional=True),
    "gflops": Metric(lambda e: e.macs / 1e9, "GFLOPs", ".4f"),
    "location_entropy": Metric(location_entropy),
    "movement": Metric(movement),
}

GAPS = {"gap_top1": "top1", "gap_anytime": "top1_anytime"}
"""Maps the name of each share of the gap (see `share_of_gap`) to the accuracy from which it is computed."""

ACCURACIES: dict[str, str] = {name: metric.heading for name, metric in STEP_METRICS.items() if metric.heading}
"""Maps the accuracies that may be the metric of a data set to their column headings."""
