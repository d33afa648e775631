"""Budgets: from GFLOPs a video, or a share of frames, to a threshold on the skip probability, solved on the validation part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import InputError

Kept = NDArray[np.bool_]
Shares = NDArray[np.floating]


@dataclass(frozen=True)
class VideoCost:
    """What a video costs, in multiply-adds (one counts as one, as in the publications).

    Attributes:
        steps: D, decisions in a video.
        seen: of each decision: the glancer, the policy and the head.
        look: on top, where its frames are looked at: the focuser.
    """

    steps: int
    seen: int
    look: int

    def __call__(self, looks: float, seen: float | None = None) -> float:
        """Multiply-adds of a video (of many, as arrays).

        Args:
            looks: decisions whose frames are looked at.
            seen: decisions before the video is stopped; None: all.
        """
        return (self.steps if seen is None else seen) * self.seen + looks * self.look

    @property
    def range(self) -> tuple[float, float]:
        """GFLOPs of a video of which nothing is looked at, and of one of which all is."""
        return self(0) / 1e9, self(self.steps) / 1e9

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
    """The threshold that keeps a share of the decisions: those whose value is not above it.

    It lies half-way between the last value that is kept and the first that is not.

    Args:
        skip: P(skip), or any other number that is high where a look is worth little, (N, D) of the validation part.
        keep: the share.

    Raises:
        InputError: there is no validation part, or ``keep`` is no share.
    """
    count = round(check_keep(keep) * check_validation(skip).size)
    rising = np.append(np.sort(skip, axis=None), np.inf)
    if count == 0:
        return float(-np.inf)
    return float(rising[count - 1] + rising[count]) / 2


def check_validation(values: Shares) -> Shares:
    """Returns ``values`` (N, …) of the clips of the validation part.

    Raises:
        InputError: it has no clips.
    """
    if not values.size:
        raise InputError("a budget is solved on the validation part, which is empty: set data.val to a share of the training videos")
    return values


def kept_at(skip: Shares, threshold: float) -> Kept:
    """Which decisions are kept at a threshold: those whose value is not above it."""
    return skip <= threshold
