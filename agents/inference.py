"""One pass through videos: all actions first, then one focuser batch, then the head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adafocus_env.action import GridAction, crop_patches
from agents.policies import GlancePolicy
from classifiers.classifier import Classifier
from classifiers.cost import classifier_cost, multiply_adds, on_cpu
from classifiers.errors import InputError


@dataclass(frozen=True)
class Inference:
    """What a pass found. N videos, T frames, K classes.

    Attributes:
        actions: (N, T) int64, cells of the grid.
        boxes: (N, T, 4) int64, patches as (top, left, bottom, right) in pixels.
        kept: (N, T) bool, frames that the focuser saw.
        logits: (N, T, K), class scores after every step; the last is the answer.
        macs: (N,) int64, multiply-adds of each video.
    """

    actions: Tensor
    boxes: Tensor
    kept: Tensor
    logits: Tensor
    macs: Tensor


@torch.inference_mode()
def infer(classifier: Classifier, policy: GlancePolicy, frames: Tensor) -> Inference:
    """Classifies videos. The policy needs glances only, so all patches go through the focuser in one batch.

    Args:
        classifier: frozen.
        policy: for the glance maps of this classifier.
        frames: normalised, (N, T, 3, H, W), on the classifier's device.

    Raises:
        InputError: the frames or the policy do not fit the classifier.
    """
    size = classifier.architecture.size
    if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
        raise InputError(f"frames have shape {tuple(frames.shape)}; this classifier expects (N, T, 3, {size}, {size})")
    if not frames.is_floating_point():
        raise InputError(f"frames have dtype {frames.dtype}; give them normalised, as classifier.normalise(frames) does")
    count, steps = frames.shape[:2]
    maps, vectors = classifier.glance(frames.flatten(0, 1))
    check_maps(policy, tuple(maps.shape[1:]))
    actions = policy.act(maps.unflatten(0, (count, steps)))
    grid = GridAction(policy.grid, size, classifier.architecture.patch_size)
    corners = torch.from_numpy(grid.corners).to(frames.device)[actions]
    source = torch.arange(count * steps, device=frames.device)
    foci = classifier.focus(crop_patches(frames.flatten(0, 1), source, corners.flatten(0, 1), grid.patch_size))
    logits, _ = classifier.classify(vectors.unflatten(0, (count, steps)), foci.unflatten(0, (count, steps)))
    cost = classifier_cost(classifier)
    macs = steps * (cost.glance + policy_cost(policy) + cost.focus + cost.head)
    return Inference(
        actions=actions,
        boxes=torch.cat([corners, corners + grid.patch_size], dim=-1),
        kept=torch.ones_like(actions, dtype=torch.bool),
        logits=logits,
        macs=torch.full((count,), macs, device=frames.device),
    )


def policy_cost(policy: GlancePolicy) -> int:
    """Multiply-adds of the policy for one frame."""
    model = on_cpu(policy)
    return multiply_adds(lambda: model(torch.zeros(1, 1, *policy.network.map_shape)))


def check_maps(policy: GlancePolicy, map_shape: tuple[int, ...]) -> None:
    """Checks that the policy reads glance maps of this shape.

    Raises:
        InputError: it reads others.
    """
    if policy.network.map_shape != map_shape:
        raise InputError(
            f"the policy reads glance maps of shape {policy.network.map_shape}, the classifier's glancer makes {map_shape}; "
            "use the policy that was trained with this classifier"
        )
