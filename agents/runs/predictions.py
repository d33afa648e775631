"""The file `predictions.csv`. Each row has the learned policy's steps for one clip, and the final predictions of the other policies."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import boxes_of
from adafocus_env.features.live import Features
from agents.evaluation.metrics import PolicyEvaluation, confidence, count_hits, hits
from classifiers.atomic_files import replacing
from classifiers.errors import InputError

LEARNED = "learned"
REQUIRED = ("file", "label", "prediction", "anytime", "confidence_1", "box_1", "random_prediction")


def save_predictions(features: Features, plays: Mapping[str, PolicyEvaluation], path: Path) -> None:
    """Write one row per clip.

    The columns ``file``, ``label`` and ``prediction`` contain names: the video, its class, and the class that is predicted with the learned
    policy. ``anytime`` is the share of steps after which the prediction is correct. Every step t has three columns. ``confidence_t`` is the
    softmax score of the label. ``box_t`` is the patch as `top left bottom right` in pixels of the frame; it is empty if the step is
    skipped. ``hit_t`` is the hit rate in the frames of the step that show the target; it is empty if no frame of the step shows the target.
    The columns ``hit_t`` are left out if targets are unknown. ``NAME_prediction``, ``NAME_anytime`` and ``NAME_confidence`` are the final
    results of another policy. ``random_box_t`` are the random patches.

    Args:
        features: Features of the clips.
        plays: Dictionary from the name of a policy to its evaluation, which contains at least the names `learned` and `random`.
        path: The CSV file, replaced atomically.
    """
    classes, learned = np.array(features.classifier.classes), plays[LEARNED]
    columns: dict[str, Iterable[object]] = {
        "file": features.clips.names, "label": classes[learned.labels], **_ending(LEARNED, learned, classes),
        **_by_step("confidence", [[f"{value:.4f}" for value in row] for row in confidence(learned.scores, learned.labels)]),
        **_by_step("box", _box_texts(learned)),
    }  # fmt: skip
    if (counts := count_hits(learned)) is not None:
        shares = counts[0] / np.where(counts[1], counts[1], np.nan)
        columns |= _by_step("hit", [["" if np.isnan(share) else f"{share:g}" for share in row] for row in shares])
    for name in [each for each in plays if each != LEARNED]:
        columns |= _ending(name, plays[name], classes) | {f"{name}_confidence": [f"{value:.4f}" for value in plays[name].confidence]}
    columns |= _by_step("random_box", _box_texts(plays["random"]))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


class Predictions:
    """The rows of a `predictions.csv`; see `save_predictions`.

    Args:
        path: The file.

    Raises:
        InputError: If the file does not have the required columns.
    """

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self._rows = list(csv.DictReader(file))
        missing = [name for name in REQUIRED if not self._rows or self._rows[0].get(name) is None]
        if missing:
            raise InputError(f"{path} must have rows with the columns {', '.join(REQUIRED)}, got none in {missing[0]}; remove the file")

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> NDArray[np.str_]:
        """Return the texts (N,) of a column."""
        return np.array([row[name] for row in self._rows])

    @property
    def policies(self) -> list[str]:
        """Names of all policies, starting with the learned policy."""
        return [LEARNED, *(name.removesuffix("_prediction") for name in self._rows[0] if name.endswith("_prediction"))]

    def correct(self, policy: str = LEARNED) -> NDArray[np.float64]:
        """Return an array (N,) with 1 for every clip whose final prediction with this policy is correct, and 0 for all other clips."""
        return (self.column(f"{_prefix(policy)}prediction") == self.column("label")).astype(np.float64)

    def anytime(self, policy: str = LEARNED) -> NDArray[np.float64]:
        """Return, for every clip, the share of steps after which the prediction with this policy is correct (N,)."""
        return self.column(f"{_prefix(policy)}anytime").astype(np.float64)

    def confidence(self, policy: str = LEARNED) -> NDArray[np.float64]:
        """Return, for every clip, the softmax score of its label after the last step (N,)."""
        return self.by_step("confidence")[:, -1] if policy == LEARNED else self.column(f"{policy}_confidence").astype(np.float64)

    def by_step(self, name: str) -> NDArray[np.float64]:
        """Return the values (N, D) of the columns ``NAME_1``, ``NAME_2``, …; empty values are NaN."""
        return np.array([[float(text or "nan") for text in self.column(each)] for each in self._steps(name)]).T

    def boxes(self, policy: str = LEARNED) -> NDArray[np.float64]:
        """Return the patches (N, D, 4) of the policy `learned` or `random`. Patches of skipped steps are NaN."""
        names = self._steps(f"{_prefix(policy)}box")
        return np.array([[[float(side) for side in (row[name] or "nan nan nan nan").split()] for name in names] for row in self._rows])

    def _steps(self, name: str) -> list[str]:
        return [each for each in self._rows[0] if re.fullmatch(rf"{name}_\d+", each)]


def _prefix(policy: str) -> str:
    return "" if policy == LEARNED else f"{policy}_"


def _ending(name: str, played: PolicyEvaluation, classes: NDArray[np.str_]) -> dict[str, Iterable[object]]:
    anytime = hits(played.scores, played.labels, 1).mean(1)
    return {
        f"{_prefix(name)}prediction": classes[played.scores[:, -1].argmax(-1)],
        f"{_prefix(name)}anytime": [f"{share:.4f}" for share in anytime],
    }


def _by_step(name: str, rows: Sequence[Sequence[str]]) -> dict[str, Iterable[object]]:
    return {f"{name}_{step}": values for step, values in enumerate(zip(*rows, strict=True), 1)}


def _box_texts(played: PolicyEvaluation) -> list[list[str]]:
    action: Any = played.action
    boxes = boxes_of(action, played.actions)  # type: ignore[arg-type]
    return [
        [" ".join(map(str, box)) if focused else "" for box, focused in zip(*row, strict=True)]
        for row in zip(boxes.tolist(), played.patch_mask, strict=True)
    ]
