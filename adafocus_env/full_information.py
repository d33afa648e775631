"""Full information: the reward that every action would have had in the state before a step.

``full_information`` of an environment adds to the info of each step the rewards of all actions from the state before it. This is
counterfactual: an agent that acts in the world learns the reward of the action that it took, and not those of the others. Standard
algorithms do not get it, and observations never depend on it. A comparison with such algorithms has to count its cost: a bank of all
cells, G² passes of the focuser per frame, once; then one comparison by the head per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafocus_env.action import Action
from adafocus_env.reward import Reward
from classifiers.errors import refuse_if


@dataclass(frozen=True)
class Alternatives:
    """The actions whose rewards a step reports: all of them, or where they are continuous K sampled ones and, if actions can skip, a skip.

    Attributes:
        action: The kind of action.
        num_sampled: K, sampled in each step; 0 on grids.
        fixed: (M, *action space), the others: the same in all steps.
        num_shared: How many of the first are among the patches that the reward compares with in each step.
    """

    action: Action
    num_sampled: int
    fixed: NDArray[Any]
    num_shared: int

    @classmethod
    def of(cls, request: bool | int, action: Action, compared: NDArray[Any]) -> Alternatives:
        """Return the actions that ``full_information`` asks for, none if it is false.

        Args:
            request: True on grids; K where actions are continuous.
            action: The kind of action.
            compared: (cells, *action space), the patches that the reward compares with in each step; none if they are sampled.

        Raises:
            InputError: The request does not suit the action.
        """
        candidates, given = action.candidates, f"full_information={str(request).lower()}"
        if request is False:
            return cls(action, 0, candidates[:0], 0)
        if action.num_cells is None:
            refuse_if(
                request is True,
                f"{given} must be a number with continuous actions, of which there are infinitely many: that of the locations that are "
                "sampled in each step, such as full_information=16",
            )
            return cls(action, request, candidates[~action.patch_mask(candidates)], 0)
        refuse_if(request is not True, f"{given} must be true on a grid, where the rewards of all actions are reported")
        in_order = np.array_equal(candidates[: len(compared)], compared)
        return cls(action, 0, candidates, len(compared) if in_order else 0)

    def __len__(self) -> int:
        """Return A, the number of actions."""
        return self.num_sampled + len(self.fixed)

    def sample(self, rng: np.random.Generator, num_steps: int) -> NDArray[Any]:
        """Sample the K actions of each step (D, K, *action space), from a separate stream: ``rng`` stays as it is."""
        bits: Any = rng.bit_generator
        return self.action.sample(np.random.Generator(bits.jumped()) if self.num_sampled else rng, (num_steps, self.num_sampled))

    def with_sampled(self, sampled: NDArray[Any]) -> NDArray[Any]:
        """Return all actions (A, n, *action space), given the sampled ones (K, n, *action space) of n clips."""
        return np.concatenate([sampled, for_each_clip(self.fixed, sampled.shape[1])])


def for_each_clip(actions: NDArray[Any], count: int) -> NDArray[Any]:
    """Actions (M, *action space) → the same for each of ``count`` clips (M, count, *action space)."""
    return np.broadcast_to(actions[:, None], (len(actions), count, *actions.shape[1:]))


def check_full_information(action: Action, reward: Reward, *, stored: bool, prefix: str = "") -> None:
    """Check that the rewards of all actions can be reported.

    Args:
        action: The kind of action.
        reward: Of the environment.
        stored: Whether the focus vectors of all cells are stored in a bank.
        prefix: Of the names of the settings in messages: those of commands have one.

    Raises:
        InputError: A grid without a bank (says what it would cost), or a reward that is not elementwise (names it).
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
        "clips; set Reward(..., elementwise=True) if each number depends on those at the same position alone, or leave "
        f"{prefix}full_information out",
    )
