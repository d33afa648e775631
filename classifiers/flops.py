"""Count the multiply-adds of the networks and of whole videos. One multiply-add counts as one operation, as in the publications."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from classifiers.classifier import Classifier
from classifiers.errors import refuse_if


def multiply_adds(call: Callable[[], object], *, gradient: bool = False) -> int:
    """Count the multiply-adds of convolutions and matrix products in one call of a module on the CPU.

    Args:
        call: The call that is counted.
        gradient: Whether the call may compute gradients. If the call runs backward passes, their products are counted, too.
    """
    with torch.set_grad_enabled(gradient), _FlopCounter() as counter:
        call()
    return counter.total // 2  # PyTorch counts a multiply-add as two


class _FlopCounter(TorchDispatchMode):
    """A mode that counts with the formulas of `torch.utils.flop_counter`. (PyTorch's mode imports the compiler, which takes seconds.)"""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given, count = kwargs or {}, flop_registry.get(func.overloadpacket)
        if count is None:
            with self:  # in inference mode, a linear layer arrives as one operation, which has to be decomposed to find its matrix product
                result = func.decompose(*args, **given)
            if result is not NotImplemented:
                return result
        result = func(*args, **given)
        if count is not None:
            self.total += count(*args, **given, out_val=result)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # otherwise, PyTorch imports the compiler to exclude this mode
        return False


def network_flops(network: nn.Module, *shape: int) -> int:
    """Count the multiply-adds of one call of ``network`` with an input of the given shape. The result is cached."""
    return _cached(network, shape, lambda model: multiply_adds(lambda: model(torch.zeros(shape))))


@dataclass(frozen=True)
class ClassifierFlops:
    """The multiply-adds of one call of each network.

    Attributes:
        glance: multiply-adds of the glancer for one frame.
        focus: multiply-adds of the focuser for one patch.
        focus_frame: multiply-adds of the focuser for one whole frame.
        head: multiply-adds of the head for one step.
    """

    glance: int
    focus: int
    focus_frame: int
    head: int


def classifier_flops(classifier: Classifier) -> ClassifierFlops:
    """Count the multiply-adds of the networks of ``classifier``. The result is cached.

    The temporal shift needs no multiply-adds, so that the cost of a frame does not depend on other frames of the clip.
    """
    return _cached(classifier, classifier.architecture, _count)


@dataclass(frozen=True)
class VideoFlops:
    """The multiply-adds of a video with a patch in every step. Properties and methods return the multiply-adds of single steps, and of
    videos with fewer patches.

    Attributes:
        num_steps: D, steps (decisions) per video.
        glancer: multiply-adds of the glancer in all steps.
        policy: multiply-adds of the policy in all steps.
        focuser: multiply-adds of the focuser in all steps.
        head: multiply-adds of the head in all steps.
        head_skips: whether the head takes no step in skipped frames.
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
        """Additional multiply-adds of a complete video without any patch.

        If the head takes no steps in skipped frames, it classifies the glances of all steps at the end of a video without patches. This
        call needs additional multiply-adds.
        """
        return self.head if self.head_skips else 0

    def total(self, num_patches: Any = None, num_steps: Any = None) -> Any:
        """Return the multiply-adds of videos. If an argument is an array or a tensor, the result is also an array or a tensor.

        Args:
            num_patches: number of steps with a patch; None: all steps.
            num_steps: number of steps that are taken, if the video ends early; None: all steps.
        """
        num_steps, num_patches = (self.num_steps if given is None else given for given in (num_steps, num_patches))
        without = (num_patches == 0) * (num_steps == self.num_steps)
        return (num_steps * self._without_patches + num_patches * self._patches) // self.num_steps + without * self.no_patch

    def at(self, keep: float) -> float:
        """Return the multiply-adds of a video in which the share ``keep`` of the steps have a patch."""
        return self.num_steps * (self.skipped_step + keep * self.patch)

    def keep_for(self, budget: float) -> float:
        """Return the share of steps that can have a patch if a video may cost ``budget`` GFLOPs.

        Raises:
            InputError: If the budget is lower than the cost of a video without patches, or higher than the cost of a video with a patch in
                every step.
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
        classifier: The classifier.
        num_frames: T, frames of the focuser.
        num_glance_frames: G, frames of the glancer.
        num_steps: D, number of decisions of the policy; None: one decision per frame.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
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
        head=multiply_adds(lambda: model.classify(glance, focus)),  # includes the glancer's scores if the head adds them
    )


def _cached(network: nn.Module, key: object, count: Callable[[Any], Any]) -> Any:
    """Call ``count`` with a float32 copy of the network in eval mode on the CPU, and cache the result.

    Because of the copy, the cost does not depend on device and precision.
    """
    counts = _COUNTS.setdefault(network, {})
    if key not in counts:
        counts[key] = count(copy.deepcopy(network).float().cpu().eval())
    return counts[key]


_COUNTS: WeakKeyDictionary[nn.Module, dict[object, Any]] = WeakKeyDictionary()
