"""The result of one step of N clips and, with full information, the rewards that all possible actions would have had in this step.

With the argument ``full_information`` of an environment, the info of each step also contains the rewards that all actions would have had in
this step. Full information is counterfactual: in the real world, an agent learns only the reward of the action that it took. Standard
algorithms do not use full information, and observations never depend on it. A comparison with standard algorithms must include the cost of
full information. A bank of all cells is filled once, with G² focuser passes per frame. With the filled bank, the head scores all actions in
each step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action
from adafocus_env.reward import Reward
from adafocus_env.transfers import Values, with_rows
from classifiers.errors import refuse_if


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


@dataclass(frozen=True)
class Alternatives:
    """The actions whose rewards a step reports.

    On a grid, a step reports the rewards of all actions. With continuous actions, a step reports the rewards of K sampled locations and, if
    actions can skip, of one action that skips.

    Attributes:
        action: The kind of action.
        num_sampled: K, number of actions that are sampled in each step; 0 on a grid.
        fixed: (M, *action space), the actions that are not sampled and are the same in all steps.
        num_shared: Number of fixed actions that the reward's baseline also evaluates in each step. These actions come first in ``fixed``.
    """

    action: Action
    num_sampled: int
    fixed: NDArray[Any]
    num_shared: int

    @classmethod
    def of(cls, request: bool | int, action: Action, compared: NDArray[Any]) -> Alternatives:
        """Return the actions whose rewards ``full_information`` requests. If ``request`` is false, the result has no actions.

        Args:
            request: True for the cells of a grid, or K for continuous actions.
            action: The kind of action.
            compared: (cells, *action space), the patches of the reward's baseline in each step; empty if these patches are sampled.

        Raises:
            InputError: If the request does not match the kind of action.
        """
        candidates, given = action.candidates, f"full_information={str(request).lower()}"
        if request is False:
            return cls(action, 0, candidates[:0], 0)
        if action.num_cells is None:
            refuse_if(
                request is True,
                f"{given} must be a number with continuous actions, since they are infinitely many: the number of locations to sample "
                "in each step, such as full_information=16",
            )
            return cls(action, request, candidates[~action.patch_mask(candidates)], 0)
        refuse_if(request is not True, f"{given} must be true on a grid, where the rewards of all actions are reported")
        in_order = np.array_equal(candidates[: len(compared)], compared)
        return cls(action, 0, candidates, len(compared) if in_order else 0)

    def __len__(self) -> int:
        """Return A, the number of actions."""
        return self.num_sampled + len(self.fixed)

    def sample(self, rng: np.random.Generator, num_steps: int) -> NDArray[Any]:
        """Sample K actions for each step (D, K, *action space).

        The samples come from a separate stream of random numbers, so that ``rng`` does not advance.
        """
        bits: Any = rng.bit_generator
        return self.action.sample(np.random.Generator(bits.jumped()) if self.num_sampled else rng, (num_steps, self.num_sampled))

    def with_sampled(self, sampled: NDArray[Any]) -> NDArray[Any]:
        """Return all actions (A, n, *action space) of n clips, given their sampled actions (K, n, *action space)."""
        return np.concatenate([sampled, for_each_clip(self.fixed, sampled.shape[1])]) if len(self.fixed) else sampled


def for_each_clip(actions: NDArray[Any], count: int) -> NDArray[Any]:
    """Repeat actions (M, *action space) for each of ``count`` clips, and return them as (M, count, *action space)."""
    return np.broadcast_to(actions[:, None], (len(actions), count, *actions.shape[1:]))


def check_full_information(action: Action, reward: Reward, *, stored: bool, prefix: str = "") -> None:
    """Check that the rewards of all actions can be reported.

    Args:
        action: The kind of action.
        reward: The environment's reward.
        stored: Whether the focus vectors of all cells are stored in a bank.
        prefix: Prefix of the names of settings in error messages; commands use ``env.``.

    Raises:
        InputError: If the reward is not elementwise, or if the actions are cells of a grid and there is no bank. In the second case, the
            message states the cost.
    """
    cells = action.patch_action.num_cells
    refuse_if(
        cells and not stored,
        f"{prefix}full_information needs a bank on a grid: without one, each step takes {cells} passes of the focuser per clip instead of "
        f"1; set {prefix}bank=true, or leave {prefix}full_information out",
    )
    name = getattr(reward.value, "__name__", repr(reward.value))
    refuse_if(
        not reward.elementwise,
        f"the reward {name} must be elementwise for {prefix}full_information, which calls it with the confidences (A, N) of A actions of N "
        "clips; set Reward(..., elementwise=True) if each number depends only on those at the same position, or leave "
        f"{prefix}full_information out",
    )
