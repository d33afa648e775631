"""Budgets: from GFLOPs per video, or a share of frames, to a threshold on the skip probability, solved on the validation split."""

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
    """Return the share of frames with a patch that the user asks for, in either form.

    Args:
        budget: GFLOPs per video.
        keep: The share.
        flops: Of a video.

    Raises:
        InputError: Both or none are given, or one is out of its range.
    """
    if (budget is None) == (keep is None):
        raise InputError(f"budget={budget}, keep={keep}: give one of them, GFLOPs per video or the share of frames to keep")
    return flops.keep_for(budget) if budget is not None else check_keep(keep)


def check_keep(keep: float | None) -> float:
    """Return a valid share of frames to keep.

    Raises:
        InputError: It is not above 0 and at most 1.
    """
    if keep is None or isinstance(keep, bool) or not 0 < keep <= 1:
        raise InputError(f"keep must be a share of frames above 0 and at most 1, such as 0.47, got {keep}")
    return keep


def set_threshold(policy: PolicyNetwork, val: Features, share: float) -> str:
    """Set the threshold of a policy that skips, solved on validation clips for a share of frames with a patch; return a line about it."""
    policy.keep_threshold = threshold_for(policy, val, share)
    return f"{share:.1%} of the frames get a patch: skipping where P(skip) is {policy.keep_threshold:.4g} or more"


def threshold_for(policy: PolicyNetwork, features: Features, keep: float) -> float:
    """Return the threshold on P(skip) with which the policy selects a patch in a share of the decisions; see `solve_threshold`."""
    return solve_threshold(skip_probabilities(policy, features)[1], keep)


def skip_probabilities(policy: PolicyNetwork, features: Features) -> tuple[Actions, Shares]:
    """Return the patches of a skipping policy in all clips (N, D, …), and P(skip) by the number of earlier patches (N, D, D)."""
    steps, results = np.arange(features.num_steps)[None], []
    for clips in batches(np.arange(len(features.clips)), CLIPS_AT_ONCE):
        results.append([values.cpu().numpy() for values in policy.choose(features.glance_maps(clips[:, None], steps))])
    actions, skip = (np.concatenate(values) for values in zip(*results, strict=True))
    return actions, skip


def solve_threshold(skip: Shares, keep: float) -> float:
    """Return the threshold below which a share of the decisions lies, half-way between two neighbouring values.

    Args:
        skip: P(skip), or any other number that is high where a patch is worth little, (N, D) of the validation split; or (N, D, D), see
            `patch_mask_at`.
        keep: The share.

    Raises:
        InputError: The validation split is empty, or ``keep`` is not a share.
    """
    target = check_keep(keep) * check_validation(skip).shape[0] * skip.shape[1]
    rising = np.unique(skip).astype(np.float64)
    between = np.concatenate([[rising[0] - 1], (rising[:-1] + rising[1:]) / 2, [rising[-1] + 1]])

    def num_patches(index: int) -> int:
        return int(patch_mask_at(skip, between[index]).sum())

    enough = bisect_left(range(len(between)), math.ceil(target), key=num_patches)  # rises with the threshold
    return float(between[min((enough, max(enough - 1, 0)), key=lambda index: abs(num_patches(index) - target))])


def check_validation(values: Shares) -> Shares:
    """Return ``values`` (N, …) of the clips of the validation split.

    Raises:
        InputError: It has no clips.
    """
    if not values.size:
        raise InputError("a budget needs a validation split, which is empty: set data.val to a share of the training videos")
    return values


def patch_mask_at(skip: Shares, threshold: float) -> PatchMask:
    """Return which decisions (N, D) have a patch at a threshold, as in `PolicyNetwork.act`; see `patch_mask_below`."""
    return patch_mask_below(torch.from_numpy(skip), threshold).numpy()
