"""Count the transfers from tensors to the host on a CPU. (On a GPU, each transfer would wait until earlier work is finished.)"""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

METHODS = (
    Tensor.numpy, Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__array__, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__,
)  # fmt: skip
OPERATORS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
CHECK = "aten::_assert_async"  # asynchronous on a GPU; on a CPU it reads its condition


def crossings(act: Callable[[], object]) -> dict[str, int]:
    """Return the operations of ``act`` that transfer numbers from tensors to the host, with their counts.

    Keys are methods of tensors called from Python (`numpy`, `cpu`, …), and operators below them (`aten::nonzero`, as in an index by a
    mask). A transfer may appear under several keys.
    """
    methods = _Methods()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the profiler
        with profile(activities=[ProfilerActivity.CPU]) as profiler, methods:
            act()
    return dict(methods.counts + Counter(event.name for event in profiler.events() or () if event.name in OPERATORS and not _checks(event)))


class _Methods(TorchFunctionMode):
    """A mode that counts calls of `METHODS` from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in METHODS:
            self.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def _checks(event: FunctionEvent) -> bool:
    while (parent := event.cpu_parent) is not None:
        if parent.name.startswith(CHECK):
            return True
        event = parent
    return False
