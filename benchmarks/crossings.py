"""Counts where numbers come from tensors to the host: each time the host waits for all that a GPU was given before."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

METHODS = (
    Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__array__, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__,
)  # fmt: skip
OPERATORS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
RUNTIME = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
COPIES = ("Memcpy DtoH", "Memcpy HtoD (Pageable")
CHECK = "aten::_assert_async"  # whose name says that nobody waits for it on a GPU; on a CPU it reads its condition
_COUNTED = "counted"


def crossings(act: Callable[[], object]) -> dict[str, int]:
    """What ``act`` does that takes numbers from tensors to the host, and how often.

    Keys are methods of tensors as Python calls them (`numpy`, `cpu`, …), operators below them (`aten::nonzero`, as of an index by a
    mask), and on a GPU also the calls of its runtime that wait, and copies from the device or from memory that is not pinned. One
    crossing may show under several keys. On a CPU the first two kinds show where a GPU would be waited for.
    """
    methods, cuda = _Methods(), torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    _synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with profile(activities=activities) as profiler:
            with record_function(_COUNTED), methods:
                act()
            _synchronize()
    return dict(methods.counts + _events(list(profiler.events() or [])))


class _Methods(TorchFunctionMode):
    """Counts the calls of `METHODS` from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in METHODS:
            self.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def _events(events: list[FunctionEvent]) -> Counter[str]:
    """Operators and calls of the runtime within what is counted; and all copies of the profile, which run later than they are asked for."""
    counted = next(event.time_range for event in events if event.name == _COUNTED and event.device_type == DeviceType.CPU)
    if torch.cuda.is_available() and not any(event.name.startswith("cuda") for event in events):
        raise RuntimeError("the profiler records no calls of CUDA's runtime here, so that nothing can be counted")
    counts: Counter[str] = Counter()
    for event in events:
        within = counted.start <= event.time_range.start <= counted.end
        if (within and event.name in (*OPERATORS, *RUNTIME) and not _checks(event)) or event.name.startswith(COPIES):
            counts[event.name] += 1
    return counts


def _checks(event: FunctionEvent) -> bool:
    while (parent := event.cpu_parent) is not None:
        if parent.name.startswith(CHECK):
            return True
        event = parent
    return False


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
