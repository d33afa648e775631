"""Batch norm in a network that alternates between acting and learning: which statistics normalise, and when they are updated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOMENTUM = 0.1
"""Weight of a new batch in the running statistics; PyTorch's, and the released code's."""


def norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms in a module."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Within it batch norms normalise with the statistics of the batch, as in training mode, but leave the running ones unchanged."""
    before = [(norm, norm.training) for norm in norms(module)]
    for norm, _ in before:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, training in before:
            norm.training, norm.track_running_stats = training, True


@torch.no_grad()
def update_running_stats(module: nn.Module, inputs: Tensor) -> None:
    """Update the running statistics of the batch norms with a batch; no weight changes.

    For the first `1 / MOMENTUM` batches the running statistics are the mean over all of them: their arbitrary initial values have no
    effect.

    Args:
        module: ends in its current mode.
        inputs: a batch for it, of at least two samples.
    """
    before = [(norm, norm.training) for norm in norms(module)]
    for norm, _ in before:
        assert norm.num_batches_tracked is not None
        norm.training, norm.momentum = True, max(MOMENTUM, 1 / (int(norm.num_batches_tracked) + 1))
    try:
        module(inputs)
    finally:
        for norm, training in before:
            norm.training, norm.momentum = training, MOMENTUM
