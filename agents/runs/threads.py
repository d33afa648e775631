"""How many threads PyTorch uses on a CPU: one for small networks."""

import os
from collections.abc import Sequence

import torch

from classifiers.classifier import Architecture, Classifier
from classifiers.flops import classifier_flops

SMALL = 20_000_000
"""Multiply-adds of a glance and a patch below which networks are small: the demo networks take 1.5 million, the paper's a billion."""


def limit_threads(classifier: Classifier | Architecture, classes: Sequence[str], device: torch.device) -> None:
    """Use one thread where the networks are small and run on a CPU, unless the environment variable OMP_NUM_THREADS is set.

    Their operations take microseconds. More threads spend that time waiting for each other in a busy loop, which gains little on an
    idle machine, and multiplies the time of two runs that share its cores. Banks use the idle cores: see `adafocus_env.features.live`.

    Args:
        classifier: The networks that run or are trained.
        classes: Class names for an architecture that is not built yet.
        device: Where it runs.
    """
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    if isinstance(classifier, Architecture):
        with torch.device("meta"):
            empty = Classifier(classifier, classes)
        classifier = empty.to_empty(device="cpu")  # costs do not depend on weights, and random ones take seconds
    cost = classifier_flops(classifier)
    if cost.glance + cost.focus < SMALL:
        torch.set_num_threads(1)
