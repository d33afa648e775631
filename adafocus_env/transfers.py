"""Copies between arrays on the host and tensors on the networks' device: asynchronous to the device, synchronous from it."""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values: TypeAlias = NDArray[Any] | Tensor


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Return the numbers as a tensor on ``device``; on a CPU the tensor and a contiguous array share their memory.

    Copies to a GPU use pinned memory: a copy from other memory waits until the GPU has finished its earlier work.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_array(values: Values) -> NDArray[Any]:
    """Return the numbers as an array; the host waits for a GPU that still computes them."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def rows_of(values: Values, rows: NDArray[np.int64]) -> Values:
    """Return the given rows of an array or a tensor, as a new one."""
    return values.index_select(0, to_device(rows, values.device)) if isinstance(values, Tensor) else values[rows]


def with_rows(values: Values, rows: NDArray[np.int64], new: Any) -> Any:
    """Return ``values`` with the given rows replaced, as a new array or tensor; ``new`` is of the same kind."""
    if isinstance(values, Tensor):
        return values.index_copy(0, to_device(rows, values.device), new)
    values = values.copy()
    values[rows] = new
    return values
