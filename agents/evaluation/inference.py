"""Inference: compute all actions, then the focus vectors of all patches in one batch, then the class scores.

The next videos are read in the meantime. With a conditional exit, inference runs decision by decision instead
(`agents.evaluation.stepwise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from adafocus_env.action import Action, ContinuousAction, GridAction, InterpolatedAction, crop_patches, with_skipping
from adafocus_env.classify import classify_clips
from adafocus_env.clips.store import ClipSource
from agents.evaluation.conditional_exit import ExitModel, ExitThresholds
from agents.evaluation.stepwise import Steps, infer_until_exit
from agents.policies.networks import PolicyNetwork, check_maps, check_patch_share
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import network_flops, video_flops
from classifiers.optimize import optimized

Item = TypeVar("Item")


@dataclass(frozen=True)
class Inference:
    """The result for N videos with T frames of the focuser, D decisions (equal to T, except with the head `mean`) and K classes.

    Attributes:
        actions: (N, D) int64, cells of the grid, or (N, D, 2) float32, locations. Policies that skip have one more cell, or a third
            coordinate; see `adafocus_env.action`.
        boxes: (N, T, 4) int64, patches as (top, left, bottom, right) in pixels; zeros where the frame was skipped.
        patch_mask: (N, T) bool, the frames with a patch.
        logits: (N, T, K), class scores after every frame; those after the last frame are the result.
        macs: (N,) int64, multiply-adds per video.
        processed: (N, T) bool, the frames before the exit. After the exit, actions are undefined and scores are those at the exit.
    """

    actions: Tensor
    boxes: Tensor
    patch_mask: Tensor
    logits: Tensor
    macs: Tensor
    processed: Tensor


@torch.inference_mode()
def infer(
    classifier: Classifier,
    policy: PolicyNetwork,
    frames: Tensor,
    glance_frames: Tensor | None = None,
    *,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
    exit: ExitThresholds | None = None,
) -> Inference:
    """Classify videos. The policy depends only on glances, so the focuser processes all patches in one batch.

    With a conditional exit, the videos are processed decision by decision, and a video that exits is not processed further.

    Args:
        classifier: A frozen classifier. It is optimized for inference (`classifiers.optimize.optimized`) unless it already is.
        policy: A policy trained on the glance maps of this classifier; for other algorithms than PPO, a
            `agents.policies.model_on_glances.ModelOnGlances`.
        frames: Normalised frames (N, T, 3, H, W) on the classifier's device, from which patches are cropped.
        glance_frames: Normalised frames of the glancer (N, G, 3, H, W); None: the same as ``frames``.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        keep_threshold: Skip frames with at least this P(skip); None: use the policy's threshold.
        exit: Thresholds of a conditional exit; None: every frame is processed. Each call compares the thresholds with the weights, which
            takes a moment for large networks; `infer_batches` compares them once.

    Raises:
        InputError: If frames or policy do not fit the classifier, ``skipped`` is unknown, the exit belongs to another model, or the
            classifier has a temporal shift, which excludes an exit.
    """
    classifier, glance_frames = optimized(classifier), frames if glance_frames is None else glance_frames
    for name, tensor in (("frames", frames), ("glance_frames", glance_frames)):
        _check_frames(name, tensor, classifier)
    (count, length), num_glances = frames.shape[:2], glance_frames.shape[1]
    if len(glance_frames) != count:
        raise InputError(f"glance_frames are of {len(glance_frames)} videos, frames of {count}; give the same videos in the same order")
    check_patch_share(policy, classifier.architecture.patch_size, classifier.architecture.size)
    steps = count_decisions(classifier, policy, length, num_glances)
    if exit is None:
        done = _infer_whole(classifier, policy, frames, glance_frames, steps, skipped, keep_threshold)
    else:
        if exit.model is not None:
            exit.model.check(ExitModel.of(classifier, policy, length, steps, skipped=skipped, keep_threshold=keep_threshold))
        by_decision, glances_by_decision = (each.unflatten(1, (steps, -1)) for each in (frames, glance_frames))
        done = infer_until_exit(
            classifier, policy, by_decision, glances_by_decision, partial(_look, policy, classifier), exit,
            skipped=skipped, keep_threshold=keep_threshold,
        )  # fmt: skip
    flops = video_flops(classifier, length, num_glances, steps, skipped=skipped, policy_step=policy_flops(policy))
    corners = done.corners.round().long() if done.corners.is_floating_point() else done.corners
    boxes = torch.cat([corners, corners + classifier.architecture.patch_size], dim=-1) * done.patch_mask[..., None]
    processed = torch.arange(steps, device=boxes.device) < done.num_steps[:, None]
    boxes, patch_mask, processed = (each.repeat_interleave(length // steps, dim=1) for each in (boxes, done.patch_mask, processed))
    return Inference(done.actions, boxes, patch_mask, done.logits, flops.total(done.patch_mask.sum(1), done.num_steps), processed)


def _infer_whole(
    classifier: Classifier,
    policy: PolicyNetwork,
    frames: Tensor,
    glance_frames: Tensor,
    steps: int,
    skipped: str,
    keep_threshold: float | None,
) -> Steps:
    """Process whole clips: all glances, all actions, all patches."""
    count, num_glances = glance_frames.shape[:2]
    maps, vectors = classifier.glance(glance_frames.flatten(0, 1), num_frames=num_glances)
    _check_stacked(policy, tuple(maps.shape[1:]))
    maps, vectors = _by_decision(maps, vectors, count, steps)
    actions = policy.act(maps, keep_threshold)
    corners, patch_mask = patches_of(policy, classifier, actions)
    logits = classify_crops(classifier, frames, vectors, corners, patch_mask, skipped)
    return Steps(actions, corners, patch_mask, logits, torch.full((count,), steps, device=maps.device))


def _look(policy: PolicyNetwork, classifier: Classifier, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the focuser in one decision; see `agents.evaluation.stepwise.Look`."""
    corners, patch_mask = patches_of(policy, classifier, actions)
    repeats = frames.shape[1]
    frame_corners, frame_mask = (each[:, None].expand(-1, repeats, *each.shape[1:]) for each in (corners, patch_mask))
    return corners, patch_mask, _focus_crops(classifier, frames, frame_corners, frame_mask, repeats)


def infer_clips(
    classifier: Classifier,
    policy: PolicyNetwork,
    clips: ClipSource,
    *,
    batch_size: int = 8,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
    exit: ExitThresholds | None = None,
) -> Iterator[Inference]:
    """Classify all clips in order; the next batch is read while the networks run.

    Args:
        classifier: A frozen classifier.
        policy: A policy trained on the glance maps of this classifier.
        clips: The clips; a `lazy` store decodes 64 at a time.
        batch_size: Clips per batch.
        skipped: See `infer`.
        keep_threshold: See `infer`.
        exit: See `infer`.

    Raises:
        InputError: If the batch size is below 1, or for the reasons of `infer`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is too small; choose 1 or more clips in a batch")
    batches = _read_batches(clips, batch_size, pin=classifier.device.type == "cuda")
    return infer_batches(classifier, policy, batches, skipped=skipped, keep_threshold=keep_threshold, exit=exit)


def infer_batches(
    classifier: Classifier,
    policy: PolicyNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
    exit: ExitThresholds | None = None,
) -> Iterator[Inference]:
    """Classify batch after batch; a thread reads the next batch meanwhile.

    Args:
        classifier: A frozen classifier.
        policy: A policy trained on the glance maps of this classifier.
        batches: Pairs of the focuser's frames (N, T, 3, H, W) and the glancer's frames (N, G, 3, H, W), uint8. Both may be the same tensor.
        skipped: See `infer`.
        keep_threshold: See `infer`.
        exit: See `infer`.

    Raises:
        InputError: For the reasons of `infer`, when the batch is reached. Errors of ``batches`` are passed on.
    """

    def normalise(frames: Tensor) -> Tensor:
        return classifier.normalise(frames.to(classifier.device, non_blocking=True))

    for frames, glance_frames in _read_ahead(batches):
        separate = None if glance_frames is frames else normalise(glance_frames)
        yield infer(classifier, policy, normalise(frames), separate, skipped=skipped, keep_threshold=keep_threshold, exit=exit)
        exit = None if exit is None else replace(exit, model=None)  # the first batch has checked the model


def glance_at(classifier: Classifier, glance_frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the stacked glance maps (N, D, G/D·C, h, w) and mean glance vectors (N, D, C) of normalised frames (N, G, 3, H, W)."""
    count, num_glances = glance_frames.shape[:2]
    return _by_decision(*classifier.glance(glance_frames.flatten(0, 1), num_frames=num_glances), count, steps)


def classify_crops(
    classifier: Classifier, frames: Tensor, vectors: Tensor, corners: Tensor, patch_mask: Tensor | None = None, skipped: str = "zeros"
) -> Tensor:
    """Return the class scores (N, T, K) after every frame, with all patches in one call of the focuser.

    Args:
        classifier: The classifier.
        frames: Normalised frames (N, T, 3, H, W).
        vectors: Glance vectors (N, D, C) of the decisions.
        corners: (N, D, 2) as (top, left) in pixels, whole or real numbers, shared by all frames of a decision.
        patch_mask: (N, D) bool, the decisions with a patch; None: all.
        skipped: Input of the head in the other decisions; see `adafocus_env.classify.classify_clips`.
    """
    repeats = frames.shape[1] // corners.shape[1]
    corners, vectors = (values.repeat_interleave(repeats, dim=1) for values in (corners, vectors))
    patch_mask = None if patch_mask is None or patch_mask.all() else patch_mask.repeat_interleave(repeats, dim=1)
    focus_vectors = _focus_crops(classifier, frames, corners, patch_mask, repeats)
    return classify_clips(classifier, vectors, focus_vectors, patch_mask, skipped, num_frames=repeats)


def _focus_crops(classifier: Classifier, frames: Tensor, corners: Tensor, patch_mask: Tensor | None, repeats: int) -> Tensor:
    """Return the focus vectors (M, F) of the M patches in frames (N, T, …), given corners (N, T, 2), mask (N, T) and ``repeats``, T/D."""
    count, length = frames.shape[:2]
    source = torch.arange(count * length, device=frames.device) if patch_mask is None else patch_mask.flatten().nonzero()[:, 0]
    if not len(source):
        return frames.new_zeros(0, classifier.focuser.vector_size)
    patches = crop_patches(frames.flatten(0, 1), source, corners.flatten(0, 1)[source], classifier.architecture.patch_size)
    return classifier.focus(patches, num_frames=repeats)


def patches_of(policy: PolicyNetwork, classifier: Classifier, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners (…, 2) of the patches as (top, left) in pixels, and the patch mask (…), for actions of the policy (…).

    Corners are whole numbers, or real numbers if the policy was trained with interpolated patches.
    """
    size, patch_size = classifier.architecture.size, classifier.architecture.patch_size
    locations = InterpolatedAction if policy.interpolated else ContinuousAction
    action: Action = locations(size, patch_size) if policy.grid is None else GridAction(policy.grid, size, patch_size)
    action, array = with_skipping(action) if policy.skips else action, actions.cpu().numpy()
    return torch.from_numpy(action.corners_of(array)).to(actions.device), torch.from_numpy(action.patch_mask(array)).to(actions.device)


def count_decisions(classifier: Classifier, policy: PolicyNetwork, num_frames: int, num_glances: int) -> int:
    """Return D, the number of decisions per video.

    Args:
        classifier: The classifier.
        policy: The policy, which reads the stacked glance maps of one decision.
        num_frames: T, frames of the focuser.
        num_glances: G, frames of the glancer.

    Raises:
        InputError: If the frames cannot be divided equally among the decisions.
    """
    if not classifier.architecture.averages_frames:
        if num_frames != num_glances:
            raise InputError(f"this classifier needs the same frames for both networks, got {num_frames} frames and {num_glances} glances")
        return num_frames
    stacked = max(1, policy.architecture.map_shape[0] // classifier.glancer.map_channels)
    steps = num_glances // stacked
    if steps == 0 or steps * stacked != num_glances or num_frames % steps:
        raise InputError(
            f"the policy reads {stacked} glances per decision: {num_glances} glances and {num_frames} frames are not divisible by decisions"
        )
    return steps


def policy_flops(policy: PolicyNetwork) -> int:
    """Return the multiply-adds of the policy in one decision."""
    counted: int | None = getattr(policy, "step_macs", None)  # `ModelOnGlances` has it
    return network_flops(policy, 1, 1, *policy.architecture.map_shape) if counted is None else counted


def _read_batches(clips: ClipSource, batch_size: int, *, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for `infer_batches`. Pinned memory can be copied to a GPU while the GPU computes."""

    def pinned(frames: list[Tensor]) -> Tensor:
        stacked = torch.stack(frames)
        return stacked.pin_memory() if pin else stacked

    for start in range(0, len(clips), batch_size):
        numbers = range(start, min(start + batch_size, len(clips)))
        frames = pinned([clips.frames(number) for number in numbers])
        yield frames, pinned([clips.glancer_frames(number) for number in numbers]) if clips.settings.glance_frames else frames


def _read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; a thread requests the next item while the caller processes the last."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def _by_decision(maps: Tensor, vectors: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    return maps.unflatten(0, (count, steps, -1)).flatten(2, 3), vectors.unflatten(0, (count, steps, -1)).mean(2)


def _check_stacked(policy: PolicyNetwork, map_shape: tuple[int, ...]) -> None:
    """Check that the policy reads one glance map of this shape, or several maps of this shape, stacked."""
    channels, *size = policy.architecture.map_shape
    if channels % map_shape[0] or tuple(size) != map_shape[1:]:
        check_maps(policy, map_shape)


def _check_frames(name: str, frames: Tensor, classifier: Classifier) -> None:
    size = classifier.architecture.size
    if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
        raise InputError(f"{name} have shape {tuple(frames.shape)}; this classifier expects (N, T, 3, {size}, {size})")
    if not frames.is_floating_point():
        raise InputError(f"{name} have dtype {frames.dtype}; give them normalised, as classifier.normalise(frames) does")
