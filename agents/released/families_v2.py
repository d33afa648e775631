"""The families of AdaFocusV2's checkpoints, and the table of all families.

A file is a dictionary with the entry ``state_dict``, which contains the tensors of the whole model under names such as
``policy_stn.gru.bias_ih_l0``. The auxiliary heads of the networks in a file become the frame classifiers of the backbones.
"""

from dataclasses import replace
from typing import cast

from agents.policies.published_v2 import PublishedV2Architecture
from agents.released.families import ACTIVITYNET, MAP_SHAPE, SOMETHING_SOMETHING, Family, Tensors, flat_names, shape_of
from classifiers.backbones.backbone import Backbone
from classifiers.classifier import Architecture, Classifier, ClipFormat
from classifiers.errors import InputError, refuse_if
from classifiers.model_zoo import ARCHITECTURES

RESNET = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}
"""Maps the index of each layer of a ResNet trunk in the backbone, which is an `nn.Sequential`, to the name of the layer."""


def family_of(found: Tensors) -> Family:
    """Return the family to which most of the file's names belong."""
    return max(FAMILIES.values(), key=lambda family: sum(name.startswith(family.signs) for name in found))


def _architecture(found: Tensors) -> Architecture:
    """Return the architecture.

    The architecture has the file's glancer, and its number of steps is the number of linear layers in the file's head.
    """
    steps = len({name.split(".")[2] for name in found if name.startswith("classifier.classifiers.")})
    refuse_if(not steps, "missing classifier.classifiers.0.1.weight, the first linear layer of the head")
    paper = ARCHITECTURES["paper_v2_res50" if "global_CNN.conv1.weight" in found else "paper_v2"]
    return replace(paper, head_steps=steps)


def _names(classifier: Classifier) -> dict[str, str]:
    glancer = cast(Backbone, classifier.glancer)
    of_resnet = classifier.architecture.glancer == "resnet50"
    return {
        **(_resnet("glancer", "global_CNN.") if of_resnet else flat_names(glancer, "global_CNN.")),
        "glancer.features.": "global_CNN.features.",
        "glancer.fc.": "global_CNN_fc.1.",
        **_resnet("focuser", "local_CNN."),
        "focuser.fc.": "local_CNN_fc.1.",
        "head.hidden.": "classifier.mlp.layers.",
        **{f"head.fc.{step}.": f"classifier.classifiers.{step}.1." for step in range(classifier.architecture.head_steps)},
    }


def _policy(found: Tensors) -> tuple[PublishedV2Architecture, None]:
    """Return the sizes of the policy. The convolution's weight determines the channels of the glance map; h and w are as published."""
    channels = (shape_of(found, "policy_stn.encoder.0.weight") or (64, MAP_SHAPE[0]))[1]
    side = 3 if channels == 2048 else MAP_SHAPE[1]  # the ResNet-50 glancer's input is 96 × 96 pixels
    return PublishedV2Architecture((channels, side, side)), None


def _tsm_names(classifier: Classifier) -> dict[str, str]:
    """Return the prefixes of the names that a classifier's tensors have in the file, in the format of `POLICY_NAMES`.

    In the file, ``net.`` is inserted in the names of convolutions that the temporal shift wraps.
    """
    glancer, focuser = cast(Backbone, classifier.glancer), cast(Backbone, classifier.focuser)
    of_glancer, of_focuser = flat_names(glancer, "global_CNN.base_model."), _resnet("focuser", "local_CNN.base_model.")
    for place in glancer.shift.modules if glancer.shift else ():
        of_glancer[f"glancer.features.{place}."] += "net."
    shifted = {}
    for place in focuser.shift.modules if focuser.shift else ():  # such as 4.0.conv1
        number, _, rest = place.partition(".")
        shifted[f"focuser.features.{place}."] = f"local_CNN.base_model.{RESNET[int(number)]}.{rest}.net."
    return {
        **of_glancer,
        "glancer.features.": "global_CNN.base_model.features.",
        "glancer.fc.": "global_CNN.new_new_fc.",
        **shifted,
        **of_focuser,
        "focuser.fc.": "local_CNN.new_new_fc.",
        "head.glance_fc.": "global_CNN.new_fc.",
        "head.focus_fc.": "local_CNN.new_fc.",
    }


def _resnet(network: str, prefix: str) -> dict[str, str]:
    return {f"{network}.features.{number}.": f"{prefix}{name}." for number, name in RESNET.items()}


def _tsm_policy(found: Tensors) -> tuple[PublishedV2Architecture, None]:
    """Return the sizes of the policy.

    The number of stacked glance maps is read from the convolution's weight. The number is 8 if the file does not contain this weight.
    """
    channels, height, width = MAP_SHAPE
    shape = shape_of(found, "policy_stn.0.weight") or (64, 8 * channels, 1, 1)
    if len(shape) != 4 or shape[1] < channels or shape[1] % channels:
        raise InputError(f"policy_stn.0.weight must read a multiple of {channels} channels, the glance map's, got shape {shape}")
    return PublishedV2Architecture((shape[1], height, width), features=1024, hidden=512, memory=False), None


ACTIVITYNET_V2 = Family(
    name="AdaFocusV2-ActivityNet",
    signs=("policy_stn.encoder.", "policy_stn.gru.", "policy_stn.fc.", "global_CNN_fc.", "local_CNN_fc.", "classifier.", "local_CNN.layer"),
    rows=("global_CNN_fc.1.weight", "local_CNN_fc.1.weight"),
    architecture=_architecture,
    names=_names,
    policy=_policy,
    clip_format=ClipFormat(16, order="coarse_to_fine"),
    policy_names={
        "encoder.frame.": "policy_stn.encoder.", "encoder.gru.": "policy_stn.gru.", "actor.": "policy_stn.fc.0.", "critic.": ""
    },
    unused=("global_CNN.classifier.", "global_CNN.fc.", "local_CNN.fc."),
    interpolated=True,
)  # fmt: skip
SOMETHING_SOMETHING_V2 = Family(
    name="AdaFocusV2-Something-Something",
    signs=("policy_stn.0.", "policy_stn.4.", "policy_stn.10.", "global_CNN.base_model.", "local_CNN.base_model.", "global_CNN.new_"),
    rows=("global_CNN.new_fc.weight", "local_CNN.new_fc.weight"),
    architecture=lambda _: ARCHITECTURES["paper_v2_tsm"],
    names=_tsm_names,
    policy=_tsm_policy,
    clip_format=ClipFormat(12, glance_frames=8),
    policy_names={"encoder.frame.": "policy_stn.", "actor.": "policy_stn.10.", "critic.": ""},
    interpolated=True,
)
FAMILIES = {family.name: family for family in (ACTIVITYNET, SOMETHING_SOMETHING, ACTIVITYNET_V2, SOMETHING_SOMETHING_V2)}
"""Maps the values of ``family=`` to the families of released files."""
