"""The single environment: `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from adafocus_env.action import Action
from adafocus_env.build import Split, build_features, make_action
from adafocus_env.clips.store import ClipSource
from adafocus_env.dynamics import Dynamics, Outcome
from adafocus_env.features.live import Features
from adafocus_env.observation import Observation, find_observation, row_of, to_numpy
from adafocus_env.render import draw_step
from adafocus_env.reward import Reward
from classifiers.classifier import Classifier
from classifiers.errors import InputError

START = np.zeros(1, np.int64)


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
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        classifier: Classifier | str = "auto",
        clips: ClipSource | Split = "train",
        *,
        task: str = "normal",
        observation: str | Callable[[Features], Observation] = "map",
        reward: str | Reward = "random",
        baseline: int | Literal["all"] = 1,
        cost_weight: float = 0.0,
        skipped: str = "zeros",
        action: str | Callable[[int, int, int], Action] = "grid",
        grid: int = 7,
        video_div: int | None = None,
        bank: Features | Path | str | bool = "auto",
        bank_dtype: str = "float32",
        bank_gib: float | None = None,
        device: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.metadata = {**self.metadata}  # Gymnasium's own vector environments write into it
        kind = find_observation(observation)
        features = build_features(
            classifier, clips, task=task, action=action, grid=grid, video_div=video_div,
            bank=bank, bank_dtype=bank_dtype, bank_gib=bank_gib, device=device,
        )  # fmt: skip
        chosen = make_action(action, grid, features.classifier)
        self.dynamics = Dynamics(features, 1, reward=reward, baseline=baseline, action=chosen, cost_weight=cost_weight, skipped=skipped)
        self._observation = kind(features)
        self.observation_space: spaces.Space[Any] = self._observation.space
        self.action_space: spaces.Discrete | spaces.Box = self.dynamics.action.space
        self.render_mode = render_mode
        self._outcome: Outcome | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; ``options={"clip": i}`` chooses the clip.

        Raises:
            ClosedEnvironmentError: the environment is closed.
            InputError: an option is not known, or there is no such clip.
        """
        check_open(self)
        super().reset(seed=seed)
        chosen = check_options(options, {"clip"}).get("clip")
        self.dynamics.start(START, [self.dynamics.sample_episode(self.np_random, chosen)])
        self._outcome = None
        return self._observe(), clip_info(self.dynamics, 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Looks at the patch that ``action`` picks in the current frame (in all frames of the current decision).

        Raises:
            ActionError: the action lies outside the space; the episode goes on where it was.
            ResetNeeded: no episode is running.
            ClosedEnvironmentError: the environment is closed.
        """
        check_open(self)
        self._outcome = outcome = self.dynamics.step([action])
        info = {**clip_info(self.dynamics, 0), **step_info(self.dynamics, outcome, 0)}
        return self._observe(), float(outcome.reward[0]), bool(outcome.terminated[0]), False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The frame with the patch last looked at, the predicted class and its confidence: (h, w, 3) uint8."""
        return None if self.render_mode is None else picture(self.dynamics, self._outcome, 0)

    def action_masks(self) -> NDArray[np.bool_]:
        """What `sb3_contrib.MaskablePPO` asks for: see `adafocus_env.dynamics.Dynamics.action_masks`, (actions,)."""
        return self.dynamics.action_masks()[0]

    def close(self) -> None:
        """Ends the environment: it can be neither reset nor stepped from now on. A bank that it shares stays as it is."""
        self.closed = True

    def _observe(self) -> Any:
        return row_of(to_numpy(self._observation.observe(self.dynamics)), 0)


def clip_info(dynamics: Dynamics, row: int) -> dict[str, Any]:
    """The part of `info` that tells which clip is played."""
    clip = int(dynamics.clip[row])
    return {"clip": clip, "name": dynamics.features.clips.names[clip]}


def step_info(dynamics: Dynamics, outcome: Outcome, row: int) -> dict[str, Any]:
    """The part of `info` that tells what a step did."""
    return {
        "confidence": float(outcome.confidence[row]),
        "baseline": float(outcome.baseline[row]),
        "prediction": int(outcome.prediction[row]),
        "correct": bool(outcome.correct[row]),
        "box": outcome.boxes[row],
        "multiply_adds": int(outcome.multiply_adds[row]),
        "previous": float(outcome.previous[row]),
        "penalty": float(outcome.penalty[row]),
    }


def picture(dynamics: Dynamics, outcome: Outcome | None, row: int) -> NDArray[np.uint8]:
    """What `render` shows of one row: the frame last looked at, or the first frame after a reset."""
    clips, classes = dynamics.features.clips, dynamics.features.classifier.classes
    clip, step = int(dynamics.clip[row]), int(dynamics.step_number[row])
    frames = clips.num_frames // dynamics.num_steps
    if outcome is None or (step == 0 and dynamics.running[row]):  # the row's episode has just begun, maybe without the others
        lines = (f"{clips.names[clip]}", f"frame 1 of {clips.num_frames}: no patch yet")
        return draw_step(clips.frames(clip)[0].permute(1, 2, 0).numpy(), None, lines)
    seen = step - int(dynamics.running[row])  # it moves on with every step but the last
    right = "right" if outcome.correct[row] else f"true: {classes[clips.labels[clip]]}"
    unit = "frame" if frames == 1 else "decision"
    box = outcome.boxes[row].tolist() if outcome.boxes[row].any() else None
    lines = (
        f"{unit} {seen + 1} of {dynamics.num_steps}: {classes[outcome.prediction[row]]} ({right})",
        f"confidence in the true class {outcome.confidence[row]:.0%}" + ("" if box else ", skipped"),
    )
    return draw_step(clips.frames(clip)[seen * frames + frames // 2].permute(1, 2, 0).numpy(), box, lines)


def check_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """The options of a reset, none if None.

    Raises:
        InputError: one is not known.
    """
    if unknown := sorted(set(options or {}) - known):
        raise InputError(f"reset options {unknown} are not known; choose from {sorted(known)}")
    return options or {}


def check_open(env: AdaFocusEnv | VectorEnv[Any, Any, Any]) -> None:
    """Checks that an environment is not closed.

    Raises:
        ClosedEnvironmentError: it is.
    """
    if env.closed:
        raise ClosedEnvironmentError(f"{type(env).__name__} has been closed: it can be neither reset nor stepped; make a new one")


def check_render_mode(mode: str | None, known: list[str]) -> None:
    """Checks a render mode.

    Raises:
        InputError: it is not known.
    """
    if mode is not None and mode not in known:
        raise InputError(f"render_mode={mode!r} is not known; choose None or one of {known}")
