"""Counts transfers from tensors to the host: for every one the host waits until the GPU has finished all earlier work."""

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
CHECK = "aten::_assert_async"  # asynchronous on a GPU; on a CPU it reads its condition
_COUNTED = "counted"


def crossings(act: Callable[[], object]) -> dict[str, int]:
    """Return the operations of ``act`` that transfer numbers from tensors to the host, with their counts.

    Keys are methods of tensors called from Python (`numpy`, `cpu`, …), operators below them (`aten::nonzero`, as in an index by a
    mask), and on a GPU also runtime calls that wait, and copies from the device or from memory that is not pinned. A transfer may
    appear under several keys. On a CPU the first two kinds show where the host would wait for a GPU.
    """
    methods, cuda = _Methods(), torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    _synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the profiler
        with profile(activities=activities) as profiler:
            with record_function(_COUNTED), methods:
                act()
            _synchronize()
    return dict(methods.counts + _events(list(profiler.events() or [])))


class _Methods(TorchFunctionMode):
    """Counts calls of `METHODS` from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in METHODS:
            self.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def _events(events: list[FunctionEvent]) -> Counter[str]:
    """Count operators and runtime calls within the act, and all copies of the profile, which run asynchronously."""
    counted = next(event.time_range for event in events if event.name == _COUNTED and event.device_type == DeviceType.CPU)
    if torch.cuda.is_available() and not any(event.name.startswith("cuda") for event in events):
        raise RuntimeError("the profiler records no CUDA runtime calls here; check that CUPTI is installed")
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
