"""Budgets: from GFLOPs a video, or a share of frames, to a threshold on the skip probability, solved on the validation part."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adafocus_env.features.live import Features
from adafocus_env.skipped import find_skipped
from agents.evaluation.inference import policy_cost
from agents.policies.networks import PolicyNetwork, patch_mask_below
from classifiers.errors import InputError
from classifiers.flops import classifier_cost

PatchMask = NDArray[np.bool_]
Shares = NDArray[np.floating]


@dataclass(frozen=True)
class VideoCost:
    """What a video costs, in multiply-adds (one counts as one, as in the publications).

    Attributes:
        steps: D, decisions in a video.
        seen: of each decision: the glancer and the policy, and the head if it takes a step where frames are skipped.
        look: on top, where its frames are looked at: the focuser, and the head if it takes a step there alone.
        unseen: on top, of a video that ends without a look, where its answer needs steps of the head that were not taken.
    """

    steps: int
    seen: int
    look: int
    unseen: int = 0

    def of(self, num_patches: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Multiply-adds of videos with so many decisions that look, and so many before they were answered."""
        return seen * self.seen + num_patches * self.look + (num_patches == 0) * (seen == self.steps) * self.unseen

    def at(self, keep: float) -> float:
        """Multiply-adds of a video of which this share of the frames is looked at."""
        return self.steps * (self.seen + keep * self.look)

    @property
    def range(self) -> tuple[float, float]:
        """GFLOPs of a video of which nothing is looked at, and of one of which all is."""
        return self.at(0) / 1e9, self.at(1) / 1e9

    def keep_for(self, budget: float) -> float:
        """The share of frames that can be kept for so many GFLOPs a video.

        Raises:
            InputError: the budget is below what nothing but glances costs, or above what all patches cost.
        """
        least, most = self.range
        if not least <= budget <= most:
            raise InputError(
                f"budget={budget} GFLOPs a video cannot be met: glances alone cost {least:.4g}, a look at every frame costs {most:.4g}; "
                f"choose a budget from {least:.4g} to {most:.4g}"
            )
        return (budget - least) / (most - least)


def cost_of(features: Features, policy: PolicyNetwork, skipped: str) -> VideoCost:
    """What videos cost with this classifier and this policy.

    Args:
        features: of clips, which tell how many frames they have.
        policy: what chooses.
        skipped: what the head gets on a skipped step, a name in `adafocus_env.skipped.SKIPPED`.
    """
    cost, settings, steps = classifier_cost(features.classifier), features.clips.settings, features.num_steps
    glance, focus, head = (
        count * each // steps
        for count, each in (
            (settings.num_glance_frames, cost.glance), (settings.num_frames, cost.focus), (settings.num_frames, cost.head)
        )
    )  # fmt: skip
    seen = glance + policy_cost(policy)
    if find_skipped(skipped) == "none":
        return VideoCost(steps, seen, focus + head, unseen=steps * head)
    return VideoCost(steps, seen + head, focus)


def asked_share(budget: float | None, keep: float | None, cost: VideoCost) -> float:
    """The share of frames to keep that the user asks for, in either way.

    Args:
        budget: GFLOPs a video.
        keep: the share itself.
        cost: of a video.

    Raises:
        InputError: both or none are given, or one is out of its range.
    """
    if (budget is None) == (keep is None):
        raise InputError(f"budget={budget}, keep={keep}: give one of them, GFLOPs a video or the share of frames to keep")
    return cost.keep_for(budget) if budget is not None else check_keep(keep)


def check_keep(keep: float | None) -> float:
    """Returns a share of frames to keep.

    Raises:
        InputError: it is none.
    """
    if keep is None or isinstance(keep, bool) or not 0 < keep <= 1:
        raise InputError(f"keep={keep} is no share of frames to keep; choose one above 0 and up to 1, such as 0.47")
    return keep


def solve_threshold(skip: Shares, keep: float) -> float:
    """The threshold that keeps a share of the decisions: those whose value is below it.

    It lies half-way between the last value that is kept and the first that is not.

    Args:
        skip: P(skip), or any other number that is high where a look is worth little, (N, D) of the validation part; or (N, D, D), see
            `patch_mask_at`.
        keep: the share.

    Raises:
        InputError: there is no validation part, or ``keep`` is no share.
    """
    wanted = check_keep(keep) * check_validation(skip).shape[0] * skip.shape[1]
    rising = np.unique(skip).astype(np.float64)
    between = np.concatenate([[rising[0] - 1], (rising[:-1] + rising[1:]) / 2, [rising[-1] + 1]])

    def patch_mask(place: int) -> int:
        return int(patch_mask_at(skip, between[place]).sum())

    enough = bisect_left(range(len(between)), math.ceil(wanted), key=patch_mask)  # the higher the threshold, the more are kept
    return float(between[min((enough, max(enough - 1, 0)), key=lambda place: abs(patch_mask(place) - wanted))])


def check_validation(values: Shares) -> Shares:
    """Returns ``values`` (N, …) of the clips of the validation part.

    Raises:
        InputError: it has no clips.
    """
    if not values.size:
        raise InputError("a budget is solved on the validation part, which is empty: set data.val to a share of the training videos")
    return values


def patch_mask_at(skip: Shares, threshold: float) -> PatchMask:
    """Which decisions (N, D) are kept at a threshold: those whose value is below it, as in `PolicyNetwork.act`; see `patch_mask_below`."""
    return patch_mask_below(torch.from_numpy(skip), threshold).numpy()
