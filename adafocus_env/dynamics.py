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

from adafocus_env.action import Action, GridAction, boxes_of
from adafocus_env.features.live import Features, Indices, LiveFeatures
from adafocus_env.outcome import Outcome
from adafocus_env.reward import REWARDS, Reward
from adafocus_env.skipped import answer_unseen, find_skipped
from adafocus_env.transfers import Values, rows_of, to_array, to_device, with_rows
from classifiers.errors import InputError, lookup
from classifiers.flops import classifier_cost

# Clips in a step of the head, at least, where features are stored and a CPU computes: with fewer, its products of matrices sum up in
# another order, and an episode would differ in the last digits from the same one among many.
MIN_HEAD_BATCH = 8


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
class _Seen:
    """What n clips look like with each of k choices, all from the same state: before a step is taken.

    Attributes:
        probabilities: (k, n, K), softmax scores.
        states: (n, S), of the head, with the first choice.
        focus vectors: (n, F), what the head got with it.
    """

    probabilities: Tensor
    states: Tensor
    focus_vectors: Tensor

    def of_first(self, count: int) -> _Seen:
        """The same of the first clips alone."""
        if count == len(self.states):
            return self
        return _Seen(self.probabilities[:, :count], self.states[:count], self.focus_vectors[:count])


class Dynamics:
    """The decision problem for N clips at once, each at a step of its own.

    Args:
        features: glances and focus vectors of the clips that episodes are made of.
        num_clips: N.
        reward: a name in `adafocus_env.reward.REWARDS`, or a reward of one's own.
        baseline: k, random patches that stand for the expectation in the reward `random`, or "all" cells of a grid: the exact one.
        action: what is chosen; that of ``features`` if None. Its ``patch_action`` is the features' own.
        cost_weight: λ, the cost of a step with a patch in units of the reward. A step that skips costs less, by its share of multiply-adds.
        skipped: what the head gets on a step that skips, a name in `adafocus_env.skipped.SKIPPED`.
        tensors: outcomes hold tensors, and a step on the cells of a grid copies nothing to the host: what depends on actions or scores
            stays on the device. Which clips are played, at which steps, and how long, is known without them.

    Attributes:
        clip: (N,), the clips that are played.
        step_number: (N,), the steps they are at; after an episode's last step it stays there.
        running: (N,), whether an episode is running.
        num_patches: (N,), steps of the episode that have looked at a patch.
        state: (N, S), of the head.
        scores: (N, K), softmax scores after the last step; nothing of worth before the first.
        focus: (N, F), the focus vectors that the head got last, where skipped steps repeat them (``skipped="last"``).
        boxes: (N, 4), the last step's patches as (top, left, bottom, right) in pixels, as outcomes hold them; zeros before the first.

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
        cost_weight: float = 0.0,
        skipped: str = "zeros",
        tensors: bool = False,
    ) -> None:
        if not isinstance(num_clips, int | np.integer) or isinstance(num_clips, bool):
            raise InputError(f"num_envs={num_clips!r} is no whole number; choose 1 or more")
        if num_clips < 1:
            raise InputError(f"num_envs={num_clips} is too small; choose 1 or more")
        if baseline != "all" and (not isinstance(baseline, int) or isinstance(baseline, bool) or baseline < 1):
            raise InputError(f"baseline={baseline!r} is not a number of random patches; choose 1 or more, or 'all'")
        self.features, self.num_clips, self.skipped = features, num_clips, find_skipped(skipped)
        self.action: Action = features.action if action is None else action
        self.reward = reward if isinstance(reward, Reward) else lookup("reward", reward, REWARDS)
        if baseline == "all" and features.action.num_cells is None and self.reward.baseline == "random patches":
            raise InputError("baseline='all' needs a grid: continuous actions have no end of patches; choose a number, such as baseline=1")
        self._exact = baseline == "all"
        self._sampled = 0 if baseline == "all" or self.reward.baseline != "random patches" else int(baseline)
        self._labels = features.clips.labels
        self.clip: Indices = np.zeros(num_clips, np.int64)
        self.step_number: Indices = np.zeros(num_clips, np.int64)
        self.running: NDArray[np.bool_] = np.zeros(num_clips, bool)
        self.started: NDArray[np.bool_] = np.zeros(num_clips, bool)
        self.num_patches: Indices = np.zeros(num_clips, np.int64)
        space = self.action.space
        self.baseline: NDArray[Any] = np.zeros((num_clips, self.num_steps, self._sampled, *(space.shape or ())), space.dtype)
        self.state: Tensor = features.classifier.initial_state(num_clips)
        self._num_classes, self._focus_size = len(features.classifier.classes), features.classifier.focuser.vector_size
        self.scores: Tensor = self.state.new_full((num_clips, self._num_classes), 1 / self._num_classes)
        self.focus: Tensor = self.state.new_zeros(num_clips, self._focus_size)
        self._tensors = tensors
        self._cell_boxes = self._on_device(boxes_of(self.action, self.action.candidates)) if self._takes_tensors else None
        self.boxes: Values = self._held(np.zeros((num_clips, 4), np.int64))
        self._confidence: Values = self._held(np.zeros(num_clips, np.float32))
        self._every = np.arange(num_clips)
        stored = not isinstance(features, LiveFeatures) and features.action.num_cells is not None
        self._fewest = MIN_HEAD_BATCH if stored and self.state.device.type == "cpu" else 1
        self._again = np.arange(self._fewest)
        self.step_cost, self._costs = self._count_costs()
        self.set_cost_weight(cost_weight)

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

    def set_cost_weight(self, cost_weight: float) -> None:
        """Sets λ, from the next step on.

        Raises:
            InputError: it is no number from 0 on.
        """
        if isinstance(cost_weight, bool) or not isinstance(cost_weight, int | float) or not 0 <= cost_weight < math.inf:
            raise InputError(f"cost_weight={cost_weight!r} is no price of a step; choose a number from 0 on, in units of the reward")
        self.cost_weight = float(cost_weight)
        self._cost_weights = (self.cost_weight * self._costs / self.step_cost).astype(np.float32)

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
        self.clip = with_rows(self.clip, rows, [episode.clip for episode in episodes])
        self.baseline[rows] = [episode.baseline for episode in episodes]
        self.step_number, self.running = with_rows(self.step_number, rows, 0), with_rows(self.running, rows, True)
        index = self._on_device(rows)
        self.state = self.state.index_fill(0, index, 0.0)
        self._confidence = with_rows(self._confidence, rows, self._held(np.zeros(len(rows), np.float32)))
        self.num_patches = with_rows(self.num_patches, rows, 0)
        if self._skips and self.skipped == "none":
            self.scores = self.scores.index_fill(0, index, 1 / self._num_classes)
        if self._skips and self.skipped == "last":
            self.focus = self.focus.index_fill(0, index, 0.0)

    def restart(self, clips: Indices, baseline: NDArray[Any]) -> None:
        """Begins the episodes (clips (N,), baseline (N, D, k, *action space)) in all rows."""
        self.start(self._every, [Episode(int(clip), drawn) for clip, drawn in zip(clips, baseline, strict=True)])

    def check(self, actions: Values | Sequence[Any], count: int) -> Values:
        """The actions of ``count`` clips: a tensor where they are cells of a grid and outcomes hold tensors, otherwise an array.

        Raises:
            ActionError: one lies outside the space. Of a tensor on a GPU: see `adafocus_env.action.GridAction.check_tensor`.
        """
        if self._cell_boxes is not None and isinstance(actions, Tensor) and actions.device == self.state.device:
            assert isinstance(self.action, GridAction)
            return self.action.check_tensor(actions, count)
        checked = self.action.check(to_array(actions) if isinstance(actions, Tensor) else actions, count)
        return checked if self._cell_boxes is None else self._on_device(checked)

    @torch.no_grad()
    def step(self, actions: Values | Sequence[Any], rows: Indices | None = None) -> Outcome:
        """Looks at the patches ``actions`` in the given rows (all of them by default) and moves on by a step.

        Raises:
            ActionError: an action lies outside the space; nothing has changed. See `check`.
            ResetNeeded: a row has no episode running.
        """
        rows = self._every if rows is None or len(rows) == self.num_clips else rows
        checked = self.check(actions, len(rows))
        if not self.running[rows].all():
            raise ResetNeeded(f"clip {rows[~self.running[rows]][0]} has no episode running; call reset before step")
        steps, previous = self.step_number[rows], rows_of(self._confidence, rows)
        (confidence, baseline, prediction, correct), after = self._measured(rows, self._patches(checked, rows, steps))
        terminated = steps == self.num_steps - 1  # the step number stays at the last one, so that the last observation repeats it
        patch_mask = np.ones(len(rows), bool) if isinstance(checked, Tensor) else self.action.patch_mask(checked)
        num_patches = self.num_patches[rows] + patch_mask
        costs = np.where(terminated & (num_patches == 0), 2, patch_mask)
        cost_weight = self._cost_weights[costs]
        reward = self._rewards(confidence, previous, baseline) - self._held(cost_weight)
        boxes = self._boxes(checked)
        self._move_on(rows, after)
        self._confidence, self.num_patches = (
            self._updated(self._confidence, rows, confidence),
            self._updated(self.num_patches, rows, num_patches),
        )
        self.step_number = self._updated(self.step_number, rows, steps + ~terminated)
        self.running = self._updated(self.running, rows, ~terminated)
        self.boxes = self._updated(self.boxes, rows, boxes.clone() if isinstance(boxes, Tensor) else boxes.copy())  # the caller gets others
        return Outcome(reward, confidence, baseline, prediction, correct, previous, boxes, terminated, cost_weight, self._costs[costs])

    @torch.no_grad()
    def confidence_of_candidates(self) -> NDArray[np.float32]:
        """The true class's softmax score (N, M) if a clip looked at each of the action's candidates next; changes nothing."""
        seen = self._look(self._every, _for_each(self.action.candidates, self.num_clips))
        return to_array(self._true(seen.probabilities, self._on_device(self._labels[self.clip])).T)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which of the actions make sense next (N, actions): all, but skipping the last step where no patch was looked at yet.

        It is advice to policies that know masks (MaskablePPO): a step may skip all the same.

        Raises:
            InputError: actions are continuous.
        """
        return masks_of(self.action, self.running & (self.step_number == self.num_steps - 1) & (self.num_patches == 0))

    def _patches(self, actions: Values, rows: Indices, steps: Indices) -> Values:
        """Actions (1 + k, N, *action space): the chosen ones, then those that the reward compares with."""
        exact = self._exact and self.reward.baseline == "random patches"
        others = _for_each(self.action.patch_action.candidates, len(rows)) if exact else self.baseline[rows, steps].swapaxes(0, 1)
        if isinstance(actions, Tensor):
            return torch.cat([actions[None], self._on_device(others)])
        return np.concatenate([actions[None], others])

    def _boxes(self, actions: Values) -> Values:
        """See `adafocus_env.action.boxes_of`, as outcomes hold them."""
        if isinstance(actions, Tensor):
            assert self._cell_boxes is not None
            return self._cell_boxes.index_select(0, actions)
        return self._held(boxes_of(self.action, actions))

    def _rewards(self, *measured: Values) -> Any:
        """The reward's value of confidence, the previous one and the baseline."""
        if self._tensors and not self.reward.on_tensors:
            return self._on_device(self.reward.value(*map(to_array, measured)))
        return self.reward.value(*measured)

    def _measured(self, rows: Indices, patches: Values) -> tuple[list[Values], _Seen]:
        """Confidence, baseline, prediction and whether it is right (N,), and what was seen, after the first of ``patches`` (1 + k, N, …).

        Of few clips some are taken several times: see `MIN_HEAD_BATCH`.
        """
        count, zeros = len(rows), self.reward.baseline == "zeros"
        if count < self._fewest:
            again = self._again % count
            rows, patches = rows[again], patches[:, again]
        seen = self._look(rows, patches, padding=zeros)
        return [each[:count] for each in self._measure(seen.probabilities, self.clip[rows])], seen.of_first(count)

    def _look(self, rows: Indices, actions: Values, *, padding: bool = False) -> _Seen:
        """What is seen of the clips of ``rows`` (n,) with each of ``actions`` (k, n, …), all from the state that they are in.

        With ``padding`` one more follows: zeros in place of a focus vector.
        """
        clips, steps, state = self.clip[rows], self.step_number[rows], self._of(self.state, rows)
        skips = None
        if isinstance(actions, Tensor) or not self._skips:
            focus_vectors = self.features.focus_vectors(clips, steps, actions)
        elif (patch_mask := self.action.patch_mask(actions)).all():
            focus_vectors = self.features.focus_vectors(clips, steps, self.action.patches(actions))
        else:
            focus_vectors, skips = self._kept_focus_vectors(rows, actions, patch_mask), ~patch_mask
        if padding:
            focus_vectors = torch.cat([focus_vectors, torch.zeros_like(focus_vectors[:1])])
        scores, states = self.features.classifier.compare(self.features.glance_vectors(clips, steps), focus_vectors, state)
        probabilities = scores.softmax(-1)
        if skips is not None and self.skipped == "none":
            none, before = self._on_device(skips)[..., None], self._before(rows, np.asarray(skips.any(0)))
            probabilities = torch.cat([before.where(none, probabilities[: len(skips)]), probabilities[len(skips) :]])
            states = state.where(none[0], states)
        return _Seen(probabilities, states, focus_vectors[0])

    def _kept_focus_vectors(self, rows: Indices, actions: NDArray[Any], patch_mask: NDArray[np.bool_]) -> Tensor:
        """Focus vectors (k, n, F) of ``actions`` (k, n, …); the patches that are kept are one packed call."""
        focus_vectors = self._of(self.focus, rows).expand(len(patch_mask), -1, -1).clone()  # zeros, or those last seen
        if patch_mask.any():
            clips, steps = (np.broadcast_to(each[rows], patch_mask.shape)[patch_mask] for each in (self.clip, self.step_number))
            focus_vectors[self._on_device(patch_mask)] = self.features.focus_vectors(clips, steps, self.action.patches(actions[patch_mask]))
        return focus_vectors

    def _before(self, rows: Indices, skips: NDArray[np.bool_]) -> Tensor:
        """Scores (n, K) that stand where the head takes no step: those before it, or, of a clip that ends without a patch, its answer."""
        before = self._of(self.scores, rows)
        unseen = skips & (self.step_number[rows] == self.num_steps - 1) & (self.num_patches[rows] == 0)
        if unseen.any():
            glances = self.features.glance_vectors(self.clip[rows][unseen][:, None], np.arange(self.num_steps)[None])
            index = self._on_device(np.flatnonzero(unseen))
            before = before.index_copy(0, index, answer_unseen(self.features.classifier, glances).softmax(-1))
        return before

    def _move_on(self, rows: Indices, seen: _Seen) -> None:
        """State and scores become those after the step; the focus vectors too, where they are to be repeated."""
        pairs = {"state": seen.states, "scores": seen.probabilities[0]}
        if self._skips and self.skipped == "last":
            pairs["focus"] = seen.focus_vectors
        index = None if rows is self._every else self._on_device(rows)
        for name, new in pairs.items():
            setattr(self, name, new if index is None else getattr(self, name).index_copy(0, index, new))

    def _of(self, values: Tensor, rows: Indices) -> Tensor:
        """Those of the given rows; ``values`` itself where those are all rows."""
        return values if rows is self._every else values.index_select(0, self._on_device(rows))

    @property
    def _skips(self) -> bool:
        """Whether an action may look at no patch."""
        return self.action.patch_action is not self.action

    def _count_costs(self) -> tuple[int, NDArray[np.int64]]:
        """Multiply-adds of a step that looks; and those of one that skips, one that looks, and one that ends a clip without a patch."""
        cost, settings, steps = classifier_cost(self.features.classifier), self.features.clips.settings, self.num_steps
        glance, focus, head = settings.num_glance_frames * cost.glance, settings.num_frames * cost.focus, settings.num_frames * cost.head
        skipping = glance if self.skipped == "none" else glance + head
        unseen = glance + head * (steps if self.skipped == "none" else 1)
        counted = np.array([skipping, glance + head + focus, unseen]) // steps
        return int(counted[1]), counted

    def _measure(self, probabilities: Tensor, clips: Indices) -> tuple[Values, Values, Values, Values]:
        """Confidence, baseline, prediction and whether it is right, (N,) each, of scores (k, N, K): all that may leave the device."""
        labels = self._labels[clips]
        there = self._on_device(labels)
        true, prediction = self._true(probabilities, there), probabilities[0].argmax(-1)
        if self._tensors:
            return true[0], true[1:].sum(0) / max(1, len(true) - 1), prediction, prediction == there
        confidences, predicted = to_array(true), to_array(prediction)
        return confidences[0], confidences[1:].sum(0) / np.float32(max(1, len(true) - 1)), predicted, predicted == labels

    def _true(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Those of the true classes (k, N), of scores (k, N, K)."""
        return probabilities.gather(-1, labels.expand(probabilities.shape[:2])[..., None])[..., 0]

    def _updated(self, values: Any, rows: Indices, new: Any) -> Any:
        """``values`` with ``new`` ones in the given rows; ``new`` itself where those are all rows."""
        return new if len(rows) == self.num_clips else with_rows(values, rows, new)

    @property
    def _takes_tensors(self) -> bool:
        """Whether actions may stay on the device."""
        return self._tensors and isinstance(self.action, GridAction)

    def _held(self, numbers: NDArray[Any]) -> Values:
        """The same as outcomes hold it."""
        return self._on_device(numbers) if self._tensors else numbers

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        return to_device(numbers, self.state.device)


def masks_of(action: Action, unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the actions make sense next (N, actions): all, but in clips that would end ``unseen`` (N,) only those that look.

    Raises:
        InputError: actions are continuous.
    """
    if action.num_cells is None:
        raise InputError("action_masks: continuous actions have no masks; use action='grid' or action='skip'")
    masks = np.ones((len(unseen), action.num_cells), bool)
    masks[unseen] = action.patch_mask(action.candidates)
    return masks


def _for_each(candidates: NDArray[Any], count: int) -> NDArray[Any]:
    """Candidates (M, *action space), the same for each of some clips: (M, count, *action space)."""
    return np.broadcast_to(candidates[:, None], (len(candidates), count, *candidates.shape[1:]))
