"""Checks of frozen networks: not in training mode, no changed weights."""

from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from classifiers.errors import InputError


def check_frozen(network: nn.Module) -> None:
    """Check that no module of ``network`` is in training mode, in which features depend on the batch and on random numbers.

    Raises:
        InputError: One is.
    """
    if any(module.training for module in network.modules()):
        raise InputError("the classifier is in training mode; call classifier.freeze() first, so that its features stay the same")


class WeightMonitor:
    """Detects cheaply that the weights of a network may have changed.

    It compares identity, memory address and PyTorch's version counter of every parameter and buffer, and the identity of every module,
    in about 0.1 microseconds per tensor. It does not detect what PyTorch does not count: writes through ``tensor.data``
    (``weight.data.mul_(2)``) or a NumPy view, a step of a fused optimizer, and settings other than tensors, such as the ``eps`` of a
    batch norm.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._record()

    def changed(self) -> bool:
        """Return whether anything changed since the last call."""
        held = self._entries()
        if len(held) == len(self._held) and all(map(is_, held, self._held)) and self._writes() == self._seen:
            return False
        self._record()
        return True

    def _record(self) -> None:
        tables = [(module._modules, module._parameters, module._buffers) for module in self._network.modules()]
        self._tables: list[dict[str, Any]] = [table for three in tables for table in three if table]
        self._held = self._entries()  # references, so that no new tensor can reuse their memory
        self._tensors = [entry for entry in self._held if isinstance(entry, Tensor)]
        self._seen = self._writes()

    def _entries(self) -> list[object]:
        return list(chain.from_iterable(map(dict[str, Any].values, self._tables)))

    def _writes(self) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, self._tensors)), list(map(_VERSION, self._tensors))


_VERSION = attrgetter("_version")
