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
from adafocus_env.demo.videos import DEFAULT_TASK
from adafocus_env.features.live import Features
from adafocus_env.observation import Observation, row_of
from adafocus_env.vector_env import METADATA, AdaFocusVectorEnv, check_arguments, check_open, check_options, infos_of_rows
from classifiers.classifier import Classifier


class AdaFocusEnv(gym.Env[Any, Any]):
    """Select patches of a video for a classifier.

    ## Description
    Three frozen networks classify a clip of T frames (AdaFocus, ICCV 2021). The *glancer* processes every whole frame at low cost. In
    every step, the agent observes the glance of one frame and selects one small patch of the frame. The *focuser* processes this patch, and
    a *head* updates the class scores. The reward is the amount by which the patch increases the confidence in the true class. If the head
    averages the scores of frames (the Something-Something family), the episode has ``video_div`` steps. Each step is one decision, which
    selects the patches in an equal share of the frames.

    ## Action Space
    `AdaFocus-v1` (``action="grid"``): `Discrete(grid²)`. An action is a cell of a grid, in row-major order. The patches of the first and
    the last cell of a row touch the borders of the frame.

    `AdaFocusContinuous-v1` (``action="continuous"``): `Box(0, 1, (2,), float32)`. An action is a location a = (row, column). The top left
    corner of the patch is floor(a · (H − P)).

    ``action="interpolated"``: the same space as `continuous`. The corner is not rounded: it is a · (H − P), and the patch is interpolated
    bilinearly, as in AdaFocusV2.

    `AdaFocusSkip-v1` (``action="skip"``, ``cost_weight=0.05``): `Discrete(grid² + 1)`. The first grid² actions are the cells of the grid.
    The last action skips the frame: the glancer sees it, the focuser does not. The masks of ``action_masks()``, for MaskablePPO, exclude
    the last action in only one case: in the last step of an episode that has had no patch.

    ``action="continuous_skip"``: `Box(0, 1, (3,), float32)`. An action is a location and a third coordinate. If the third coordinate is at
    least 0.5, the step skips the frame.

    The input of the head in a skipped step:

    | skipped | the head |
    |---|---|
    | `zeros` | receives zeros in place of the focus vector |
    | `last` | receives the last focus vector again; zeros before the first |
    | `none` | takes no step; before its first step, all classes have the same score |

    `zeros` is the default. The bundled classifiers were trained without skipped frames. With the bundled classifiers, `zeros` and `none`
    are equally accurate, `last` is slightly worse, and `zeros` has the highest confidence in 8 of 9 comparisons. The following table has
    the top-1 accuracies in % on validation clips of three tasks, with patches at the targets. Every entry has three accuracies, for patches
    in 25 %, 47 % and 67 % of the frames. The frames with a patch are selected at random (20 samples).

    | skipped | `normal` | `hard` | `sparse` |
    |---|---|---|---|
    | `zeros` | 85.2, 93.9, 94.5 | 81.3, 89.5, 89.7 | 51.5, 76.1, 88.8 |
    | `last` | 84.5, 93.2, 93.6 | 80.0, 88.7, 89.7 | 52.1, 76.2, 88.7 |
    | `none` | 85.2, 93.9, 94.2 | 82.4, 90.5, 90.6 | 51.1, 75.6, 88.3 |
    | patches in all frames | 94.2 | 90.4 | 94.7 |

    If every step of an episode skips, the last step classifies the glance vectors with zeros in place of the focus vectors. This does not
    depend on ``skipped``.

    ## Observation Space
    | observation | space | content |
    |---|---|---|
    | `map` | `Box((C, h, w), float32)` | the glance map of the frame, or the stacked maps of the decision's frames |
    | `vector` | `Box((C,), float32)` | the pooled glance map, averaged over the decision's frames |
    | `dict` | `Dict` of `Box` spaces, float32 | the next five entries; `patch` and `head` are zeros before the first step |
    | – `map` | `Box((C, h, w))` | as above |
    | – ``step`` | `Box(0, 1, (1,))` | the finished share of the episode |
    | – `patch` | `Box(0, 1, (2,))` | the corner of the last step's patch: (row, column) in fractions of H − P |
    | – `head` | `Box(0, 1, (2,))` | the highest class score after the last step, and the entropy of the scores in fractions of ln K |
    | – `state` | `Box((S,))` | the state of the head, between −1 and 1 for a GRU |
    | `reference` | `Box((2,), int64)` | indices of clip and step, for features extractors that read glances by reference |
    | `reference_looks` | `Box((3,), int64)` | clip, step, and the number of the episode's patches so far |
    | `pixels` | `Box(0, 255, (3·g, h, w), uint8)` | the decision's g frames as the glancer receives them |

    No observation contains the label or depends on it.

    ## Rewards
    The confidence p_t is the softmax score of the true class after step t.

    | reward | value |
    |---|---|
    | `random` | p_t − the mean of p_t over uniformly random patches, all from the same state of the head (the paper's reward) |
    | `previous` | p_t − p_{t−1}, with p_{−1} = 0 |
    | `confidence` | p_t |
    | `padding` | p_t − p_t with zeros in place of the focus vector |
    | `standalone` | as `random`, but with the head in its initial state, so that every patch is judged on its own; no skipping |
    | `log_confidence` | ln p_t − ln of the mean of p_t over uniformly random patches, with p_t of at least 1e-6 |

    The penalty ``cost_weight`` · c is subtracted from the reward. The factor c is the number of multiply-adds of the step, divided by the
    multiply-adds of a step with a patch. The factor c is therefore 1 for a step with a patch, and lower if the step skips (0.32 with the
    demo classifier). The random patches for the rewards `random` and `log_confidence` are never skipped, even if the agent's step skips. If
    the head takes no step (``skipped="none"``), p_t is p_{t−1}, or 1/K before the head's first step.

    ## Starting State
    An episode starts at the first frame of a uniformly sampled clip. `reset(options={"clip": i})` chooses the clip.

    ## Episode End
    The episode is *terminated* after the last frame (the last decision), because the number of steps is a part of the task and not a time
    limit. Episodes are never truncated. The final observation shows the last frame again. With `reference_looks`, the number of patches in
    the final observation includes the last patch.

    ## Info
    | key | type | content |
    |---|---|---|
    | `clip` | int | the index of the clip |
    | `name` | str | the name of its video |
    | `confidence` | float | p_t |
    | `previous` | float | p_{t−1} |
    | `baseline` | float | the confidence subtracted in `random`, `standalone`, `log_confidence` and `padding`; otherwise 0 |
    | `penalty` | float | cost of the step, already subtracted from the reward |
    | `prediction` | int | the class with the highest score |
    | `correct` | bool | whether it is the true class |
    | `box` | (4,) int64 | the patch as (top, left, bottom, right) in pixels of the frame; zeros if the step skipped |
    | `multiply_adds` | int | multiply-adds of the step (glance, focus and head) |
    | `action_rewards` | (A,) float64 | with ``full_information``: the reward of each action from the same state |
    | `candidates` | (A, 2) or (A, 3) float32 | with ``full_information`` and continuous actions: these actions |

    After `reset`, the info has only `clip` and `name`.

    `action_rewards` are counterfactual rewards, which standard reinforcement learning does not have. They are meant for algorithms that use
    counterfactual rewards explicitly. Neither observations nor steps depend on `action_rewards`. On a grid, set ``full_information=True``,
    which requires a bank, because a bank has the focus vectors of all cells. The A rewards on a grid are those of all actions; if actions
    can skip, the last reward is that of skipping. With continuous actions, set ``full_information=K``; the A rewards are then those of K
    locations that are sampled in each step. If actions can skip, there is one additional reward, for skipping.
    `env.unwrapped.action_rewards` has the same numbers.

    ## Arguments
    See below. `gymnasium.make` passes arguments on, as in `gymnasium.make("AdaFocus-v1", reward="previous")`. By default, the clips are
    from the demo videos. When a clip is first requested, 64 videos are rendered and decoded together. The progress of rendering, decoding
    and filling a bank is shown on stderr: as a bar on a terminal, otherwise as a line every 30 seconds.

    ## Version History
    * v1: the target is among look-alikes, so that rules without learning cannot find the target; see docs/tasks.md.
    * v0: first version. The argument ``skipped`` was added later, and its default keeps the behaviour of
      `AdaFocusSkip-v0`.

    Args:
        classifier: a name or folder for `classifiers.load`, a frozen `Classifier`, or "auto" for the bundled classifier of the task.
        clips: a split of the demo videos, or a `ClipStore`.
        task: the task of the demo videos, a name in `adafocus_env.demo.videos.TASKS`.
        observation: a name in the table above, or a custom class (see `adafocus_env.observation`).
        device: "auto", "cpu", "cuda" or "cuda:N". The device is used for a classifier that is given by name or folder.
        render_mode: None or "rgb_array".
        settings: ``action``, ``grid``, ``video_div``, ``reward``, ``baseline``, ``full_information``, ``cost_weight``, ``skipped``,
            ``bank``, ``bank_dtype`` and ``bank_gib``; see `adafocus_env.settings.EnvSettings` for their meanings, defaults and ranges.
            ``action`` may also be a custom class. ``reward`` may also be an `adafocus_env.reward.Reward`. ``bank`` may also be `Features`
            that several environments share (such as a `MemoryBank`).

    Raises:
        InputError: if an argument is out of range, or if classifier and clips do not match.
    """

    closed = False
    metadata = METADATA

    def __init__(
        self,
        classifier: Classifier | str = "auto",
        clips: ClipSource | Split = "train",
        *,
        task: str = DEFAULT_TASK,
        observation: str | Callable[[Features], Observation] = "map",
        device: str = "auto",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        check_arguments(settings, AdaFocusEnv)
        self.metadata = {**METADATA}  # a copy, because Gymnasium's vector environments write into it
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
            ClosedEnvironmentError: if the environment is closed.
            InputError: if an option is unknown, or the clip does not exist.
        """
        check_open(self)
        super().reset(seed=seed)
        self._one.rngs[0] = self.np_random
        observed, infos = self._one.reset(options={"clips": [check_options(options, {"clip"}).get("clip")]})
        return row_of(observed, 0), infos_of_rows(infos, 1)[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Focus on the patch that ``action`` selects in the current frame, or in all frames of the current decision.

        Raises:
            ActionError: if the action lies outside the space; the episode is unchanged.
            ResetNeeded: if no episode is running.
            ClosedEnvironmentError: if the environment is closed.
        """
        check_open(self)
        observed, reward, terminated, _, infos = self._one.step([action])
        return row_of(observed, 0), float(reward[0]), bool(terminated[0]), False, infos_of_rows(infos, 1)[0]

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return a picture (h, w, 3) uint8 of the last step: frame, patch, predicted class and confidence. None without a render mode."""
        pictures = self._one.render()
        return None if pictures is None else pictures[0]

    @property
    def action_rewards(self) -> NDArray[np.float32]:
        """The rewards (A,) that the last step would have had with each action; see `AdaFocusVectorEnv.action_rewards`."""
        return self._one.action_rewards[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the action mask (actions,) for `sb3_contrib.MaskablePPO`; see `adafocus_env.dynamics.Dynamics.action_masks`."""
        return self.dynamics.action_masks()[0]

    def close(self) -> None:
        """Close the environment; `reset` and `step` then raise an error. A shared bank is not affected."""
        self.closed = True
