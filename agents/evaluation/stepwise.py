"""Inference decision by decision, so that a clip can exit early. After the exit of a clip, nothing is computed for its later frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adafocus_env.classify import classify_glances, find_skipped
from agents.evaluation.conditional_exit import ExitThresholds, check_separable
from agents.policies.networks import PolicyNetwork, check_maps
from classifiers.classifier import Classifier

Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""A function that runs the focuser in one decision.

It takes the frames (n, f, 3, H, W) and the actions (n, …) of n clips. It returns the corners (n, 2), the patch mask (n,), and the focus
vectors (m · f, F) of the m clips that have a patch."""


@dataclass(frozen=True)
class Steps:
    """The decisions in N clips with D decisions per clip and f frames per decision. Entries after the end of a clip are zero.

    Attributes:
        actions: (N, D, …).
        corners: (N, D, 2), (top, left) of the patches.
        patch_mask: (N, D) bool, the decisions with a patch.
        logits: (N, D · f, K), class scores after every frame. After the end of a clip, the last scores are repeated.
        num_steps: (N,) int64, number of decisions up to the end.
    """

    actions: Tensor
    corners: Tensor
    patch_mask: Tensor
    logits: Tensor
    num_steps: Tensor


def infer_until_exit(
    classifier: Classifier,
    policy: PolicyNetwork,
    frames: Tensor,
    glance_frames: Tensor,
    look: Look,
    thresholds: ExitThresholds,
    *,
    skipped: str,
    keep_threshold: float | None,
) -> Steps:
    """Classify clips decision by decision. Clips that exit are removed from the batch.

    Args:
        classifier: The classifier.
        policy: The policy. Each decision of the policy depends only on the glances so far.
        frames: Normalised frames of the focuser, (N, D, f, 3, H, W), in groups of the f frames of each decision.
        glance_frames: Normalised frames of the glancer, (N, D, g, 3, H, W), in groups of the g frames of each decision.
        look: The function that runs the focuser.
        thresholds: Thresholds of the exit.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        keep_threshold: See `PolicyNetwork.act`.

    Raises:
        InputError: If the classifier has a temporal shift, because the shift needs later frames.
    """
    check_separable(classifier)
    (count, num_steps), running = frames.shape[:2], _Running(classifier, policy, len(frames), skipped, keep_threshold)
    rows = torch.arange(count, device=frames.device)
    taken: list[tuple[Tensor, Decision]] = []
    for step in range(num_steps):
        decision = running.step(frames[rows, step], glance_frames[rows, step], look)
        if step == num_steps - 1:
            running.classify_without_patches(decision[-1])
        taken.append((rows, decision))
        left = torch.from_numpy(thresholds.leaving(decision[-1][:, -1], step)).to(rows.device)
        rows = rows[~left]
        if not len(rows):
            break
        running.remove(left)
    return _assembled(taken, count, num_steps)


Decision = tuple[Tensor, Tensor, Tensor, Tensor]
"""One decision in n clips: actions (n, …), corners (n, 2), patch mask (n,) and class scores after every frame (n, f, K)."""


class _Running:
    """The state of the remaining clips: the states of policy and head, the last scores, the last focus vectors and the glances so far."""

    def __init__(self, classifier: Classifier, policy: PolicyNetwork, count: int, skipped: str, keep_threshold: float | None) -> None:
        self._classifier, self._policy, self._keep_threshold, self._option = classifier, policy, keep_threshold, find_skipped(skipped)
        self._policy_state: Tensor | None = None
        self._head_state = classifier.initial_state(count)
        zeros = self._head_state.new_zeros
        self._num_patches = zeros(count, dtype=torch.int64)
        self._scores, self._focus_vector = zeros(count, len(classifier.classes)), zeros(count, classifier.focuser.vector_size)
        self._glances = zeros(count, 0, classifier.glancer.vector_size)

    def step(self, frames: Tensor, glance_frames: Tensor, look: Look) -> Decision:
        """Process the next decision, whose frames are ``frames`` (n, f, 3, H, W) and ``glance_frames`` (n, g, 3, H, W)."""
        (count, repeats), num_glances = frames.shape[:2], glance_frames.shape[1]
        maps, vectors = self._classifier.glance(glance_frames.flatten(0, 1), num_frames=num_glances)
        maps, glances = maps.unflatten(0, (count, -1)).flatten(1, 2), vectors.unflatten(0, (count, -1)).mean(1)
        check_maps(self._policy, tuple(maps.shape[1:]))
        actions, self._policy_state = self._policy.act_next(maps, self._policy_state, self._num_patches, self._keep_threshold)
        corners, patch_mask, focus_vectors = look(frames, actions)
        self._num_patches = self._num_patches + patch_mask
        return actions, corners, patch_mask, self._classify(glances[:, None].expand(-1, repeats, -1), focus_vectors, patch_mask)

    def _classify(self, glances: Tensor, focus_vectors: Tensor, patch_mask: Tensor) -> Tensor:
        """Return the class scores (n, f, K) after every frame. They equal the scores from `adafocus_env.classify.classify_clips`."""
        repeats, focused = glances.shape[1], patch_mask[:, None, None]
        inputs = glances.new_zeros(*glances.shape[:2], self._focus_vector.shape[1])
        inputs[patch_mask] = focus_vectors.unflatten(0, (-1, repeats))
        if self._option == "last":
            self._focus_vector = inputs.mean(1).where(patch_mask[:, None], self._focus_vector)
            inputs = inputs.where(focused, self._focus_vector[:, None])
        scores, state = self._classifier.classify(glances, inputs, self._head_state)
        if self._option == "none":
            scores, state = scores.where(focused, self._scores[:, None]), state.where(patch_mask[:, None], self._head_state)
            self._glances = torch.cat([self._glances, glances], dim=1)
        self._head_state, self._scores = state, scores[:, -1]
        return scores

    def classify_without_patches(self, scores: Tensor) -> None:
        """Replace the last scores of clips without any patch, because the head has taken no step in these clips.

        ``scores`` is (n, f, K).
        """
        without = self._num_patches == 0
        if self._option == "none" and without.any():
            scores[without, -1] = classify_glances(self._classifier, self._glances[without])

    def remove(self, left: Tensor) -> None:
        """Remove the clips that have exited, for which ``left`` (n,) bool is true."""
        for name in ("policy_state", "head_state", "num_patches", "scores", "focus_vector", "glances"):
            setattr(self, f"_{name}", getattr(self, f"_{name}")[~left])


def _assembled(taken: Sequence[tuple[Tensor, Decision]], count: int, num_steps: int) -> Steps:
    """Merge the decisions into arrays over all clips. Each decision comes with the indices of its clips."""
    arrays = [first.new_zeros(count, num_steps, *first.shape[1:]) for first in taken[0][1]]
    ended = torch.zeros(count, dtype=torch.int64, device=arrays[0].device)
    for step, (rows, decision) in enumerate(taken):
        ended[rows] = step + 1
        for array, values in zip(arrays, decision, strict=True):
            array[rows, step] = values
    actions, corners, patch_mask, logits = arrays
    last = logits[torch.arange(count, device=ended.device), ended - 1, -1]
    later = torch.arange(num_steps, device=ended.device) >= ended[:, None]
    logits = torch.where(later[..., None, None], last[:, None, None], logits)
    return Steps(actions, corners, patch_mask, logits.flatten(1, 2), ended)
