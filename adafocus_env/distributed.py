"""Communication between the processes that ``torchrun`` starts. In a single process, these functions do nothing.

The process group is created on first use, with gloo on CPUs and NCCL on GPUs.
"""

import atexit
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from classifiers.errors import InputError, refuse_if, shortened

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
"""Time limit for collective operations. It is long because the main process validates and decodes while the others wait. (If a process
dies, the others are informed at once, and torchrun ends them.)"""


class ProcessLostError(InputError):
    """Raised in a process that cannot communicate with the others, usually because one of them has ended."""


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
    values: list[Any] = [None] * world_size()
    with _connection():
        dist.all_gather_object(values, value)
    return values


def all_sum(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes.

    The sum replaces ``values`` in place, and is bit-identical in all processes.
    """
    if world_size() > 1:
        with _connection():
            dist.all_reduce(values)
    return values


def any_process(value: bool) -> bool:
    """Return whether ``value`` is true in at least one process."""
    return bool(all_sum(torch.tensor([value], dtype=torch.int64)).item())


def check_equal(what: str, values: Mapping[str, object], hint: str) -> None:
    """Check that ``values`` are equal in all processes.

    Raises:
        InputError: in all processes, if a value differs. The message names ``what`` must be equal, the processes, the keys and both values,
            and ends with ``hint``.
    """
    first, *others = gather_objects(dict(values))
    differing = [
        f"  {key}: {first.get(key)!r} in process 0, {other.get(key)!r} in process {number}"
        for number, other in enumerate(others, 1) for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)
    ]  # fmt: skip
    refuse_if(differing, "\n".join([f"all processes must have the same {what}; {hint}:", *shortened(differing, more="  and {} more")]))


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


@contextmanager
def _connection() -> Iterator[None]:
    """Join the process group, and run a collective operation.

    Raises:
        ProcessLostError: If the operation fails, because a process has ended or has not answered for `PATIENCE`.
    """
    _join()
    try:
        yield
    except RuntimeError as problem:
        raise ProcessLostError(
            f"another process has ended or does not answer, and this one cannot go on alone ({str(problem).splitlines()[0]}); see the "
            "message of the process that failed first. The same command resumes"
        ) from problem


def _join() -> None:
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)


class GlobalBatchNorm(TorchFunctionMode):
    """A mode in which batch norms in training mode use and update statistics over all processes, on CPUs and GPUs.

    The mode replaces the function `torch.nn.functional.batch_norm`. Networks, weights and parameter names therefore stay the same, and the
    mode also applies to custom layers. (`torch.nn.SyncBatchNorm` works only on GPUs.)

    Attributes:
        has_samples: Whether the statistics include the images of this process. If ``has_samples`` is False, the images of this process are
            nevertheless normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_samples = True

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        call = self._batch_norm if func is F.batch_norm else func
        return call(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        inputs: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
        over, channels = [0, *range(2, inputs.ndim)], (1, -1, *[1] * (inputs.ndim - 2))
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums: Tensor = _AllSum.apply(torch.cat([values.sum(over), count]) * self.has_samples)
        count = sums[-1:].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(channels)  # E[x²] − E[x]² would lose precision
        var: Tensor = _AllSum.apply(centred.square().sum(over) * self.has_samples) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * (count / (count - 1)), momentum)
        scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
        outputs = centred * scale.view(channels)
        return (outputs if bias is None else outputs + bias.view(channels)).to(inputs.dtype)


class _AllSum(torch.autograd.Function):
    """The sum of a tensor over all processes. The gradient of this sum is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_sum(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient.clone())
