"""The single environment: `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from adafocus_env.build import Split
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Features
from adafocus_env.observation import Observation, row_of
from adafocus_env.vector_env import METADATA, AdaFocusVectorEnv, check_open, check_options, infos_of_rows
from classifiers.classifier import Classifier


class AdaFocusEnv(gym.Env[Any, Any]):
    """Where to look in a video.

    ## Description
    A clip of T frames is classified by three frozen networks (AdaFocus, ICCV 2021). The *glancer* looks at every whole
    frame cheaply. In each step the agent sees the glance of one frame and picks one small patch of it; the *focuser* looks
    at that patch closely and a *head* updates the class scores. The agent is paid for the confidence in the true class that
    its patch brought. Where the head averages the scores of frames (the Something-Something family) a step is one of
    ``video_div`` decisions, each of which places the patches of an equal share of the frames.

    ## Action Space
    `AdaFocus-v0` (``action="grid"``): `Discrete(grid²)`, the cell of a grid, row-major. The patches of the first and the last
    cell of a row touch the borders.

    `AdaFocusContinuous-v0` (``action="continuous"``): `Box(0, 1, (2,), float32)`, a place a as (row, column). The top left
    corner of the patch is floor(a · (H − P)).

    `AdaFocusSkip-v0` (``action="skip"``, ``cost_weight=0.05``): `Discrete(grid² + 1)`, the same cells; the last action skips: the
    glancer sees the frame, the focuser does not. ``action_masks()`` tells MaskablePPO which actions make sense: all, but
    skipping in the last step where no patch has been looked at.

    ``action="continuous_skip"``: `Box(0, 1, (3,), float32)`, a place and a third coordinate; from 0.5 on the step skips.

    What the head gets on a step that skips:

    | skipped | the head |
    |---|---|
    | `zeros` | gets zeros in place of the focus vector |
    | `last` | gets the last focus vector again; zeros before the first |
    | `none` | takes no step; before its first step all classes are as likely |

    `zeros` is the default: with the bundled classifiers, which never saw a skipped frame, it and `none` are equally right and `last` is
    a little less so, and `zeros` is the most confident in 8 of the 9 cells. Validation clips of `normal`, `hard` and `sparse`,
    patches at the targets, frames kept at random (20 draws), top-1 in % at kept shares of 25, 47 and 67 %: `zeros` 85.2 93.9 94.5,
    81.3 89.5 89.7, 51.5 76.1 88.8; `last` 84.5 93.2 93.6, 80.0 88.7 89.7, 52.1 76.2 88.7; `none` 85.2 93.9 94.2, 82.4 90.5 90.6,
    51.1 75.6 88.3. All frames kept: 94.2, 90.4, 94.7.

    Where every step of an episode skips, the last one answers from the glance vectors, with zeros in place of the focus vectors,
    whatever ``skipped`` is.

    ## Observation Space
    | observation | space | content |
    |---|---|---|
    | `map` | `Box((C, h, w), float32)` | the glance map of the frame, or those of the decision's frames, stacked |
    | `vector` | `Box((C,), float32)` | the pooled glance map, its mean over the decision's frames |
    | `dict` | `Dict` of float32 `Box`es | the next five; `patch` and `head` are zeros before the first step |
    | – `map` | `Box((C, h, w))` | as above |
    | – `step` | `Box(0, 1, (1,))` | the share of the episode that is done |
    | – `patch` | `Box(0, 1, (2,))` | the last step's patch: (row, column) of its corner in shares of H − P |
    | – `head` | `Box(0, 1, (2,))` | the highest class score after the last step, the scores' entropy in shares of ln K |
    | – `state` | `Box((S,))` | the head's state, within −1 and 1 for a GRU |
    | `reference` | `Box((2,), int64)` | which clip, which step: for features extractors that read the glances in place |
    | `reference_looks` | `Box((3,), int64)` | the same, and how many steps of the episode have looked at a patch |
    | `pixels` | `Box(0, 255, (3·g, h, w), uint8)` | the decision's g frames as the glancer gets them |

    No observation holds or depends on the label.

    ## Rewards
    With p_t the softmax score of the true class after step t:

    | reward | value |
    |---|---|
    | `random` | p_t − E over uniformly random patches of p_t, all from the same state of the head (the paper's) |
    | `previous` | p_t − p_{t−1}, with p_{−1} = 0 |
    | `confidence` | p_t |
    | `padding` | p_t − p_t with zeros in place of the focus vector |

    Less ``cost_weight`` · the step's share of the multiply-adds that a step with a patch takes: 1, or less where the step skips (0.32
    with the demo classifier). The expectation of `random` is over patches alone, whatever the step did. Where the head takes no
    step (``skipped="none"``), p_t is p_{t−1}, or 1/K before its first one.

    ## Starting State
    A clip drawn uniformly, at its first frame; `reset(options={"clip": i})` chooses it.

    ## Episode End
    After the last frame (the last decision) the episode is *terminated*: the steps are the task, not a time limit. The last
    observation is repeated (`reference_looks` counts the last look). Episodes are never truncated.

    ## Info
    | key | type | content |
    |---|---|---|
    | `clip` | int | its number |
    | `name` | str | that of its video |
    | `confidence` | float | p_t |
    | `previous` | float | p_{t−1} |
    | `baseline` | float | the confidence that the rewards `random` and `padding` compare with; 0 with the others |
    | `penalty` | float | cost of the step, already subtracted from the reward |
    | `prediction` | int | the class with the highest score |
    | `correct` | bool | whether it is the true class |
    | `box` | (4,) int64 | the patch as (top, left, bottom, right) in pixels of the frame; zeros where the step skipped |
    | `multiply_adds` | int | of the step: glance, focus, head |

    After `reset` there are `clip` and `name` alone.

    ## Arguments
    See below; `gymnasium.make("AdaFocus-v0", reward="previous")` passes them on. With none, the clips are those of the demo
    videos, rendered and decoded 64 at a time when first asked for.

    ## Version History
    * v0: first version. ``skipped`` came later; its default is what `AdaFocusSkip-v0` did before.

    Args:
        classifier: a name or folder for `classifiers.load`, a frozen `Classifier`, or "auto": the one that is bundled for the task.
        clips: a part of the demo videos, or a `ClipStore`.
        task: which demo videos, a name in `adafocus_env.demo.videos.TASKS`; see `adafocus_env.tasks`.
        observation: see above, or a class of one's own (see `adafocus_env.observation`).
        reward: see above, or an `adafocus_env.reward.Reward` of one's own.
        baseline: random patches that stand for the expectation in the reward `random`, or "all" cells of the grid: the exact one.
        cost_weight: λ, what a step that looks at a patch costs, in units of the reward.
        skipped: "zeros", "last" or "none": what the head gets on a step that skips.
        action: "grid", "continuous", "skip" or "continuous_skip", or a class of one's own (see `adafocus_env.action`).
        grid: cells in each axis of the grid.
        video_div: decisions a video (1, 2 or 4) where the head averages the scores of frames; None elsewhere.
        bank: where the frozen networks' features are kept: "auto" (in memory where they fit, otherwise nowhere), True (in memory),
            False (nowhere: they are computed live), a folder, or `Features` (such as a `MemoryBank`) to share.
        bank_dtype: how a bank stores numbers: "float32", "float16" or "bfloat16".
        bank_gib: bound on a bank in memory, in GiB; where not all clips have room, those last used are kept.
        device: "auto", "cpu", "cuda" or "cuda:N", for a classifier given by name.
        render_mode: None or "rgb_array".

    Raises:
        InputError: an argument is out of its range, or classifier and clips do not fit together.
    """

    closed = False
    metadata = METADATA

    def __init__(
        self,
        classifier: Classifier | str = "auto",
        clips: ClipSource | Split = "train",
        *,
        task: str = "normal",
        observation: str | Callable[[Features], Observation] = "map",
        device: str = "auto",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.metadata = {**METADATA}  # Gymnasium's own vector environments write into it
        self._one = AdaFocusVectorEnv(
            1, classifier, clips, task=task, observation=observation, device=device, render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED, **settings,
        )  # fmt: skip
        self.dynamics, self.render_mode = self._one.dynamics, render_mode
        self.observation_space: spaces.Space[Any] = self._one.single_observation_space
        self.action_space: spaces.Discrete | spaces.Box = self.dynamics.action.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; ``options={"clip": i}`` chooses the clip.

        Raises:
            ClosedEnvironmentError: the environment is closed.
            InputError: an option is not known, or there is no such clip.
        """
        check_open(self)
        super().reset(seed=seed)
        self._one.rngs[0] = self.np_random
        observed, infos = self._one.reset(options={"clips": [check_options(options, {"clip"}).get("clip")]})
        return row_of(observed, 0), infos_of_rows(infos, 1)[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Focus on the patch that ``action`` selects in the current frame (in all frames of the current decision).

        Raises:
            ActionError: the action lies outside the space; the episode is unchanged.
            ResetNeeded: no episode is running.
            ClosedEnvironmentError: the environment is closed.
        """
        check_open(self)
        observed, reward, terminated, _, infos = self._one.step([action])
        return row_of(observed, 0), float(reward[0]), bool(terminated[0]), False, infos_of_rows(infos, 1)[0]

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the frame with the last patch, the predicted class and its confidence, (h, w, 3) uint8; None without a render mode."""
        pictures = self._one.render()
        return pictures and pictures[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the action mask (actions,) for `sb3_contrib.MaskablePPO`; see `adafocus_env.dynamics.Dynamics.action_masks`."""
        return self.dynamics.action_masks()[0]

    def close(self) -> None:
        """Close the environment: it can be neither reset nor stepped any more. A shared bank stays as it is."""
        self.closed = True
