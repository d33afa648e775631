"""The result of one step of N clips."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.transfers import Values, with_rows


@dataclass(frozen=True)
class Outcome:
    """The result of one step of N clips. Every step creates new arrays, which are not modified later.

    If the dynamics return tensors, the first seven attributes are tensors on the networks' device.

    Attributes:
        reward: (N,) float32, with the penalty subtracted.
        confidence: (N,) float32, softmax score of the true class.
        baseline: (N,) float32, mean of the confidence over the patches of the reward's baseline; 0 for a reward without a baseline.
        prediction: (N,) int64, the class with the highest score.
        correct: (N,) bool, whether the predicted class is the true class.
        previous: (N,) float32, confidence after the previous step; 0 in the first step.
        boxes: (N, 4) int64, the patches as (top, left, bottom, right) in pixels; zeros for a skipped step.
        terminated: (N,) bool.
        penalty: (N,) float32, cost of the step in units of the reward. The cost is λ times the step's multiply-adds, divided by the
            multiply-adds of a step with a patch.
        multiply_adds: (N,) int64, multiply-adds of the step.
        action_rewards: (N, A) float32, the rewards that all actions would have had in this step, after subtraction of the penalties.
            Without ``full_information``, A is 0. The rewards are a tensor if ``reward`` is a tensor.
        alternatives: (N, A, *action space), the actions whose rewards are in ``action_rewards``.
    """

    reward: Values
    confidence: Values
    baseline: Values
    prediction: Values
    correct: Values
    previous: Values
    boxes: Values
    terminated: NDArray[np.bool_]
    penalty: NDArray[np.float32]
    multiply_adds: NDArray[np.int64]
    action_rewards: Values
    alternatives: NDArray[Any]

    def among(self, rows: NDArray[np.int64], count: int) -> Outcome:
        """Return an outcome with ``count`` rows, which has this outcome's values in the given rows and zeros in the other rows."""

        def spread(values: Values) -> Any:
            shape = (count, *values.shape[1:])
            return with_rows(values.new_zeros(shape) if isinstance(values, Tensor) else np.zeros(shape, values.dtype), rows, values)

        return Outcome(*(spread(getattr(self, field.name)) for field in fields(self)))
