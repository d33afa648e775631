"""Copy numbers between arrays on the host and tensors on the networks' device. Copies to the device are asynchronous."""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values: TypeAlias = NDArray[Any] | Tensor


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Return the numbers as a tensor on ``device``. On a CPU, the tensor shares the memory of a contiguous array.

    Copies to a GPU use pinned memory, because a copy from other memory would block until the GPU has finished its earlier work.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_array(values: Values) -> NDArray[Any]:
    """Return the numbers as an array. If a GPU is still computing the numbers, the host waits."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def rows_of(values: Values, rows: NDArray[np.int64]) -> Values:
    """Return a copy of the given rows of an array or a tensor."""
    return values.index_select(0, to_device(rows, values.device)) if isinstance(values, Tensor) else values[rows]


def with_rows(values: Values, rows: NDArray[np.int64], new: Any) -> Any:
    """Return a copy of the array or tensor ``values`` with the given rows replaced by ``new``, which has the same type."""
    if isinstance(values, Tensor):
        return values.index_copy(0, to_device(rows, values.device), new)
    values = values.copy()
    values[rows] = new
    return values
