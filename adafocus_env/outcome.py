"""What a step of the dynamics did."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.transfers import Values, with_rows


@dataclass(frozen=True)
class Outcome:
    """What one step did to N clips. Arrays are new at every step and never written to afterwards.

    The first seven are tensors on the networks' device where the dynamics are asked for them.

    Attributes:
        reward: (N,) float32.
        confidence: (N,) float32, softmax score of the true class.
        baseline: (N,) float32, that of the patches which the reward compares with; 0 where it compares with none.
        prediction: (N,) int64, the class with the highest score.
        correct: (N,) bool, whether it is the true class.
        previous: (N,) float32, confidence after the step before; 0 in the first.
        boxes: (N, 4) int64, the patches as (top, left, bottom, right) in pixels; zeros where there was none.
        terminated: (N,) bool.
        cost_weight: (N,) float32, what was paid for the step, already taken off the reward.
        multiply_adds: (N,) int64, of the step.
    """

    reward: Values
    confidence: Values
    baseline: Values
    prediction: Values
    correct: Values
    previous: Values
    boxes: Values
    terminated: NDArray[np.bool_]
    cost_weight: NDArray[np.float32]
    multiply_adds: NDArray[np.int64]

    def among(self, rows: NDArray[np.int64], count: int) -> Outcome:
        """The outcome of the given rows among ``count`` rows: zeros in the rest."""

        def spread(values: Values) -> Any:
            shape = (count, *values.shape[1:])
            return with_rows(values.new_zeros(shape) if isinstance(values, Tensor) else np.zeros(shape, values.dtype), rows, values)

        return Outcome(*(spread(getattr(self, field.name)) for field in fields(self)))
