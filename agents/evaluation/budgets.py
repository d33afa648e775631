"""Budgets: find the threshold on P(skip) that meets a budget on the validation split.

A budget is a number of GFLOPs per video, or a share of frames that get a patch.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import torch
from numpy.typing import NDArray

from adafocus_env.features.live import Features
from agents.evaluation.evaluate import CLIPS_AT_ONCE, batches
from agents.policies.baselines import Actions
from agents.policies.networks import PolicyNetwork, patch_mask_below
from classifiers.errors import InputError
from classifiers.flops import VideoFlops

PatchMask = NDArray[np.bool_]
Shares = NDArray[np.floating]


def requested_keep(budget: float | None, keep: float | None, flops: VideoFlops) -> float:
    """Return the share of frames that get a patch: ``keep`` if it is given, otherwise the share that ``budget`` allows.

    Args:
        budget: GFLOPs per video.
        keep: Share of frames with a patch, in (0, 1].
        flops: Multiply-adds of a video.

    Raises:
        InputError: If both or neither of ``budget`` and ``keep`` are given, or if the value is out of range.
    """
    if (budget is None) == (keep is None):
        raise InputError(f"budget={budget}, keep={keep}: set one of them, GFLOPs per video or the share of frames with a patch")
    return flops.keep_for(budget) if budget is not None else check_keep(keep)


def check_keep(keep: float | None) -> float:
    """Check a share of frames with a patch and return it.

    Raises:
        InputError: If the share is not in (0, 1].
    """
    if keep is None or isinstance(keep, bool) or not 0 < keep <= 1:
        raise InputError(f"keep must be a share of frames above 0 and at most 1, such as 0.47, got {keep}")
    return keep


def set_threshold(policy: PolicyNetwork, val: Features, share: float) -> str:
    """Set the threshold of a skipping policy so that the given share of frames gets a patch. Return a text that states the threshold.

    The threshold is computed on the validation clips.
    """
    policy.keep_threshold = threshold_for(policy, val, share)
    return f"{share:.1%} of the frames get a patch: skipping where P(skip) is {policy.keep_threshold:.4g} or more"


def threshold_for(policy: PolicyNetwork, features: Features, keep: float) -> float:
    """Return the threshold on P(skip) for which the share ``keep`` of the policy's decisions has a patch; see `solve_threshold`."""
    return solve_threshold(skip_probabilities(policy, features)[1], keep)


def skip_probabilities(policy: PolicyNetwork, features: Features) -> tuple[Actions, Shares]:
    """Return the locations that a skipping policy selects in all clips, and its probabilities of skipping.

    Returns:
        The locations or cells (N, D, …), and P(skip) (N, D, D). The index on the last axis of P(skip) is the number of earlier patches in
        the clip.
    """
    steps, results = np.arange(features.num_steps)[None], []
    for clips in batches(np.arange(len(features.clips)), CLIPS_AT_ONCE):
        results.append([values.cpu().numpy() for values in policy.choose(features.glance_maps(clips[:, None], steps))])
    actions, skip = (np.concatenate(values) for values in zip(*results, strict=True))
    return actions, skip


def solve_threshold(skip: Shares, keep: float) -> float:
    """Return the threshold on P(skip), the probability of skipping, for which the share ``keep`` of the decisions has a patch.

    A decision has a patch if its P(skip) is below the threshold. The threshold lies half-way between two neighbouring values of ``skip``.

    Args:
        skip: P(skip) on the validation split, (N, D), or (N, D, D) as for `patch_mask_at`. Instead of P(skip), another score can be used if
            it is high for decisions in which a patch is worth little.
        keep: Share of the decisions with a patch.

    Raises:
        InputError: If the validation split is empty, or ``keep`` is not in (0, 1].
    """
    target = check_keep(keep) * check_validation(skip).shape[0] * skip.shape[1]
    rising = np.unique(skip).astype(np.float64)
    between = np.concatenate([[rising[0] - 1], (rising[:-1] + rising[1:]) / 2, [rising[-1] + 1]])

    def num_patches(index: int) -> int:
        return int(patch_mask_at(skip, between[index]).sum())

    enough = bisect_left(range(len(between)), math.ceil(target), key=num_patches)  # increases with the threshold
    return float(between[min((enough, max(enough - 1, 0)), key=lambda index: abs(num_patches(index) - target))])


def check_validation(values: Shares) -> Shares:
    """Check that ``values`` (N, …) of the validation split are not empty, and return them.

    Raises:
        InputError: If the validation split is empty.
    """
    if not values.size:
        raise InputError("a budget needs a validation split, which is empty: set data.val to a share of the training videos")
    return values


def patch_mask_at(skip: Shares, threshold: float) -> PatchMask:
    """Return the patch mask (N, D) that `PolicyNetwork.act` computes with this threshold; see `patch_mask_below`."""
    return patch_mask_below(torch.from_numpy(skip), threshold).numpy()
