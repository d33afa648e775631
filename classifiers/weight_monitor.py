"""Frozen networks: refused where they still train, and watched for changes."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from classifiers.errors import InputError


def check_frozen(network: nn.Module) -> None:
    """Checks that no part of ``network`` is in training mode, in which what it sees would depend on the batch and on chance.

    Raises:
        InputError: one is.
    """
    if any(module.training for module in network.modules()):
        raise InputError("the classifier is in training mode; call classifier.freeze() first, so that its features stay the same")


class WeightMonitor:
    """Notices cheaply that a network may have changed: a hint to look again.

    It looks at the identity, the memory and PyTorch's count of writes of every parameter and buffer, and at the identity of every
    module. That takes about 0.1 microseconds a tensor, since the tables that hold them are found only once. What escapes it is what
    escapes PyTorch's own count: a write through ``tensor.data`` (``weight.data.mul_(2)``) or through a NumPy view, a step of a fused
    optimiser; and settings that are no tensors, such as the ``eps`` of a batch norm.

    Args:
        network: what to watch.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._remember()

    def changed(self) -> bool:
        """Whether anything was touched since this was last asked."""
        held = self._entries()
        if len(held) == len(self._held) and all(map(is_, held, self._held)) and self._writes() == self._seen:
            return False
        self._remember()
        return True

    def _remember(self) -> None:
        tables = [(module._modules, module._parameters, module._buffers) for module in self._network.modules()]
        self._tables: list[dict[str, Any]] = [table for three in tables for table in three if table]
        self._held = self._entries()  # kept alive: nothing new can take their place in memory unnoticed
        self._tensors = [each for each in self._held if isinstance(each, Tensor)]
        self._seen = self._writes()

    def _entries(self) -> list[object]:
        return list(chain.from_iterable(map(dict[str, Any].values, self._tables)))

    def _writes(self) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, self._tensors)), list(map(_VERSION, self._tensors))


_VERSION = attrgetter("_version")
