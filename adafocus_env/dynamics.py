"""The dynamics of the decision problem: a step crops patches, computes their focus vectors, and classifies and rewards the clips."""

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

from adafocus_env.action import Action, GridAction, boxes_of, masks_of
from adafocus_env.classify import classify_glances, classify_step, find_skipped
from adafocus_env.features.live import Features, Indices, LiveFeatures
from adafocus_env.outcome import Alternatives, Outcome, check_full_information, for_each_clip
from adafocus_env.reward import ALONE, REWARDS, Reward
from adafocus_env.transfers import Values, rows_of, to_array, to_device, with_rows
from classifiers.errors import InputError, lookup, refuse_if
from classifiers.flops import video_flops

# Minimum batch size of the head with stored features on a CPU. Smaller matrix products add their terms in another order, so that the last
# digits of an episode's results would depend on the number of parallel episodes.
MIN_HEAD_BATCH = 8
UNCOUNTABLE = "baseline='all' needs a grid: continuous actions are not countable; choose a number, such as baseline=1"


@dataclass(frozen=True)
class Episode:
    """The random choices of one episode, which are sampled when the episode begins.

    Attributes:
        clip: Index of the clip.
        baseline: (D, k + K, *action space), actions for each of the D steps. The first k actions are random patches for the reward's
            baseline. The last K actions are sampled actions whose rewards the step reports (see `adafocus_env.outcome`).
    """

    clip: int
    baseline: NDArray[Any]


class Dynamics:
    """The decision problem for N clips, which take their steps together. Every clip has its own current step.

    Args:
        features: Glances and focus vectors of the clips.
        num_clips: N, number of parallel clips.
        reward: A name in `adafocus_env.reward.REWARDS`, or a custom reward.
        baseline: k, the number of random patches over which the reward's baseline is averaged, or "all" for the exact mean over all cells
            of a grid.
        action: Kind of action; None: the kind of action of ``features``. The ``patch_action`` of this kind, which is the same kind of
            action without skipping, must be the kind of action of ``features``.
        cost_weight: λ, cost of a step with a patch in units of the reward. The cost of a skipped step is lower, in proportion to its
            multiply-adds.
        skipped: Input of the head in a skipped step, a name in `adafocus_env.classify.SKIPPED`.
        full_information: Whether to report the rewards of all actions (see `adafocus_env.outcome`). For continuous actions, this argument
            is the number K of sampled locations whose rewards are reported.
        tensors: Whether outcomes hold tensors. With tensors, a step on the cells of a grid copies nothing to the host: values that depend
            on actions or scores stay on the device. All other values, such as step numbers and ends of episodes, are always on the host.

    Attributes:
        clip: (N,), the current clips.
        step_number: (N,), the current steps. After the last step of an episode, the number is that of the last step.
        running: (N,), whether an episode is running.
        started: (N,), whether an episode has ever been started in the row.
        num_patches: (N,), number of steps with a patch so far in the episode.
        state: (N, S), state of the head.
        scores: (N, K), softmax scores after the last step; undefined before the first step.
        focus: (N, F), the focus vectors of the last patches. Skipped steps repeat these focus vectors if ``skipped="last"``.
        boxes: (N, 4), the patches of the last step as (top, left, bottom, right) in pixels; zeros before the first step.

    Raises:
        InputError: If an argument is out of range.
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
        full_information: bool | int = False,
        tensors: bool = False,
    ) -> None:
        _check_numbers(num_clips, baseline)
        self.features, self.num_clips, self.num_steps, self._tensors = features, num_clips, features.num_steps, tensors
        self.skipped = find_skipped(skipped)
        self.action: Action = features.action if action is None else action
        self.reward = reward if isinstance(reward, Reward) else lookup("reward", reward, REWARDS)
        random_baseline = self.reward.baseline == "random patches"
        self._all_cells = random_baseline and baseline == "all"
        refuse_if(self._all_cells and features.action.num_cells is None, UNCOUNTABLE)
        self._num_sampled = int(baseline) if random_baseline and baseline != "all" else 0
        cells = self.action.patch_action.candidates
        self._compared = cells if self._all_cells else cells[:0]
        stored = not isinstance(features, LiveFeatures) and features.action.num_cells is not None
        if full_information:
            check_full_information(self.action, self.reward, stored=stored)
        self.alternatives = Alternatives.of(full_information, self.action, self._compared)
        self._skips = self.action.patch_action is not self.action
        refuse_if(self.reward.alone and self._skips, ALONE)
        self._labels = features.clips.labels
        self._rows = np.arange(num_clips)
        self.clip, self.step_number, self.num_patches = (np.zeros(num_clips, np.int64) for _ in range(3))
        self.running, self.started = np.zeros(num_clips, bool), np.zeros(num_clips, bool)
        space = self.action.space
        self.baseline: NDArray[Any] = np.zeros(
            (num_clips, self.num_steps, self._num_sampled + self.alternatives.num_sampled, *(space.shape or ())), space.dtype
        )
        self.state: Tensor = features.classifier.initial_state(num_clips)
        num_classes = len(features.classifier.classes)
        self.scores: Tensor = self.state.new_full((num_clips, num_classes), 1 / num_classes)
        self.focus: Tensor = self.state.new_zeros(num_clips, features.classifier.focuser.vector_size)
        self._grid = self.action if tensors and isinstance(self.action, GridAction) else None  # actions may stay on the device
        self._cell_boxes = self._as_output(boxes_of(self.action, self.action.candidates)) if isinstance(self.action, GridAction) else None
        self.boxes: Values = self._as_output(np.zeros((num_clips, 4), np.int64))
        self._confidence: Values = self._as_output(np.zeros(num_clips, np.float32))
        self._min_batch = MIN_HEAD_BATCH if stored and self.state.device.type == "cpu" else 1
        spec = features.clips.settings
        flops = video_flops(features.classifier, spec.num_frames, spec.num_glance_frames, self.num_steps, skipped=self.skipped)
        self.step_cost = flops.skipped_step + flops.patch
        # Costs of the three kinds of step: a skipped step, a step with a patch, and the last step of a clip that had no patch at all.
        self._costs = np.array([flops.skipped_step, self.step_cost, flops.skipped_step + flops.no_patch])
        self.set_cost_weight(cost_weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dynamics:
        """Copy the state of the episodes. The copy shares the features, because they are frozen and may take gigabytes."""
        memo[id(self.features)] = self.features
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def set_cost_weight(self, cost_weight: float) -> None:
        """Set λ for all later steps.

        Raises:
            InputError: If λ is negative, infinite or not a number.
        """
        if isinstance(cost_weight, bool) or not isinstance(cost_weight, int | float) or not 0 <= cost_weight < math.inf:
            raise InputError(f"cost_weight must be a number of at least 0, in units of the reward, got {cost_weight!r}")
        self.cost_weight = float(cost_weight)
        self._penalties = (self.cost_weight * self._costs / self.step_cost).astype(np.float32)

    def sample_episode(self, rng: np.random.Generator, clip: int | None = None) -> Episode:
        """Sample the random patches of an episode, and its clip unless ``clip`` is given.

        Raises:
            InputError: If the clip does not exist.
        """
        count = len(self.features.clips)
        if clip is None:
            clip = int(rng.integers(count))
        elif not isinstance(clip, int | np.integer) or isinstance(clip, bool) or not 0 <= clip < count:
            raise InputError(f"clip must be an integer from 0 to {count - 1}, got {clip!r}")
        baseline = self.action.sample(rng, (self.num_steps, self._num_sampled))
        if self.alternatives.num_sampled:
            baseline = np.concatenate([baseline, self.alternatives.sample(rng, self.num_steps)], axis=1)
        return Episode(int(clip), baseline)

    def start(self, rows: Indices, episodes: list[Episode]) -> None:
        """Begin ``episodes`` in the given rows; the episodes in other rows continue."""
        count = len(rows)
        self.started[rows] = True
        self.baseline[rows] = [episode.baseline for episode in episodes]
        self._update(
            rows,
            clip=np.array([episode.clip for episode in episodes]),
            step_number=np.zeros(count, np.int64),
            num_patches=np.zeros(count, np.int64),
            running=np.ones(count, bool),
            state=self.features.classifier.initial_state(count),
            scores=torch.full_like(self.scores[:count], 1 / self.scores.shape[1]),
            focus=torch.zeros_like(self.focus[:count]),
            _confidence=self._as_output(np.zeros(count, np.float32)),
        )

    def restart(self, clips: Indices, baseline: NDArray[Any]) -> None:
        """Begin episodes in all rows, with clips (N,) and random patches (N, D, k, *action space)."""
        self.start(self._rows, [Episode(int(clip), patches) for clip, patches in zip(clips, baseline, strict=True)])

    def check(self, actions: Values | Sequence[Any], count: int) -> Values:
        """Check the actions of ``count`` clips.

        Return the actions as a tensor if they are grid cells and outcomes hold tensors, otherwise as an array.

        Raises:
            ActionError: If an action lies outside the space. For tensors on a GPU, see `adafocus_env.action.GridAction.check_tensor`.
        """
        if self._grid and isinstance(actions, Tensor) and actions.device == self.state.device:
            return self._grid.check_tensor(actions, count)
        checked = self.action.check(to_array(actions) if isinstance(actions, Tensor) else actions, count)
        return self._on_device(checked) if self._grid else checked

    @torch.no_grad()
    def step(self, actions: Values | Sequence[Any], rows: Indices | None = None) -> Outcome:
        """Take one step with the patches of ``actions`` in the given rows (default: all).

        Raises:
            ActionError: If an action lies outside the space; the episodes are unchanged. See `check`.
            ResetNeeded: If a row has no running episode.
        """
        rows = self._rows if rows is None or len(rows) == self.num_clips else rows
        checked = self.check(actions, len(rows))
        if not self.running[rows].all():
            raise ResetNeeded(f"clip {rows[~self.running[rows]][0]} has no episode running; call reset before step")
        steps, previous = self.step_number[rows], rows_of(self._confidence, rows)
        batch, alternatives = self._with_others(checked, rows, steps)
        confidence, judged, baseline, prediction, correct, confidences = self._classify(rows, batch)
        terminated = steps == self.num_steps - 1  # the step number then stays the same, so that the last observation is repeated
        patch_mask = np.ones(len(rows), bool) if isinstance(checked, Tensor) else self.action.patch_mask(checked)
        kinds = self._kinds_of_steps(rows, patch_mask)
        penalty = self._penalties[kinds]
        boxes = self._as_output(boxes_of(self.action, to_array(checked))) if self._cell_boxes is None else self._cell_boxes[checked]
        reward = self._reward(judged, previous, baseline) - self._as_output(penalty)
        action_rewards = confidences
        if len(alternatives):
            penalties = self._penalties[self._kinds_of_steps(rows, self.action.patch_mask(alternatives))]
            action_rewards = (self._reward(confidences.T, previous, baseline) - self._as_output(penalties)).T
        self._update(
            rows,
            _confidence=confidence,
            num_patches=self.num_patches[rows] + patch_mask,
            step_number=steps + ~terminated,
            running=~terminated,
            boxes=boxes.clone() if isinstance(boxes, Tensor) else boxes.copy(),  # the outcome belongs to the caller
        )
        return Outcome(
            reward, confidence, baseline, prediction, correct, previous, boxes, terminated, penalty, self._costs[kinds],
            action_rewards, alternatives.swapaxes(0, 1),
        )  # fmt: skip

    @torch.no_grad()
    def confidence_of_candidates(self) -> NDArray[np.float32]:
        """Return the confidence (N, M) that the next step would have with each of the M candidate actions. The step is not taken."""
        probabilities, _, _ = self._look_ahead(self._rows, for_each_clip(self.action.candidates, self.num_clips))
        return to_array(self._of_labels(probabilities, self._on_device(self._labels[self.clip])).T)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the action masks (N, actions), which exclude skipping in the last step of a clip that has had no patch.

        Policies that support action masks (MaskablePPO) may use these masks; `step` accepts every action.

        Raises:
            InputError: If actions are continuous.
        """
        return masks_of(self.action, self.running & (self.step_number == self.num_steps - 1) & (self.num_patches == 0))

    def _with_others(self, actions: Values, rows: Indices, steps: Indices) -> tuple[Values, NDArray[Any]]:
        """Return all actions to evaluate (1 + k + m, N, *action space), and the A alternatives among them.

        The chosen actions come first, then the k actions of the reward's baseline, then the m alternatives that the baseline does not
        contain. The alternatives, whose rewards the step reports, are the last A of all actions.
        """
        sampled = self.baseline[rows, steps].swapaxes(0, 1)
        compared = for_each_clip(self._compared, len(rows)) if self._all_cells else sampled[: self._num_sampled]
        alternatives = self.alternatives.with_sampled(sampled[self._num_sampled :])
        others = compared, alternatives[self.alternatives.num_shared :]
        if isinstance(actions, Tensor):
            return torch.cat([actions[None], self._on_device(np.concatenate(others))]), alternatives
        return np.concatenate([actions[None], *others]), alternatives

    def _kinds_of_steps(self, rows: Indices, patch_mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the kinds of steps (…, n) for a patch mask (…, n). The kinds are indices into `_costs` and `_penalties`."""
        last = self.step_number[rows] == self.num_steps - 1
        return np.where(last & (self.num_patches[rows] + patch_mask == 0), 2, patch_mask)

    def _classify(self, rows: Indices, actions: Values) -> list[Values]:
        """Evaluate ``actions`` (1 + k + m, n, …), and take the step with the first action. Return the result of `_measure`."""
        count, padded = len(rows), rows
        if count < self._min_batch:
            repeated = np.arange(self._min_batch) % count
            padded, actions = rows[repeated], actions[:, repeated]
        probabilities, states, focus_vectors = self._look_ahead(padded, actions, zeros=self.reward.baseline == "zeros")
        scores = torch.cat([probabilities[:1], self._judge_alone(padded, focus_vectors)]) if self.reward.alone else probabilities
        measured = [values[:count] for values in self._measure(scores, self.clip[padded])]
        new = {"state": states[:count], "scores": probabilities[0, :count]}
        if self._skips and self.skipped == "last":
            new["focus"] = focus_vectors[0, :count]
        self._update(rows, **new)
        return measured

    def _look_ahead(self, rows: Indices, actions: Values, *, zeros: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Classify the next step of the clips in ``rows`` (n,), from the current state, with each of ``actions`` (k, n, …).

        Returns:
            The softmax scores (k, n, K), the state (n, S) after the first action, and the focus vectors (k, n, F) of all actions. With
            ``zeros``, the scores and the focus vectors have one additional entry at the end, which belongs to a focus vector of zeros.
        """
        clips, steps, state = self.clip[rows], self.step_number[rows], self._of(self.state, rows)
        skip = before = None
        if isinstance(actions, Tensor) or not self._skips:
            glances, focus_vectors = self.features.vectors(clips, steps, actions)
        elif (patch_mask := self.action.patch_mask(actions)).all():
            glances, focus_vectors = self.features.vectors(clips, steps, self.action.to_patch_action(actions))
        else:
            focus_vectors = self._masked_focus_vectors(rows, actions, patch_mask)
            glances = self.features.glance_vectors(clips, steps)
            if self.skipped == "none":
                skip, before = self._on_device(~patch_mask), self._scores_without_step(rows, np.asarray((~patch_mask).any(0)))
        if zeros:
            focus_vectors = torch.cat([focus_vectors, torch.zeros_like(focus_vectors[:1])])
        return *classify_step(self.features.classifier, glances, focus_vectors, state, skip, before), focus_vectors

    def _judge_alone(self, rows: Indices, focus_vectors: Tensor) -> Tensor:
        """Return the scores (k, n, K) of the next step of the clips in ``rows`` (n,), given focus vectors (k, n, F).

        The head starts in its initial state, so that earlier steps have no effect.
        """
        classifier, glances = self.features.classifier, self.features.glance_vectors(self.clip[rows], self.step_number[rows])
        return classify_step(classifier, glances, focus_vectors, classifier.initial_state(len(rows)))[0]

    def _masked_focus_vectors(self, rows: Indices, actions: NDArray[Any], patch_mask: NDArray[np.bool_]) -> Tensor:
        """Return the focus vectors (k, n, F) of ``actions`` (k, n, …), with substitutes for skipped patches.

        All patches are processed in one call.
        """
        focus_vectors = self._of(self.focus, rows).expand(len(patch_mask), -1, -1).clone()
        if patch_mask.any():
            clips, steps = (np.broadcast_to(each[rows], patch_mask.shape)[patch_mask] for each in (self.clip, self.step_number))
            patches = self.action.to_patch_action(actions[patch_mask])
            focus_vectors[self._on_device(patch_mask)] = self.features.focus_vectors(clips, steps, patches)
        return focus_vectors

    def _scores_without_step(self, rows: Indices, skips: NDArray[np.bool_]) -> Tensor:
        """Return the scores (n, K) if the head takes no step.

        Usually, the result is the current scores. For a clip that ends without any patch, the result is the class scores that
        `classify_glances` returns.
        """
        before = self._of(self.scores, rows)
        ends = skips & (self.step_number[rows] == self.num_steps - 1) & (self.num_patches[rows] == 0)
        if ends.any():
            glances = self.features.glance_vectors(self.clip[rows][ends][:, None], np.arange(self.num_steps)[None])
            scores = classify_glances(self.features.classifier, glances).softmax(-1)
            return with_rows(before, np.flatnonzero(ends), scores)
        return before

    def _measure(self, scores: Tensor, clips: Indices) -> tuple[Values, ...]:
        """Compute the measurements of a step from the scores. Only the measurements are copied to the host, not the scores.

        Args:
            scores: (k, N, K), the scores after the step, of the baseline, and of the alternatives. If the reward judges every step alone,
                the second scores are those of the step alone, and the later scores are also those of one step.
            clips: (N,), the clips.

        Returns:
            The confidence, the confidence for the reward, the baseline for the reward, the prediction, and whether the prediction is
            correct, each with shape (N,). The last result is the confidence of the alternatives (N, A).
        """
        labels: Any = self._on_device(self._labels[clips])
        true: Values = self._of_labels(scores, labels)
        prediction: Any = scores[0].argmax(-1)
        if not self._tensors:
            true, prediction, labels = to_array(true), to_array(prediction), self._labels[clips]
        judged = true[1:] if self.reward.alone else true
        zeros, count = self.reward.baseline == "zeros", len(self._compared) + self._num_sampled
        compared, end = (judged[-1:], len(judged) - 1) if zeros else (judged[1 : 1 + count], len(judged))
        baseline = compared.sum(0) / max(1, len(compared))
        return true[0], judged[0], baseline, prediction, prediction == labels, judged[end - len(self.alternatives) : end].T

    def _reward(self, *measured: Values) -> Any:
        """Return the reward for confidence, previous confidence and baseline."""
        if self._tensors and not self.reward.on_tensors:
            return self._on_device(self.reward.value(*map(to_array, measured)))
        return self.reward.value(*measured)

    def _of_labels(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Select the scores of the true classes (k, N) from all scores (k, N, K)."""
        return probabilities.gather(-1, labels.expand(probabilities.shape[:2])[..., None])[..., 0]

    def _of(self, values: Tensor, rows: Indices) -> Tensor:
        return values if rows is self._rows else values.index_select(0, self._on_device(rows))

    def _update(self, rows: Indices, **values: Values) -> None:
        """Replace attributes by copies that have new values in the given rows. The old arrays are not modified."""
        for name, new in values.items():
            setattr(self, name, new if len(rows) == self.num_clips else with_rows(getattr(self, name), rows, new))

    def _as_output(self, numbers: NDArray[Any]) -> Values:
        return self._on_device(numbers) if self._tensors else numbers

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        return to_device(numbers, self.state.device)


def _check_numbers(num_clips: object, baseline: object) -> None:
    if not isinstance(num_clips, int | np.integer) or isinstance(num_clips, bool) or num_clips < 1:
        raise InputError(f"num_envs must be an integer of at least 1, got {num_clips!r}")
    if baseline != "all" and (not isinstance(baseline, int) or isinstance(baseline, bool) or baseline < 1):
        raise InputError(f"baseline must be a number of random patches of at least 1, or 'all', got {baseline!r}")
