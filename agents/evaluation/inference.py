"""One pass through videos: all actions first, then one focuser batch, then the head. The next videos are read meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adafocus_env.action import Action, ContinuousAction, GridAction, crop_patches, skipping
from adafocus_env.clips.store import ClipSource
from adafocus_env.skipped import Skipped, classify_focused, find_skipped
from agents.policies.networks import PolicyNetwork, check_maps
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import classifier_cost, multiply_adds, on_cpu
from classifiers.optimize import optimized

Item = TypeVar("Item")


@dataclass(frozen=True)
class Inference:
    """What a pass found. N videos, T frames of the focuser, D decisions (T, but for the Something-Something family), K classes.

    Attributes:
        actions: (N, D) int64, cells of the grid, or (N, D, 2) float32, places; of a policy that skips G² is a skip, and places have a
            third coordinate.
        boxes: (N, T, 4) int64, patches as (top, left, bottom, right) in pixels; zeros where the frame was skipped.
        patch_mask: (N, T) bool, frames that the focuser saw.
        logits: (N, T, K), class scores after every frame; the last is the answer.
        macs: (N,) int64, multiply-adds of each video.
    """

    actions: Tensor
    boxes: Tensor
    patch_mask: Tensor
    logits: Tensor
    macs: Tensor


@torch.inference_mode()
def infer(
    classifier: Classifier,
    policy: PolicyNetwork,
    frames: Tensor,
    glance_frames: Tensor | None = None,
    *,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Inference:
    """Classifies videos. The policy needs glances only, so all patches that are kept go through the focuser in one batch.

    Args:
        classifier: Frozen. Without an execution of its own it runs as `classifiers.optimize.optimized` says.
        policy: for the glance maps of this classifier.
        frames: normalised, (N, T, 3, H, W), on the classifier's device: what the focuser crops.
        glance_frames: the glancer's, (N, G, 3, H, W), where they are sampled separately.
        skipped: what the head gets where a frame is skipped, a name in `adafocus_env.skipped.SKIPPED`.
        keep_threshold: skip where P(skip) is so much or more; None: the policy's own threshold.

    Raises:
        InputError: the frames or the policy do not fit the classifier, or there is no such option.
    """
    option, classifier = find_skipped(skipped), optimized(classifier)
    glance_frames = frames if glance_frames is None else glance_frames
    for name, given in (("frames", frames), ("glance_frames", glance_frames)):
        _check_frames(name, given, classifier)
    (count, length), glances = frames.shape[:2], glance_frames.shape[1]
    if len(glance_frames) != count:
        raise InputError(f"glance_frames are of {len(glance_frames)} videos, frames of {count}; give the same videos in the same order")
    maps, vectors = classifier.glance(glance_frames.flatten(0, 1), num_frames=glances)
    _check_stacked(policy, tuple(maps.shape[1:]))
    steps = decisions(classifier, policy, length, glances)
    maps, vectors = _by_decision(maps, vectors, count, steps)
    actions = policy.act(maps, keep_threshold)
    corners, patch_mask = patches_of(policy, classifier, actions)
    logits = focus_at(classifier, frames, vectors, corners, patch_mask, option)
    corners, patch_mask = (each.repeat_interleave(length // steps, dim=1) for each in (corners, patch_mask))
    return Inference(
        actions=actions,
        boxes=torch.cat([corners, corners + classifier.architecture.patch_size], dim=-1) * patch_mask[..., None],
        patch_mask=patch_mask,
        logits=logits,
        macs=video_costs(classifier, patch_mask, glances, option) + steps * policy_cost(policy),
    )


def infer_clips(
    classifier: Classifier,
    policy: PolicyNetwork,
    clips: ClipSource,
    *,
    batch_size: int = 8,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Iterator[Inference]:
    """Classifies all clips of a store in their order; while the networks look at a batch, the next one is read.

    Args:
        classifier: frozen.
        policy: for its glance maps.
        clips: decoded or not: a store that is `lazy` decodes 64 clips at a time.
        batch_size: clips in a batch.
        skipped: as `infer`.
        keep_threshold: as `infer`.

    Raises:
        InputError: the batch size is below 1, or as `infer`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is too small; choose 1 or more clips in a batch")
    batches = _read(clips, batch_size, pin=classifier.device.type == "cuda")
    return infer_batches(classifier, policy, batches, skipped=skipped, keep_threshold=keep_threshold)


def infer_batches(
    classifier: Classifier,
    policy: PolicyNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    skipped: str = "zeros",
    keep_threshold: float | None = None,
) -> Iterator[Inference]:
    """Classifies batch after batch; the next one is asked for in a thread meanwhile.

    Args:
        classifier: frozen.
        policy: for its glance maps.
        batches: the focuser's frames (N, T, 3, H, W) uint8 and the glancer's (N, G, 3, H, W), the same tensor where they are the same.
        skipped: as `infer`.
        keep_threshold: as `infer`.

    Raises:
        InputError: as `infer`, when the batch's turn comes. What ``batches`` raises comes through, too.
    """
    for frames, glance_frames in _ahead(batches):
        seen = classifier.normalise(frames.to(classifier.device, non_blocking=True))
        glanced = None
        if glance_frames is not frames:
            glanced = classifier.normalise(glance_frames.to(classifier.device, non_blocking=True))
        yield infer(classifier, policy, seen, glanced, skipped=skipped, keep_threshold=keep_threshold)


def glance_at(classifier: Classifier, glance_frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Normalised frames (N, G, 3, H, W) → glance maps (N, D, G/D·C, h, w), stacked, and mean vectors (N, D, C) of the decisions."""
    count, glances = glance_frames.shape[:2]
    return _by_decision(*classifier.glance(glance_frames.flatten(0, 1), num_frames=glances), count, steps)


def focus_at(
    classifier: Classifier, frames: Tensor, vectors: Tensor, corners: Tensor, patch_mask: Tensor | None = None, skipped: Skipped = "zeros"
) -> Tensor:
    """Class scores (N, T, K) after every frame, all patches in one call of the focuser.

    Args:
        classifier: its networks.
        frames: normalised, (N, T, 3, H, W).
        vectors: glance vectors (N, D, C) of the decisions.
        corners: (N, D, 2) as (top, left) in pixels; the frames of a decision share one.
        patch_mask: (N, D) bool, decisions whose frames the focuser sees; None: all.
        skipped: what the head gets in the others.
    """
    count, length = frames.shape[:2]
    each = length // corners.shape[1]
    places, glances = corners.repeat_interleave(each, dim=1).flatten(0, 1), vectors.repeat_interleave(each, dim=1)
    if patch_mask is None or patch_mask.all():
        source = torch.arange(count * length, device=frames.device)
    else:
        source = patch_mask.repeat_interleave(each, dim=1).flatten().nonzero()[:, 0]
        places = places[source]
    focus_vectors = frames.new_zeros(0, classifier.focuser.vector_size)
    if len(source):
        patches = crop_patches(frames.flatten(0, 1), source, places, classifier.architecture.patch_size)
        focus_vectors = classifier.focus(patches, num_frames=each)
    if len(source) == count * length:
        return classifier.classify(glances, focus_vectors.unflatten(0, (count, length)))[0]
    assert patch_mask is not None
    return classify_focused(classifier, glances, focus_vectors, patch_mask.repeat_interleave(each, dim=1), skipped, num_frames=each)


def patches_of(policy: PolicyNetwork, classifier: Classifier, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The policy's actions → corners (…, 2) of their patches in the frames of the classifier, as (top, left) in pixels; and whether each
    looks at one (…)."""
    size, patch_size = classifier.architecture.size, classifier.architecture.patch_size
    action: Action = ContinuousAction(size, patch_size) if policy.grid is None else GridAction(policy.grid, size, patch_size)
    action, chosen = skipping(action) if policy.skips else action, actions.cpu().numpy()
    corners, patch_mask = (torch.from_numpy(each).to(actions.device) for each in (action.corners_of(chosen), action.patch_mask(chosen)))
    return corners, patch_mask


def decisions(classifier: Classifier, policy: PolicyNetwork, frames: int, glances: int) -> int:
    """D, the decisions of a video: as many as the policy can take from its glances.

    Args:
        classifier: what classifies the video.
        policy: reads the stacked glance maps of one decision.
        frames: T of the focuser.
        glances: frames of the glancer.

    Raises:
        InputError: the frames cannot be shared out equally.
    """
    if classifier.architecture.head != "mean":
        if frames != glances:
            raise InputError(f"{frames} frames come with {glances} glances; this classifier looks at the same frames with both networks")
        return frames
    stacked = max(1, policy.architecture.map_shape[0] // classifier.glancer.map_channels)
    steps = glances // stacked
    if steps == 0 or steps * stacked != glances or frames % steps:
        raise InputError(
            f"the policy reads {stacked} glances a decision: {glances} glances and {frames} frames cannot be shared out among its decisions"
        )
    return steps


def video_cost(classifier: Classifier, frames: int, glances: int) -> int:
    """Multiply-adds of a video without the policy: ``glances`` glances, ``frames`` patches and as many steps of the head."""
    cost = classifier_cost(classifier)
    return glances * cost.glance + frames * (cost.focus + cost.head)


def video_costs(classifier: Classifier, patch_mask: Tensor, glances: int, skipped: Skipped) -> Tensor:
    """Multiply-adds (N,) int64 of videos without the policy, where the focuser saw the frames ``patch_mask`` (N, T) alone.

    The head takes a step a frame; where it takes none for skipped ones, only for those kept, or for all that answer a video without any.
    """
    cost, frames = classifier_cost(classifier), patch_mask.shape[1]
    seen = patch_mask.sum(1)
    steps = torch.where(seen > 0, seen, frames) if skipped == "none" else frames
    return glances * cost.glance + seen * cost.focus + steps * cost.head


def policy_cost(policy: PolicyNetwork) -> int:
    """Multiply-adds of the policy for one decision, counted once."""
    if policy not in _COUNTED:
        model = on_cpu(policy)
        _COUNTED[policy] = multiply_adds(lambda: model(torch.zeros(1, 1, *policy.architecture.map_shape)))
    return _COUNTED[policy]


_COUNTED: WeakKeyDictionary[PolicyNetwork, int] = WeakKeyDictionary()


def _read(clips: ClipSource, batch_size: int, *, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `infer_batches`; pinned memory is copied to a GPU while it computes."""

    def stacked(read: Callable[[int], Tensor], numbers: Iterable[int]) -> Tensor:
        frames = torch.stack([read(number) for number in numbers])
        return frames.pin_memory() if pin else frames

    for start in range(0, len(clips), batch_size):
        numbers = range(start, min(start + batch_size, len(clips)))
        frames = stacked(clips.frames, numbers)
        yield frames, stacked(clips.glancer_frames, numbers) if clips.settings.glance_frames else frames


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each asked for in a thread while the one before it is worked on."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = reader.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def _by_decision(maps: Tensor, vectors: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    return maps.unflatten(0, (count, steps, -1)).flatten(2, 3), vectors.unflatten(0, (count, steps, -1)).mean(2)


def _check_stacked(policy: PolicyNetwork, map_shape: tuple[int, ...]) -> None:
    """Checks that the policy reads one glance map of this shape or several, stacked."""
    channels, *place = policy.architecture.map_shape
    if channels % map_shape[0] or tuple(place) != map_shape[1:]:
        check_maps(policy, map_shape)


def _check_frames(name: str, frames: Tensor, classifier: Classifier) -> None:
    size = classifier.architecture.size
    if frames.ndim != 5 or frames.shape[2:] != (3, size, size):
        raise InputError(f"{name} have shape {tuple(frames.shape)}; this classifier expects (N, T, 3, {size}, {size})")
    if not frames.is_floating_point():
        raise InputError(f"{name} have dtype {frames.dtype}; give them normalised, as classifier.normalise(frames) does")
