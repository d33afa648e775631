"""Conditional exit: a video ends after the first step in which the confidence reaches a threshold, and its later frames are not processed.

A conditional exit needs no trained network, only one threshold per step. The thresholds are fitted on training clips, as in AdaFocusV2
(arXiv:2112.14238) and MSDNet (arXiv:1703.09844). `ExitFit` stores the confidences of the training clips and computes `ExitThresholds` from
these confidences. `ExitThresholds` are an argument of `agents.evaluation.inference.infer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.cache_dir import cache_folder
from agents.policies.networks import PolicyNetwork
from classifiers.atomic_files import write_text
from classifiers.checkpoint import read_json
from classifiers.classifier import Classifier, hash_of
from classifiers.errors import InputError, lookup, refuse_if
from classifiers.model_zoo import BUNDLED

Values = NDArray[np.float64]

CONFIDENCES: dict[str, Callable[[NDArray[Any]], Values]] = {
    "softmax": lambda scores: torch.from_numpy(scores).double().softmax(-1).amax(-1).numpy(),
    "score": lambda scores: scores.max(-1).astype(np.float64),
}
"""Kinds of confidence: functions that map class scores (…, K) to confidences (…,)."""

EXIT_FILE = "exit.json"
REFIT = "fit them again on its training clips: python -m agents.evaluate … exit=P"


# Thresholds


def exit_shares(p: float, num_steps: int) -> Values:
    """Return the shares of clips (D,) that exit after each step: p^k / Σ p^j for k = 1 … D.

    Raises:
        InputError: If ``p`` is not above 0.
    """
    refuse_if(isinstance(p, bool) or not 0 < p < np.inf, f"exit must be a number above 0, such as 1.2, got {p}")
    return (torch.arange(1, num_steps + 1, dtype=torch.float64) * math.log(p)).softmax(0).numpy()


def fit_thresholds(confidences: Values, shares: Values) -> Values:
    """Return the thresholds (D,) with which the given shares of the clips exit after each step.

    After each step, the ⌊N · share⌋ most confident of the remaining clips exit, and the threshold is the lowest confidence of these clips.
    If ⌊N · share⌋ is 0 for a step, the threshold of this step is ∞ and no clip exits. After the last step, the threshold is −∞ and all
    remaining clips exit.

    Args:
        confidences: Confidences of training clips after each step, (N, D).
        shares: Shares of clips that exit after each step, (D,); see `exit_shares`.
    """
    left, thresholds = np.ones(len(confidences), bool), np.full(len(shares), np.inf)
    for step, number in enumerate(np.floor(len(confidences) * shares[:-1]).astype(int)):
        if number and left.any():
            thresholds[step] = np.sort(confidences[left, step])[-number:][0]
            left &= confidences[:, step] < thresholds[step]
    thresholds[-1] = -np.inf
    return thresholds


def exit_steps(confidences: Values, thresholds: Values) -> NDArray[np.int64]:
    """Return the step (N,), counted from 0, after which each clip exits.

    A clip exits after the first step whose confidence (N, D) reaches the threshold of that step (D,).
    """
    return (confidences >= thresholds).argmax(1)


def confidence_of(scores: NDArray[Any], kind: str) -> Values:
    """Return the confidence (…) of class scores (…, K).

    Args:
        scores: Class scores before the softmax.
        kind: ``softmax`` for the highest softmax score, or ``score`` for the highest class score, as published for AdaFocusV2. The highest
            class score is less comparable between heads, because a constant that is added to all class scores changes the confidence but
            not the prediction.

    Raises:
        InputError: If the kind is unknown.
    """
    return lookup("exit_confidence", kind, CONFIDENCES)(scores)


def check_separable(classifier: Classifier) -> None:
    """Check that the classifier can process the frames of a clip one after the other.

    Raises:
        InputError: If the classifier has a temporal shift.
    """
    refuse_if(
        classifier.architecture.shift > 0,
        "exit must be left out with a classifier with temporal shift, which mixes all frames of a clip, so that every frame is needed",
    )


# The model of the thresholds


@dataclass(frozen=True)
class ExitModel:
    """The model and the clip settings for which thresholds were fitted.

    Attributes:
        classifier: Fingerprint of the classifier's weights.
        policy: Hash of the policy's weights.
        num_frames: T, frames per clip.
        num_steps: D, decisions per clip.
        patch_size: P in pixels.
        skipped: Input of the head for skipped frames.
        keep_threshold: Threshold on P(skip), or None if the policy does not skip or has no threshold.
    """

    classifier: str
    policy: str
    num_frames: int
    num_steps: int
    patch_size: int
    skipped: str
    keep_threshold: float | None

    @classmethod
    def of(
        cls, classifier: Classifier, policy: Any, num_frames: int, num_steps: int, *, skipped: str, keep_threshold: float | None = None
    ) -> ExitModel:
        """Return the `ExitModel` of a classifier and a policy.

        The policy is a `PolicyNetwork`, or an object whose attribute ``model`` is a Stable-Baselines3 algorithm.

        Raises:
            InputError: If the classifier has a temporal shift.
        """
        check_separable(classifier)
        is_network = isinstance(policy, PolicyNetwork)
        weights = hash_of((policy if is_network else policy.model.policy).state_dict())
        if is_network:
            threshold = policy.keep_threshold if keep_threshold is None else keep_threshold
            skipped, keep_threshold = (skipped, threshold) if policy.skips else ("zeros", None)
        patch_size = classifier.architecture.patch_size
        return cls(classifier.fingerprint(), weights, num_frames, num_steps, patch_size, skipped, keep_threshold)

    def check(self, given: ExitModel) -> None:
        """Check that the model ``given`` equals this model, for which the thresholds were fitted.

        Raises:
            InputError: If the models differ. The message names the first difference.
        """
        for name, ours in asdict(self).items():
            theirs = getattr(given, name)
            values = (f"{name}={value[:12] if name in ('classifier', 'policy') else value}" for value in (ours, theirs))
            refuse_if(ours != theirs, f"exit thresholds must be those of the model: they are for {' and it has '.join(values)}; {REFIT}")


@dataclass(frozen=True)
class ExitThresholds:
    """The thresholds of a conditional exit.

    Attributes:
        values: (D,), the thresholds. A clip exits after a step if its confidence reaches the threshold of the step.
        confidence: Kind of confidence, a name in `CONFIDENCES`.
        model: The model for which the thresholds were fitted. `agents.evaluation.inference.infer` checks that this model equals the model
            in use, unless ``model`` is None.
    """

    values: Values
    confidence: str
    model: ExitModel | None

    def leaving(self, scores: Tensor, step: int) -> NDArray[np.bool_]:
        """Return which clips exit after ``step``, (n,) bool. ``scores`` (n, K) are the scores after the step, which is counted from 0."""
        return confidence_of(scores.float().cpu().numpy(), self.confidence) >= self.values[step]

    def steps(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """Return the step (N,), counted from 0, after which each clip with the class scores ``scores`` (N, D, K) exits."""
        return exit_steps(confidence_of(scores, self.confidence), self.values)


@dataclass(frozen=True)
class ExitFit:
    """The confidences of the training clips, from which the thresholds for any p are computed.

    Attributes:
        model: The model that produced the confidences.
        data: Name of the training clips.
        confidences: Maps every kind of confidence, a name in `CONFIDENCES`, to confidences (N, D).
    """

    model: ExitModel
    data: str
    confidences: Mapping[str, Values]

    @classmethod
    def of(cls, model: ExitModel, data: str, scores: NDArray[Any]) -> ExitFit:
        """Return the `ExitFit` for training clips whose class scores after each step are ``scores`` (N, D, K)."""
        return cls(model, data, {kind: confidence_of(scores, kind) for kind in CONFIDENCES})

    def thresholds(self, p: float, confidence: str = "softmax") -> ExitThresholds:
        """Return the thresholds with which the share of training clips that exit after step k is proportional to p^k, for k = 1 … D.

        With p < 1, most clips exit early. With p = 1, the same number of clips exits after every step. With p > 1, most clips exit late.

        Raises:
            InputError: If ``p`` is not above 0, or the kind of confidence is unknown.
        """
        confidences = lookup("exit_confidence", confidence, self.confidences)
        return ExitThresholds(fit_thresholds(confidences, exit_shares(p, self.model.num_steps)), confidence, self.model)

    def save(self, path: Path) -> None:
        """Write the confidences to a JSON file.

        Raises:
            InputError: If the file cannot be written.
        """
        values = {kind: each.tolist() for kind, each in self.confidences.items()}
        write_text(path, json.dumps({"model": asdict(self.model), "data": self.data, "confidences": values}) + "\n")

    @classmethod
    def load(cls, path: Path) -> ExitFit:
        """Read a file that `save` wrote.

        Raises:
            InputError: If the file is missing or damaged.
        """
        stored = read_json(path.parent, path.name, f"exit={path}")
        try:
            confidences = {kind: np.array(stored["confidences"][kind], np.float64) for kind in CONFIDENCES}
            model = ExitModel(**stored["model"])
            refuse_if(any(each.ndim != 2 or each.shape[1] != model.num_steps for each in confidences.values()), "shapes differ")
            return cls(model, stored["data"], confidences)
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"{path} does not hold confidences of training clips ({problem!r}); remove it, and {REFIT}") from problem


def exit_file(policy: Path | str) -> Path:
    """Return the path of the file that stores the confidences for a policy.

    The file is in the policy's folder or, for a bundled policy, in the cache folder.
    """
    return cache_folder("exit") / f"{policy}.json" if str(policy) in BUNDLED else Path(policy) / EXIT_FILE
