"""Communication between the processes that ``torchrun`` starts. In a single process, these functions do nothing.

The process group is created on first use, with gloo on CPUs and NCCL on GPUs.
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
"""Time limit for collective operations. It is long because the main process may train a policy while the others wait. (If a process dies,
torchrun ends the others.)"""


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def rank() -> int:
    """Return the rank of this process among all processes, starting at 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int:
    """Return the rank of this process among the processes of its machine, starting at 0.

    This rank is also the index of the process's GPU.
    """
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def is_main() -> bool:
    """Return whether this is the process that writes files and shows progress."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have called this function."""
    all_sum(torch.zeros(1))


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body in the main process first.

    The other processes run the body afterwards, so that they find the files that the main process wrote.
    """
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def broadcast_object(value: Value) -> Value:
    """Return the value of the main process in all processes. Values are pickled. The values of the other processes are ignored."""
    return gather_objects(value)[0]


def gather_objects(value: Value) -> list[Value]:
    """Gather one object from every process, and return the list, ordered by rank, in all processes."""
    if world_size() == 1:
        return [value]
    _join()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_sum(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes.

    The sum replaces ``values`` in place, and is bit-identical in all processes.
    """
    if world_size() > 1:
        _join()
        dist.all_reduce(values)
    return values


def all_gather_counts(count: int) -> list[int]:
    """Gather one count from every process, and return all counts, ordered by rank."""
    return [int(value) for value in all_sum(torch.tensor([count if rank() == other else 0 for other in range(world_size())]))]


def shard(items: NDArray[Any]) -> list[NDArray[Any]]:
    """Split items into one shard per process. The shards have nearly equal sizes and are ordered by rank."""
    return np.array_split(items, world_size())


def wrap_ddp(module: nn.Module, *, find_unused_parameters: bool) -> DistributedDataParallel:
    """Wrap a module so that gradients are averaged over all processes in the backward pass.

    Buffers are not synchronized; `agents.supervised.stage_model` handles buffers.

    Args:
        module: The module, with the same weights in every process.
        find_unused_parameters: Whether some parameters receive no gradient.
    """
    _join()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # PyTorch 2.8 lacks the new name
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused_parameters)


def _join() -> None:
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
