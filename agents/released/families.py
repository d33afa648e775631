"""The families of the authors' checkpoints: the names of their tensors, and the network sizes that follow from the shapes of the tensors.

This module contains the two families of AdaFocus. `agents.released.families_v2` contains those of AdaFocusV2.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor
from torchvision.models.mobilenetv2 import InvertedResidual

from agents.policies.networks import NetworkArchitecture, PolicyArchitecture
from classifiers.backbones.backbone import Backbone
from classifiers.classifier import Architecture, Classifier, ClipFormat
from classifiers.errors import InputError
from classifiers.model_zoo import ARCHITECTURES

Tensors = Mapping[str, Tensor]
"""The tensors of a file. The keys are names such as ``fc.gru.bias_ih_l0``, which begin with the entry of the file (``fc``)."""
MAP_SHAPE = (1280, 7, 7)
POLICY_NAMES = {
    "encoder.frame.": "policy.state_encoder.",
    "encoder.gru.": "policy.gru.",
    "actor.": "policy.actor.0.",
    "critic.": "policy.critic.0.",
}
"""Maps prefixes of this project's tensor names to the corresponding prefixes in the file.

For each tensor, the first prefix that matches is used. If the prefix in the file is empty, the file does not contain these tensors."""


@dataclass(frozen=True)
class Family:
    """The files of one family.

    Attributes:
        name: Name of the family's data sets.
        signs: Prefixes of names that occur only in files of this family.
        rows: Names of tensors with one row per class. The first of these tensors that is in the file gives the number of classes.
        architecture: Function that takes the file's tensors and returns the architecture, with the smallest published patch size.
        names: Function that takes a classifier and returns the prefixes of its tensors' names in the file, in the format of `POLICY_NAMES`.
        policy: Function that takes the file's tensors and returns the sizes of the policy and G, the number of cells per axis. If the
            policy is continuous, G is None.
        clip_format: The published clip format, which the file does not state.
        copies_of_the_policy: Prefixes of copies of the policy in the focuser.
        policy_names: Prefixes of the names of the policy's tensors in the file, in the format of `POLICY_NAMES`.
        unused: Prefixes of tensors that no network uses, such as the classifier of ImageNet classes. These tensors may be missing.
        interpolated: Whether patches are interpolated; see `classifiers.crop`.
    """

    name: str
    signs: tuple[str, ...]
    rows: tuple[str, ...]
    architecture: Callable[[Tensors], Architecture]
    names: Callable[[Classifier], dict[str, str]]
    policy: Callable[[Tensors], tuple[NetworkArchitecture, int | None]]
    clip_format: ClipFormat
    copies_of_the_policy: tuple[str, ...] = ()
    policy_names: Mapping[str, str] = field(default_factory=lambda: POLICY_NAMES)
    unused: tuple[str, ...] = ()
    interpolated: bool = False


def has(found: Tensors, start: str) -> bool:
    """Return whether any tensor's name begins with ``start``."""
    return any(name.startswith(start) for name in found)


def shape_of(found: Tensors, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor; () if it is missing."""
    return tuple(found[name].shape) if name in found else ()


def _activitynet(found: Tensors) -> Architecture:
    paper = ARCHITECTURES["paper"]
    linear = not has(found, "fc.gru.") and shape_of(found, "fc.fc.weight")[1:] not in ((), (paper.hidden_size,))
    return replace(paper, head="linear") if linear else paper


def _activitynet_names(_: Classifier) -> dict[str, str]:
    return {
        "glancer.features.": "glancer.net.features.",
        "glancer.fc.": "glancer.net.classifier.1.",
        "focuser.features.0.": "focuser.net.conv1.",
        "focuser.features.1.": "focuser.net.bn1.",
        "focuser.features.4.": "focuser.net.layer1.",
        "focuser.features.5.": "focuser.net.layer2.",
        "focuser.features.6.": "focuser.net.layer3.",
        "focuser.features.7.": "focuser.net.layer4.",
        "focuser.fc.": "focuser.net.fc.",
        "head.": "fc.",
    }


def _activitynet_policy(found: Tensors) -> tuple[PolicyArchitecture, int]:
    """Return the sizes of the policy and G.

    If the file does not contain the actor's bias, G is 7, as in the paper. Missing tensors are reported later.
    """
    bias = found.get("policy.actor.0.bias", torch.zeros(49))
    grid = math.isqrt(bias.numel())
    if grid < 2 or bias.shape != (grid * grid,):
        raise InputError(f"policy.actor.0.bias must have one entry per cell of a grid: 16, 25, 36, 49 or 64; got shape {tuple(bias.shape)}")
    return PolicyArchitecture(MAP_SHAPE), grid


def _something_names(classifier: Classifier) -> dict[str, str]:
    """Return the prefixes of the names that a classifier's tensors have in the file, in the format of `POLICY_NAMES`.

    In the file, all layers of a MobileNetV2 block are numbered consecutively, and ``net.`` is inserted in the names of convolutions that
    the temporal shift wraps. The focuser in the file has no frame classifier, which only stage 0 uses. The frame classifier becomes a copy
    of the head's linear layer, because that layer was trained on the same inputs.
    """
    glancer, focuser = cast(Backbone, classifier.glancer), cast(Backbone, classifier.focuser)
    glancer_names = flat_names(glancer, "glancer.net.")
    for place in glancer.shift.modules if glancer.shift else ():
        glancer_names[f"glancer.features.{place}."] += "net."
    shifted = focuser.shift.modules if focuser.shift else ()
    return {
        **glancer_names,
        "glancer.features.": "glancer.net.features.",
        "glancer.fc.": "glancer.net.classifier.",
        **{f"focuser.features.{place}.": f"focuser.net.base_model.{place}.net." for place in shifted},
        "focuser.features.": "focuser.net.base_model.",
        "focuser.fc.": "fc.",
        "head.fc.": "fc.",
    }


def flat_names(mobilenet: Backbone, prefix: str) -> dict[str, str]:
    """Return the prefixes of the names that a glancer's tensors have in a file, in the format of `POLICY_NAMES`.

    In the file, the layers of each block, including activations, are numbered, and the names of the glancer begin with ``prefix``.
    """
    names: dict[str, str] = {}
    for block, module in mobilenet.features.named_children():
        if isinstance(module, InvertedResidual):
            layers = [name for name, layer in module.conv.named_modules() if not list(layer.children())]
            start = f"features.{block}.conv."
            names |= {f"glancer.{start}{name}.": f"{prefix}{start}{index}." for index, name in enumerate(layers)}
    return names


def _something_policy(found: Tensors) -> tuple[PolicyArchitecture, None]:
    """Return the sizes of the policy.

    The number of stacked glance maps is read from the convolution's weight. If the file does not contain this weight, the number of stacked
    maps is 8.
    """
    channels, height, width = MAP_SHAPE
    shape = shape_of(found, "policy.state_encoder.0.weight") or (64, 8 * channels, 1, 1)
    if len(shape) != 4 or shape[1] < channels or shape[1] % channels:
        raise InputError(f"policy.state_encoder.0.weight must read a multiple of {channels} channels, the glance map's, got shape {shape}")
    return PolicyArchitecture((shape[1], height, width), channels=64, batch_norm=True), None


ACTIVITYNET = Family(
    name="ActivityNet",
    signs=("focuser.net.conv1.", "focuser.net.layer", "focuser.net.fc.", "glancer.net.classifier.1.", "fc.fc.", "fc.gru."),
    rows=("fc.fc.weight", "glancer.net.classifier.1.weight"),
    architecture=_activitynet,
    names=_activitynet_names,
    policy=_activitynet_policy,
    clip_format=ClipFormat(16),
    copies_of_the_policy=("focuser.policy.policy.", "focuser.policy.policy_old."),  # the second copy selects actions
)
SOMETHING_SOMETHING = Family(
    name="Something-Something",
    signs=("focuser.net.base_model.", "glancer.net.classifier.weight", "glancer.net.classifier.bias", "fc.weight", "fc.bias"),
    rows=("fc.weight", "glancer.net.classifier.weight"),
    architecture=lambda _: ARCHITECTURES["paper_tsm"],
    names=_something_names,
    policy=_something_policy,
    clip_format=ClipFormat(12, glance_frames=8),
)
