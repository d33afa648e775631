"""Several processes that work as one, as ``torchrun`` starts them. In a single process the functions here do nothing.

The processes find each other when one of them first needs the others: by gloo between CPUs, by NCCL between GPUs.
"""

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
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def rank() -> int:
    """The number of this one among all, from 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int:
    """The number of this one among those on this machine, from 0: also that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def is_main() -> bool:
    """Whether this is the process that owns files and display."""
    return rank() == 0


def barrier() -> None:
    """Waits until all are here."""
    all_sum(torch.zeros(1))


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the body first; the others then find what it has made."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast_object(value: Value) -> Value:
    """What the main process gives; the others' values do not matter. All are pickled on the way."""
    return gather_objects(value)[0]


def gather_objects(value: Value) -> list[Value]:
    """Return the objects of all processes, in the order of their ranks; every process gets them."""
    if world_size() == 1:
        return [value]
    _join()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_sum(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, in place; the same bits for each of them."""
    if world_size() > 1:
        _join()
        dist.all_reduce(values)
    return values


def all_gather_counts(count: int) -> list[int]:
    """Return the count of every process, by rank."""
    return [int(value) for value in all_sum(torch.tensor([count if rank() == other else 0 for other in range(world_size())]))]


def shard(items: NDArray[Any]) -> list[NDArray[Any]]:
    """Split items into one shard of nearly equal size per process, by rank."""
    return np.array_split(items, world_size())


def wrap_ddp(module: nn.Module, *, find_unused_parameters: bool) -> DistributedDataParallel:
    """Wrap a module so that every process has the mean of all gradients after a backward pass.

    Buffers are left to `agents.supervised.stage_model`.

    Args:
        module: Has the same weights in every process.
        find_unused_parameters: Whether some parameters receive no gradient.
    """
    _join()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # PyTorch 2.8 does not know the new name yet
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused_parameters)


def _join() -> None:
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
