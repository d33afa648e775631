"""Inference: compute all actions, then the focus vectors of all patches in one batch, then the class scores.

While a batch of videos is classified, a thread reads the next batch. With a conditional exit, inference runs decision by decision instead
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

from adafocus_env.action import Action, ContinuousAction, GridAction, InterpolatedAction, with_skipping
from adafocus_env.classify import classify_clips
from adafocus_env.clips.store import ClipSource
from agents.evaluation.conditional_exit import ExitModel, ExitThresholds
from agents.evaluation.stepwise import Steps, infer_until_exit
from agents.policies.networks import PolicyNetwork, check_maps, check_patch_share
from classifiers.classifier import Classifier
from classifiers.crop import crop_patches
from classifiers.errors import InputError
from classifiers.flops import video_flops
from classifiers.optimize import optimized

Item = TypeVar("Item")


@dataclass(frozen=True)
class Inference:
    """The result for N videos and K classes.

    Each video has T frames for the focuser, and D decisions. D equals T, except with the head `mean`.

    Attributes:
        actions: Cells of the grid, (N, D) int64, or locations, (N, D, 2) float32. If the policy can skip, there is one additional cell
            number, or each location has a third coordinate; see `adafocus_env.action`.
        boxes: (N, T, 4) int64, patches as (top, left, bottom, right) in pixels; zeros for skipped frames.
        patch_mask: (N, T) bool, the frames with a patch.
        logits: (N, T, K), class scores after every frame. The scores after the last frame are the result.
        macs: (N,) int64, multiply-adds per video.
        processed: (N, T) bool, the frames before the exit. For frames after the exit, actions are undefined and ``logits`` repeats the
            scores at the exit.
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
    """Classify videos. The policy depends only on glances, so that the focuser can process all patches in one batch.

    With a conditional exit, the videos are processed decision by decision, and a video that exits is not processed further.

    Args:
        classifier: A frozen classifier. If the classifier is not yet optimized for inference, it is optimized with
            `classifiers.optimize.optimized`.
        policy: A policy trained on the glance maps of this classifier. A model of an algorithm other than PPO must be wrapped in
            `agents.policies.model_on_glances.ModelOnGlances`.
        frames: Normalised frames (N, T, 3, H, W) on the classifier's device, from which patches are cropped.
        glance_frames: Normalised frames of the glancer (N, G, 3, H, W); None: the same as ``frames``.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        keep_threshold: Skip the frames whose P(skip), the probability of skipping, is at least this threshold; None: use the policy's
            threshold.
        exit: Thresholds of a conditional exit; None: every frame is processed. Each call checks that the thresholds were fitted for these
            weights, which takes a moment for large networks. `infer_batches` checks only once.

    Raises:
        InputError: If frames or policy do not fit the classifier, if ``skipped`` is unknown, if the thresholds were fitted for another
            model, or if ``exit`` is given and the classifier has a temporal shift.
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
    flops = video_flops(classifier, length, num_glances, steps, skipped=skipped, policy_step=policy.step_macs)
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
    """Process whole clips: first all glances, then all actions, then all patches."""
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
    """Classify all clips in order. The next batch is read while the networks run.

    Args:
        classifier: A frozen classifier.
        policy: A policy trained on the glance maps of this classifier.
        clips: The clips. A `lazy` store decodes 64 clips at a time.
        batch_size: Clips per batch.
        skipped: See `infer`.
        keep_threshold: See `infer`.
        exit: See `infer`.

    Raises:
        InputError: If the batch size is below 1, or for one of the reasons listed in `infer`.
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
    """Classify one batch after the other, while a thread reads the next batch.

    Args:
        classifier: A frozen classifier.
        policy: A policy trained on the glance maps of this classifier.
        batches: Pairs of uint8 tensors: the focuser's frames (N, T, 3, H, W) and the glancer's frames (N, G, 3, H, W). Both may be the same
            tensor.
        skipped: See `infer`.
        keep_threshold: See `infer`.
        exit: See `infer`.

    Raises:
        InputError: For one of the reasons listed in `infer`. The error is raised when the invalid batch is reached. An exception that
            ``batches`` raises is passed on.
    """

    def normalise(frames: Tensor) -> Tensor:
        return classifier.normalise(frames.to(classifier.device, non_blocking=True))

    for frames, glance_frames in _read_ahead(batches):
        separate = None if glance_frames is frames else normalise(glance_frames)
        yield infer(classifier, policy, normalise(frames), separate, skipped=skipped, keep_threshold=keep_threshold, exit=exit)
        exit = None if exit is None else replace(exit, model=None)  # the model is checked with the first batch only


def glance_at(classifier: Classifier, glance_frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the glance maps and the glance vectors of every decision.

    Args:
        classifier: The classifier.
        glance_frames: Normalised frames of the glancer, (N, G, 3, H, W).
        steps: D, decisions per clip.

    Returns:
        For every decision, the stacked glance maps of its G/D frames, (N, D, G/D·C, h, w), and the mean of their glance vectors, (N, D, C).
    """
    count, num_glances = glance_frames.shape[:2]
    return _by_decision(*classifier.glance(glance_frames.flatten(0, 1), num_frames=num_glances), count, steps)


def classify_crops(
    classifier: Classifier, frames: Tensor, vectors: Tensor, corners: Tensor, patch_mask: Tensor | None = None, skipped: str = "zeros"
) -> Tensor:
    """Return the class scores (N, T, K) after every frame. The focuser processes all patches in one call.

    Args:
        classifier: The classifier.
        frames: Normalised frames (N, T, 3, H, W).
        vectors: Glance vectors (N, D, C) of the decisions.
        corners: Corners of the patches, (N, D, 2), as (top, left) in pixels, whole or real numbers. All frames of a decision share one
            corner.
        patch_mask: (N, D) bool, the decisions with a patch; None: all decisions have a patch.
        skipped: Input of the head in decisions without a patch; see `adafocus_env.classify.classify_clips`.
    """
    repeats = frames.shape[1] // corners.shape[1]
    corners, vectors = (values.repeat_interleave(repeats, dim=1) for values in (corners, vectors))
    patch_mask = None if patch_mask is None or patch_mask.all() else patch_mask.repeat_interleave(repeats, dim=1)
    focus_vectors = _focus_crops(classifier, frames, corners, patch_mask, repeats)
    return classify_clips(classifier, vectors, focus_vectors, patch_mask, skipped, num_frames=repeats)


def _focus_crops(classifier: Classifier, frames: Tensor, corners: Tensor, patch_mask: Tensor | None, repeats: int) -> Tensor:
    """Return the focus vectors (M, F) of the M patches in ``frames`` (N, T, …).

    Args:
        classifier: The classifier.
        frames: Normalised frames (N, T, 3, H, W).
        corners: Corners of the patches, (N, T, 2).
        patch_mask: (N, T) bool, the frames with a patch; None: all frames have a patch.
        repeats: T/D, the number of frames per decision.
    """
    count, length = frames.shape[:2]
    source = torch.arange(count * length, device=frames.device) if patch_mask is None else patch_mask.flatten().nonzero()[:, 0]
    if not len(source):
        return frames.new_zeros(0, classifier.focuser.vector_size)
    patches = crop_patches(frames.flatten(0, 1), source, corners.flatten(0, 1)[source], classifier.architecture.patch_size)
    return classifier.focus(patches, num_frames=repeats)


def patches_of(policy: PolicyNetwork, classifier: Classifier, actions: Tensor) -> tuple[Tensor, Tensor]:
    """For actions (…) of the policy, return the corners (…, 2) of the patches, as (top, left) in pixels, and the patch mask (…).

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
    return policy.step_macs


def _read_batches(clips: ClipSource, batch_size: int, *, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for `infer_batches`. If ``pin`` is True, use pinned memory, which can be copied to a GPU while the GPU computes."""

    def pinned(frames: list[Tensor]) -> Tensor:
        stacked = torch.stack(frames)
        return stacked.pin_memory() if pin else stacked

    for start in range(0, len(clips), batch_size):
        numbers = range(start, min(start + batch_size, len(clips)))
        frames = pinned([clips.frames(number) for number in numbers])
        yield frames, pinned([clips.glancer_frames(number) for number in numbers]) if clips.settings.glance_frames else frames


def _read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items. A thread requests the next item while the caller processes the current item."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def _by_decision(maps: Tensor, vectors: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    return maps.unflatten(0, (count, steps, -1)).flatten(2, 3), vectors.unflatten(0, (count, steps, -1)).mean(2)


def _check_stacked(policy: PolicyNetwork, map_shape: tuple[int, ...]) -> None:
    """Check that the input of the policy is one glance map of this shape, or a stack of several such maps."""
    channels, *size = policy.architecture.map_shape
    if channels % map_shape[0] or tuple(size) != map_shape[1:]:
        check_maps(policy, map_shape)


def _check_frames(name: str, frames: Tensor, classifier: Classifier) -> None:
    size = classifier.architecture.size
    if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
        raise InputError(f"{name} have shape {tuple(frames.shape)}; this classifier expects (N, T, 3, {size}, {size})")
    if not frames.is_floating_point():
        raise InputError(f"{name} have dtype {frames.dtype}; give them normalised, as classifier.normalise(frames) does")
