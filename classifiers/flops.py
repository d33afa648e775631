"""Multiply-adds of the networks and of whole videos: the only counter. One multiply-add counts as one, as in the publications."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from classifiers.classifier import Classifier
from classifiers.errors import refuse_if


def multiply_adds(call: Callable[[], object], *, gradient: bool = False) -> int:
    """Count the multiply-adds of convolutions and matrix products in one call of a module on the CPU.

    Args:
        call: What is counted.
        gradient: Whether it may compute gradients; the products of its backward passes then count too.
    """
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(gradient), counter:
        call()
    return counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two


def network_flops(network: nn.Module, *shape: int) -> int:
    """Count the multiply-adds of one call of ``network`` with an input of this shape; cached."""
    return _cached(network, shape, lambda model: multiply_adds(lambda: model(torch.zeros(shape))))


@dataclass(frozen=True)
class ClassifierFlops:
    """Multiply-adds of one call of each network.

    Attributes:
        glance: the glancer on one frame.
        focus: the focuser on one patch.
        focus_frame: the focuser on one whole frame.
        head: one step of the head.
    """

    glance: int
    focus: int
    focus_frame: int
    head: int


def classifier_flops(classifier: Classifier) -> ClassifierFlops:
    """Count the multiply-adds of the networks of ``classifier``; cached for its architecture.

    The temporal shift moves values without a multiply-add, so a frame costs the same alone and in a clip.
    """
    return _cached(classifier, classifier.architecture, _count)


@dataclass(frozen=True)
class VideoFlops:
    """Multiply-adds of a video with a patch in every step, and of its steps.

    Attributes:
        num_steps: D, steps (decisions) of the video.
        glancer: in all steps.
        policy: in all steps.
        focuser: in all steps.
        head: in all steps.
        head_skips: whether the head takes no step where frames are skipped.
    """

    num_steps: int
    glancer: int
    policy: int
    focuser: int
    head: int
    head_skips: bool = False

    @property
    def skipped_step(self) -> int:
        """Multiply-adds of a step without a patch."""
        return self._without_patches // self.num_steps

    @property
    def patch(self) -> int:
        """Multiply-adds that a patch adds to a step."""
        return self._patches // self.num_steps

    @property
    def no_patch(self) -> int:
        """Multiply-adds that are added to a complete video without any patch: the head classifies the glances of all its steps."""
        return self.head if self.head_skips else 0

    def total(self, num_patches: Any = None, num_steps: Any = None) -> Any:
        """Return the multiply-adds of videos; a number, an array or a tensor, as the arguments.

        Args:
            num_patches: steps with a patch; None: all.
            num_steps: steps before the video is classified, where it ends early; None: all.
        """
        num_steps, num_patches = (self.num_steps if given is None else given for given in (num_steps, num_patches))
        without = (num_patches == 0) * (num_steps == self.num_steps)
        return (num_steps * self._without_patches + num_patches * self._patches) // self.num_steps + without * self.no_patch

    def at(self, keep: float) -> float:
        """Return the multiply-adds of a video of which this share of the steps has a patch."""
        return self.num_steps * (self.skipped_step + keep * self.patch)

    def keep_for(self, budget: float) -> float:
        """Return the share of steps with a patch for a budget in GFLOPs per video.

        Raises:
            InputError: The budget is below the cost of glances alone, or above that of a patch in every step.
        """
        least, most = self.at(0) / 1e9, self.at(1) / 1e9
        refuse_if(
            not least <= budget <= most,
            f"budget must be from {least:.4g} GFLOPs per video (glances alone) to {most:.4g} (a patch in every frame), got {budget}",
        )
        return (budget - least) / (most - least)

    @property
    def _without_patches(self) -> int:
        return self.glancer + self.policy + (0 if self.head_skips else self.head)

    @property
    def _patches(self) -> int:
        return self.focuser + (self.head if self.head_skips else 0)


def video_flops(
    classifier: Classifier,
    num_frames: int,
    num_glance_frames: int,
    num_steps: int | None = None,
    *,
    skipped: str = "zeros",
    policy_step: int = 0,
) -> VideoFlops:
    """Return the multiply-adds of a video.

    Args:
        classifier: Its networks.
        num_frames: T, frames of the focuser.
        num_glance_frames: Frames of the glancer.
        num_steps: D, decisions of the policy; None: one per frame.
        skipped: Input of the head where frames are skipped, a name in `adafocus_env.classify.SKIPPED`.
        policy_step: Multiply-adds of the policy in one step.
    """
    flops, steps = classifier_flops(classifier), num_frames if num_steps is None else num_steps
    return VideoFlops(
        steps,
        glancer=num_glance_frames * flops.glance,
        policy=steps * policy_step,
        focuser=num_frames * flops.focus,
        head=num_frames * flops.head,
        head_skips=skipped == "none",
    )


def _count(model: Classifier) -> ClassifierFlops:
    a = model.architecture
    glance, focus = torch.zeros(1, 1, model.glancer.vector_size), torch.zeros(1, 1, model.focuser.vector_size)
    return ClassifierFlops(
        glance=multiply_adds(lambda: model.glancer(torch.zeros(1, 3, a.glance_size, a.glance_size))),
        focus=multiply_adds(lambda: model.focuser(torch.zeros(1, 3, a.patch_size, a.patch_size))),
        focus_frame=multiply_adds(lambda: model.focuser(torch.zeros(1, 3, a.size, a.size))),
        head=multiply_adds(lambda: model.classify(glance, focus)),  # with the glancer's scores where the head adds them
    )


def _cached(network: nn.Module, key: object, count: Callable[[Any], Any]) -> Any:
    """Return ``count`` of a copy on the CPU in float32 and eval mode, so that every device and precision reports the same cost."""
    counts = _COUNTS.setdefault(network, {})
    if key not in counts:
        counts[key] = count(copy.deepcopy(network).float().cpu().eval())
    return counts[key]


_COUNTS: WeakKeyDictionary[nn.Module, dict[object, Any]] = WeakKeyDictionary()
