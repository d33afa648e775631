"""Batch norm in a network that acts and learns in turns: whose statistics it normalises with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOMENTUM = 0.1
"""Weight of a new batch in the running statistics; PyTorch's, and the released code's."""


def norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms in a module."""
    return [each for each in module.modules() if isinstance(each, _BatchNorm)]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Within it batch norms use the statistics of their batch, as in training mode, but keep the running ones as they are."""
    found = norms(module)
    before = [each.training for each in found]
    for each in found:
        each.training, each.track_running_stats = True, False
    try:
        yield
    finally:
        for each, training in zip(found, before, strict=True):
            each.training, each.track_running_stats = training, True


@torch.no_grad()
def update_running_stats(module: nn.Module, inputs: Tensor) -> None:
    """Moves the running statistics of the batch norms towards those of a batch; no weight changes.

    Until `1 / MOMENTUM` batches have been taken in, the running statistics are the mean over all of them: nothing is left of the
    arbitrary values that they begin with.

    Args:
        module: ends in the mode that it was in.
        inputs: a batch for it, of at least two samples.
    """
    found = norms(module)
    before = [each.training for each in found]
    for each in found:
        assert each.num_batches_tracked is not None
        each.training, each.momentum = True, max(MOMENTUM, 1 / (int(each.num_batches_tracked) + 1))
    try:
        module(inputs)
    finally:
        for each, training in zip(found, before, strict=True):
            each.training, each.momentum = training, MOMENTUM
