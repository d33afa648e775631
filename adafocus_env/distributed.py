"""Several processes that work as one, started by ``torchrun``; a single process needs none of this.

The processes find each other when one of them first needs the others: by gloo between CPUs, by NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")
PATIENCE = timedelta(days=30)
"""How long a process waits for the others: one may train a policy meanwhile. When one dies, torchrun ends them all at once."""


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int:
    """Return the number of this process on this machine, from 0: also that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def is_main() -> bool:
    """Return whether this is the process that owns files and display."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    all_sum(torch.zeros(1))


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the body first; the others then find what it has made."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast_object(value: Value) -> Value:
    """Return the main process's value in all processes; it is pickled."""
    if world_size() == 1:
        return value
    _join()
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value: Value) -> list[Value]:
    """Return the values of all processes, in the order of their numbers, in all of them."""
    if world_size() == 1:
        return [value]
    _join()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_sum(values: Tensor) -> Tensor:
    """Sum ``values`` over all processes, in place; every process has the same bits."""
    if world_size() > 1:
        _join()
        dist.all_reduce(values)
    return values


def counts(count: int) -> list[int]:
    """Return the numbers of all processes, in their order."""
    return [int(each) for each in all_sum(torch.tensor([count if rank() == other else 0 for other in range(world_size())]))]


def shares(items: NDArray[Any]) -> list[NDArray[Any]]:
    """Split the items among the processes in their order, as equally as possible."""
    return np.array_split(items, world_size())


def together(module: nn.Module, *, partly: bool) -> DistributedDataParallel:
    """Wrap the module for training in all processes: after a backward pass every process has the mean of their gradients.

    Buffers are left to `agents.supervised.global_batch_norm`.

    Args:
        module: with the same weights in all processes.
        partly: some of its parameters are not used.
    """
    _join()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # PyTorch 2.8 does not know the new name yet
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=partly)


def _join() -> None:
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
