"""The number of CPU threads that PyTorch uses. For small networks, PyTorch uses one thread."""

import os
from collections.abc import Sequence

import torch

from classifiers.classifier import Architecture, Classifier
from classifiers.flops import classifier_flops

SMALL = 20_000_000
"""Networks are small if a glance and a patch need fewer multiply-adds than this.

The networks of the demo need 1.5 million, and those of the paper need a billion.
"""


def limit_threads(classifier: Classifier | Architecture, classes: Sequence[str], device: torch.device) -> None:
    """Use one thread if the networks are small and run on a CPU, unless the environment variable OMP_NUM_THREADS is set.

    Operations of small networks take microseconds. If PyTorch uses several threads for such short operations, the threads wait for each
    other in a busy loop. On an idle machine, more threads save little time. If two runs share the cores of a machine, more threads make
    both runs several times slower. Banks use the idle cores; see `adafocus_env.features.live`.

    Args:
        classifier: The networks that run or are trained.
        classes: Class names, which are needed if ``classifier`` is an architecture.
        device: Device of the networks.
    """
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    if isinstance(classifier, Architecture):
        with torch.device("meta"):
            empty = Classifier(classifier, classes)
        classifier = empty.to_empty(device="cpu")  # costs do not depend on weights, and initialisation takes seconds
    cost = classifier_flops(classifier)
    if cost.glance + cost.focus < SMALL:
        torch.set_num_threads(1)
