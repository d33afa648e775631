"""The released scheme of inference, the baseline: all frames through the glancer, then one patch of every clip, frame after frame."""

from __future__ import annotations

import torch
from torch import Tensor

from adafocus_env.action import crop_patches
from agents.evaluation.inference import patches_of
from agents.policies.networks import PolicyNetwork
from classifiers.classifier import Classifier


@torch.inference_mode()
def step_by_step(classifier: Classifier, policy: PolicyNetwork, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Classifies videos with recurrent heads as the released code does: policy, focuser and head once for every frame.

    Its loops over the images of a batch are left out: they are no part of the scheme.

    Args:
        classifier: frozen.
        policy: for its glance maps.
        frames: normalised, (N, T, 3, H, W).

    Returns:
        Actions (N, T) and class scores (N, T, K).
    """
    count, length = frames.shape[:2]
    maps, vectors = (part.unflatten(0, (count, length)) for part in classifier.glance(frames.flatten(0, 1)))
    hidden, state, rows = None, classifier.initial_state(count), torch.arange(count, device=frames.device)
    actions, scores = [], []
    for step in range(length):
        encoded = policy.encoder.frame(maps[:, step]).unsqueeze(1)
        output, hidden = policy.encoder.gru(encoded, hidden)
        action = policy.actor(output[:, 0]).argmax(-1)
        patches = crop_patches(frames[:, step], rows, patches_of(policy, classifier, action)[0], classifier.architecture.patch_size)
        score, state = classifier.classify(vectors[:, step, None], classifier.focus(patches)[:, None], state)
        actions.append(action)
        scores.append(score[:, 0])
    return torch.stack(actions, 1), torch.stack(scores, 1)
