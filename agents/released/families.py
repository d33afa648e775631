"""The families of the authors' checkpoints: how each names the tensors of our networks, and what its tensors tell of their sizes.

Here are the two of AdaFocus; those of AdaFocusV2 are in `agents.released.families_v2`.
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
"""The tensors of a file by part and name, such as ``fc.gru.bias_ih_l0``."""
MAP_SHAPE = (1280, 7, 7)
POLICY_NAMES = {
    "encoder.frame.": "policy.state_encoder.",
    "encoder.gru.": "policy.gru.",
    "actor.": "policy.actor.0.",
    "critic.": "policy.critic.0.",
}
"""How our names begin → how the same tensors' names begin in the file. The first that fits counts; empty: the file lacks them."""


@dataclass(frozen=True)
class Family:
    """The files of one family.

    Attributes:
        name: Name of the family's data sets.
        signs: Prefixes of names that only files of this family have.
        rows: Tensors with one row per class; the first one in the file counts.
        architecture: The file's tensors → the architecture, with the smallest published patch size.
        names: An (empty) classifier → the names of its tensors in the file, as `POLICY_NAMES` for the policy.
        policy: The file's tensors → the sizes of its policy, and G, the cells per axis (None: continuous).
        clip_format: The published clips, which the file does not state.
        copies_of_the_policy: Prefixes of copies of the policy in the focuser.
        policy_names: An (empty) policy's names → those in the file, as `POLICY_NAMES`.
        unused: Prefixes of tensors that no network uses, such as classifiers of ImageNet's classes; they may be missing.
        interpolated: Whether patches are interpolated, see `classifiers.crop`.
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
    """Whether a name begins so."""
    return any(name.startswith(start) for name in found)


def shape_of(found: Tensors, name: str) -> tuple[int, ...]:
    """The shape of a tensor; () if it is missing."""
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
    """With the paper's 49 cells where the tensor that tells is missing, which is reported with all others."""
    bias = found.get("policy.actor.0.bias", torch.zeros(49))
    grid = math.isqrt(bias.numel())
    if grid < 2 or bias.shape != (grid * grid,):
        raise InputError(f"policy.actor.0.bias has shape {tuple(bias.shape)}, but a grid has 16, 25, 36, 49 or 64 cells")
    return PolicyArchitecture(MAP_SHAPE), grid


def _something_names(classifier: Classifier) -> dict[str, str]:
    """The file has the layers of a block of MobileNetV2 in one row, and a ``net.`` where the shift wraps a convolution.

    Its focuser has no frame classifier. The head's linear layer was trained on the vectors that a frame classifier would
    get, so ours, which only stage 0 uses, is a copy of it.
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
    """Each layer of a block by its number among all layers of the block, activations included; ``prefix`` is the glancer's in the file."""
    names: dict[str, str] = {}
    for block, module in mobilenet.features.named_children():
        if isinstance(module, InvertedResidual):
            layers = [name for name, layer in module.conv.named_modules() if not list(layer.children())]
            start = f"features.{block}.conv."
            names |= {f"glancer.{start}{name}.": f"{prefix}{start}{index}." for index, name in enumerate(layers)}
    return names


def _something_policy(found: Tensors) -> tuple[PolicyArchitecture, None]:
    """For as many stacked glance maps as its convolution takes: 8 where the tensor that tells is missing, as published."""
    channels, height, width = MAP_SHAPE
    shape = shape_of(found, "policy.state_encoder.0.weight") or (64, 8 * channels, 1, 1)
    if len(shape) != 4 or shape[1] < channels or shape[1] % channels:
        raise InputError(f"policy.state_encoder.0.weight has shape {shape}, but takes a whole number of glance maps of {channels} channels")
    return PolicyArchitecture((shape[1], height, width), channels=64, batch_norm=True), None


ACTIVITYNET = Family(
    name="ActivityNet",
    signs=("focuser.net.conv1.", "focuser.net.layer", "focuser.net.fc.", "glancer.net.classifier.1.", "fc.fc.", "fc.gru."),
    rows=("fc.fc.weight", "glancer.net.classifier.1.weight"),
    architecture=_activitynet,
    names=_activitynet_names,
    policy=_activitynet_policy,
    clip_format=ClipFormat(16),
    copies_of_the_policy=("focuser.policy.policy.", "focuser.policy.policy_old."),  # the second one acts
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
