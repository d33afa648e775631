"""The physics of the problem: N clips, one step. Crop, focus, classify, reward, end."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, boxes_of
from adafocus_env.features import Features, Indices, LiveFeatures
from adafocus_env.reward import REWARDS, Reward
from classifiers.cost import classifier_cost
from classifiers.errors import InputError, named

# Clips in a step of the head, at least, where features are stored and a CPU computes: with fewer, its products of matrices sum up in
# another order, and an episode would differ in the last digits from the same one among many.
FEWEST = 8


@dataclass(frozen=True)
class Episode:
    """Everything random about one episode, drawn when it begins.

    Attributes:
        clip: number of the clip.
        baseline: (D, k, *action space), the random patches that the reward compares with.
    """

    clip: int
    baseline: NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """What one step did to N clips. Arrays are new at every step and never written to afterwards.

    Attributes:
        reward: (N,) float32.
        confidence: (N,) float32, softmax score of the true class.
        baseline: (N,) float32, that of the patches which the reward compares with; 0 where it compares with none.
        prediction: (N,) int64, the class with the highest score.
        boxes: (N, 4) int64, the patches as (top, left, bottom, right) in pixels; zeros where there was none.
        terminated: (N,) bool.
        previous: (N,) float32, confidence after the step before; 0 in the first.
        price: (N,) float32, what was paid for the step, already taken off the reward.
        multiply_adds: (N,) int64, of the step.
    """

    reward: NDArray[np.float32]
    confidence: NDArray[np.float32]
    baseline: NDArray[np.float32]
    prediction: NDArray[np.int64]
    boxes: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    previous: NDArray[np.float32]
    price: NDArray[np.float32]
    multiply_adds: NDArray[np.int64]


class Dynamics:
    """The decision problem for N clips at once, each at a step of its own.

    Args:
        features: glances and foci of the clips that episodes are made of.
        num_clips: N.
        reward: a name in `adafocus_env.reward.REWARDS`, or a reward of one's own.
        baseline: k, random patches that stand for the expectation in the reward `random`, or "all" cells of a grid: the exact one.
        action: what is chosen; that of ``features`` if None. Its ``looking`` is the features' own.
        price: λ, what a step that looks at a patch costs, in units of the reward. One that skips costs so much less as its networks do.

    Attributes:
        clip: (N,), the clips that are played.
        step_number: (N,), the steps they are at; after an episode's last step it stays there.
        running: (N,), whether an episode is running.
        looked: (N,), whether the episode has looked at a patch yet.
        state: (N, S), of the head.
        scores: (N, K), softmax scores after the last step; nothing of worth before the first.
        boxes: (N, 4), the last step's patches as (top, left, bottom, right) in pixels; nothing of worth before the first.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        features: Features,
        num_clips: int,
        *,
        reward: str | Reward = "random",
        baseline: int | Literal["all"] = 1,
        action: Action | None = None,
        price: float = 0.0,
    ) -> None:
        if not isinstance(num_clips, int | np.integer) or isinstance(num_clips, bool):
            raise InputError(f"num_envs={num_clips!r} is no whole number; choose 1 or more")
        if num_clips < 1:
            raise InputError(f"num_envs={num_clips} is too small; choose 1 or more")
        if baseline != "all" and (not isinstance(baseline, int) or isinstance(baseline, bool) or baseline < 1):
            raise InputError(f"baseline={baseline!r} is not a number of random patches; choose 1 or more, or 'all'")
        if baseline == "all" and features.action.num_cells is None:
            raise InputError("baseline='all' needs a grid: continuous actions have no end of patches; choose a number, such as baseline=1")
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
            raise InputError(f"price={price!r} is no price of a step; choose a number from 0 on, in units of the reward")
        self.features, self.num_clips, self.price = features, num_clips, float(price)
        self.action: Action = features.action if action is None else action
        self.reward = reward if isinstance(reward, Reward) else named("reward", reward, REWARDS)
        self._exact = baseline == "all"
        self._sampled = 0 if baseline == "all" or self.reward.baseline != "random patches" else int(baseline)
        self._labels = features.clips.labels
        self.clip: Indices = np.zeros(num_clips, np.int64)
        self.step_number: Indices = np.zeros(num_clips, np.int64)
        self.running: NDArray[np.bool_] = np.zeros(num_clips, bool)
        self.started: NDArray[np.bool_] = np.zeros(num_clips, bool)
        self.looked: NDArray[np.bool_] = np.zeros(num_clips, bool)
        space = self.action.space
        self.baseline: NDArray[Any] = np.zeros((num_clips, self.num_steps, self._sampled, *(space.shape or ())), space.dtype)
        self.state: Tensor = features.classifier.initial_state(num_clips)
        self.scores: Tensor = torch.zeros(num_clips, len(features.classifier.classes), device=self.state.device)
        self.boxes: NDArray[np.int64] = np.zeros((num_clips, 4), np.int64)
        self._confidence = np.zeros(num_clips, np.float32)
        self._every = np.arange(num_clips)
        stored = not isinstance(features, LiveFeatures) and features.action.num_cells is not None
        self._fewest = FEWEST if stored and self.state.device.type == "cpu" else 1
        self._again = np.arange(self._fewest)
        cost = classifier_cost(features.classifier)
        glances, frames = features.clips.settings.num_glance_frames, features.clips.num_frames
        self.step_cost = (glances * cost.glance + frames * (cost.focus + cost.head)) // self.num_steps
        self._costs = np.array([(glances * cost.glance + frames * cost.head) // self.num_steps, self.step_cost])
        self._prices = (self.price * self._costs / self.step_cost).astype(np.float32)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dynamics:
        """A copy that plays on by itself. Features are shared with it: they are frozen, and may be gigabytes."""
        memo[id(self.features)] = self.features
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def num_steps(self) -> int:
        """D, steps of an episode: the decisions that are taken in a clip."""
        return self.features.num_steps

    def draw(self, rng: np.random.Generator, clip: int | None = None) -> Episode:
        """Draws an episode: its clip (unless one is given) and its random patches."""
        count = len(self.features.clips)
        if clip is None:
            clip = int(rng.integers(count))
        elif not isinstance(clip, int | np.integer) or isinstance(clip, bool):
            raise InputError(f"clip {clip!r} is no whole number; choose one from 0 to {count - 1}")
        elif not 0 <= clip < count:
            raise InputError(f"clip {clip} does not exist; choose one from 0 to {count - 1}")
        return Episode(int(clip), self.action.draw(rng, (self.num_steps, self._sampled)))

    def start(self, rows: Indices, episodes: list[Episode]) -> None:
        """Begins ``episodes`` in the given rows; the other rows go on."""
        self.started[rows] = True
        self.clip = _replaced(self.clip, rows, [episode.clip for episode in episodes])
        self.baseline[rows] = [episode.baseline for episode in episodes]
        self.step_number, self.running = _replaced(self.step_number, rows, 0), _replaced(self.running, rows, True)
        self.state = self.state.index_fill(0, self._on_device(rows), 0.0)
        self._confidence = _replaced(self._confidence, rows, 0.0)
        self.looked = _replaced(self.looked, rows, False)

    def restart(self, clips: Indices, baseline: NDArray[Any]) -> None:
        """Begins the episodes (clips (N,), baseline (N, D, k, *action space)) in all rows."""
        self.start(self._every, [Episode(int(clip), drawn) for clip, drawn in zip(clips, baseline, strict=True)])

    @torch.no_grad()
    def step(self, actions: NDArray[Any] | Sequence[Any], rows: Indices | None = None) -> Outcome:
        """Looks at the patches ``actions`` in the given rows (all of them by default) and moves on by a step.

        Raises:
            ActionError: an action lies outside the space; nothing has changed.
            ResetNeeded: a row has no episode running.
        """
        index = None if rows is None or len(rows) == self.num_clips else self._on_device(rows)
        rows = self._every if rows is None else rows
        checked = self.action.check(actions, len(rows))
        if not self.running[rows].all():
            raise ResetNeeded(f"clip {rows[~self.running[rows]][0]} has no episode running; call reset before step")
        clips, steps = self.clip[rows], self.step_number[rows]
        state = self.state if index is None else self.state[index]
        patches = self._patches(checked, rows, steps)
        confidence, baseline, prediction, probabilities, states = self._measured(clips, steps, patches, state)
        kept, previous = self.action.kept(checked), self._confidence[rows]
        costs = kept.view(np.int8)  # 1 where the step looks at a patch
        price = self._prices[costs]
        reward = self.reward.value(confidence, previous, baseline) - price
        terminated = steps == self.num_steps - 1  # the step number stays at the last one, so that the last observation repeats it
        boxes, looked = boxes_of(self.action, checked), self.looked[rows] | kept
        self.state = states if index is None else self.state.index_copy(0, index, states)
        self.scores = probabilities if index is None else self.scores.index_copy(0, index, probabilities)
        self._confidence, self.looked = self._updated(self._confidence, rows, confidence), self._updated(self.looked, rows, looked)
        self.step_number = self._updated(self.step_number, rows, steps + ~terminated)
        self.running = self._updated(self.running, rows, ~terminated)
        self.boxes = self._updated(self.boxes, rows, boxes.copy())  # the outcome's are the caller's
        return Outcome(reward, confidence, baseline, prediction, boxes, terminated, previous, price, self._costs[costs])

    @torch.no_grad()
    def confidence_of_candidates(self) -> NDArray[np.float32]:
        """The true class's softmax score (N, M) if a clip looked at each of the action's candidates next; changes nothing."""
        probabilities, _ = self._look(self.clip, self.step_number, _for_each(self.action.candidates, self.num_clips), self.state)
        return self._true(probabilities, self.clip).T.cpu().numpy()

    def action_masks(self) -> NDArray[np.bool_]:
        """Which of the actions make sense next (N, actions): all, but skipping the last step where no patch was looked at yet.

        It is advice to policies that know masks (MaskablePPO): a step may skip all the same.

        Raises:
            InputError: actions are continuous.
        """
        if self.action.num_cells is None:
            raise InputError("action_masks: continuous actions have no masks; use action='grid' or action='skip'")
        masks = np.ones((self.num_clips, self.action.num_cells), bool)
        last = self.running & (self.step_number == self.num_steps - 1) & ~self.looked
        masks[last] = self.action.kept(self.action.candidates)
        return masks

    def _patches(self, actions: NDArray[Any], rows: Indices, steps: Indices) -> NDArray[Any]:
        """Actions (1 + k, N, *action space): the chosen ones, then those that the reward compares with."""
        exact = self._exact and self.reward.baseline == "random patches"
        others = _for_each(self.action.looking.candidates, len(rows)) if exact else self.baseline[rows, steps].swapaxes(0, 1)
        return np.concatenate([actions[None], others])

    def _measured(
        self, clips: Indices, steps: Indices, patches: NDArray[Any], state: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], Tensor, Tensor]:
        """Confidence, baseline and prediction (N,), scores (N, K) and state (N, S) after the first of ``patches`` (1 + k, N, …).

        Of few clips some are taken several times: see `FEWEST`.
        """
        count, zeros = len(clips), self.reward.baseline == "zeros"
        if count < self._fewest:
            again = self._again % count
            clips, steps, patches, state = clips[again], steps[again], patches[:, again], state.index_select(0, self._on_device(again))
        probabilities, states = self._look(clips, steps, patches, state, padding=zeros)
        confidence, baseline, prediction = self._measure(probabilities, clips)
        return confidence[:count], baseline[:count], prediction[:count], probabilities[0, :count], states[:count]

    def _look(
        self, clips: Indices, steps: Indices, actions: NDArray[Any], state: Tensor, *, padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Softmax scores (k, N, K) after each of ``actions`` (k, N, …), all from ``state``, and the state after the first.

        With ``padding`` one more follows: zeros in place of a focus vector.
        """
        foci = self._foci(clips, steps, actions)
        if padding:
            foci = torch.cat([foci, torch.zeros_like(foci[:1])])
        scores, states = self.features.classifier.compare(self.features.vectors(clips, steps), foci, state)
        return scores.softmax(-1), states

    def _foci(self, clips: Indices, steps: Indices, actions: NDArray[Any]) -> Tensor:
        """Focus vectors (k, N, F) of ``actions`` (k, N, …), zeros where they skip; the patches of the others are one packed call."""
        if self.action.looking is self.action or (kept := self.action.kept(actions)).all():
            return self.features.foci(clips, steps, actions)
        foci = self.state.new_zeros(*kept.shape, self.features.classifier.focuser.vector_size)
        if kept.any():
            clips, steps = (np.broadcast_to(each, kept.shape)[kept] for each in (clips, steps))
            foci[self._on_device(kept)] = self.features.foci(clips, steps, actions[kept])
        return foci

    def _measure(
        self, probabilities: Tensor, clips: Indices
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Confidence, baseline and prediction, (N,) each, of scores (k, N, K): all that leaves the device in a step."""
        true = self._true(probabilities, clips).cpu().numpy()
        baseline = true[1:].sum(0) / np.float32(max(1, len(true) - 1))
        return true[0], baseline, probabilities[0].argmax(-1).cpu().numpy()

    def _true(self, probabilities: Tensor, clips: Indices) -> Tensor:
        """Those of the true classes (k, N), of scores (k, N, K)."""
        labels = self._on_device(self._labels[clips])
        return probabilities.gather(-1, labels.expand(probabilities.shape[:2])[..., None])[..., 0]

    def _updated(self, values: NDArray[Any], rows: Indices, new: NDArray[Any]) -> NDArray[Any]:
        """``values`` with ``new`` ones in the given rows; ``new`` itself where those are all rows."""
        return new if len(rows) == self.num_clips else _replaced(values, rows, new)

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self.state.device)


def _replaced(values: NDArray[Any], rows: Indices, new: Any) -> NDArray[Any]:
    """``values`` with those of ``rows`` replaced, as a new array."""
    values = values.copy()
    values[rows] = new
    return values


def _for_each(candidates: NDArray[Any], count: int) -> NDArray[Any]:
    """Candidates (M, *action space), the same for each of some clips: (M, count, *action space)."""
    return np.broadcast_to(candidates[:, None], (len(candidates), count, *candidates.shape[1:]))
