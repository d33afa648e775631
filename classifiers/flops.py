"""What a network costs, in multiply-adds, counted on the real modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from classifiers.classifier import Architecture, Classifier

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one call with one image, patch or step.

    A multiply-add counts as one, as in the publications (PyTorch's counter has it as two).
    """

    glance: int
    focus: int
    focus_frame: int
    head: int


def classifier_cost(classifier: Classifier) -> Cost:
    """Counts the parts of ``classifier``: a glance, a patch, a whole frame through the focuser, a step of the head.

    The temporal shift moves values and costs nothing here: an image costs the same alone and among others. It is counted once
    for a classifier and its architecture, since counting copies the networks.
    """
    known = _COUNTED.get(classifier)
    if known is None or known[0] != classifier.architecture:
        known = _COUNTED[classifier] = classifier.architecture, _count(classifier)
    return known[1]


def _count(classifier: Classifier) -> Cost:
    model = on_cpu(classifier)
    a = classifier.architecture
    glance, focus = torch.zeros(1, 1, model.glancer.vector_size), torch.zeros(1, 1, model.focuser.vector_size)
    return Cost(
        glance=multiply_adds(lambda: model.glancer(torch.zeros(1, 3, a.glance_size, a.glance_size))),
        focus=multiply_adds(lambda: model.focuser(torch.zeros(1, 3, a.patch_size, a.patch_size))),
        focus_frame=multiply_adds(lambda: model.focuser(torch.zeros(1, 3, a.size, a.size))),
        head=multiply_adds(lambda: model.classify(glance, focus)),  # with the glancer's scores where the head adds them
    )


def multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds of convolutions and matrix products in one call of a module on the CPU."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops() // 2


def on_cpu(module: Module) -> Module:
    """A copy on the CPU in float32 and eval mode, so that every device and precision reports the same cost."""
    return copy.deepcopy(module).float().cpu().eval()


_COUNTED: WeakKeyDictionary[Classifier, tuple[Architecture, Cost]] = WeakKeyDictionary()
