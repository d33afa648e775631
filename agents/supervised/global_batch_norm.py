"""Batch norm over the batch of all processes, while they train one network: the statistics are those that one process would see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adafocus_env.distributed import all_sum


class GlobalBatchNorm(TorchFunctionMode):
    """Within it every batch norm in training mode uses, and learns, the statistics over all processes, on CPUs and GPUs.

    It takes the place of `torch.nn.functional.batch_norm`, so that networks, their weights and the names of these stay as they are, and
    so that layers with a batch norm of their own making are reached too. (`torch.nn.SyncBatchNorm` works on GPUs alone.)

    Attributes:
        counts: whether this process's images count; where they do not, they are normalised by the others' statistics.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = True

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

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
        outputs, mean, var, count = _Normalise.apply(inputs, weight, bias, eps, self.counts)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * (count / (count - 1)), momentum)
        return outputs


class _Normalise(torch.autograd.Function):
    """Inputs (N, C, …) → normalised ones, and mean (C,), variance (C,) and number (1,) of the values of each channel."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, over = inputs.detach().float(), _all_but_channels(inputs)
        number = inputs.new_full((1,), inputs.numel() / inputs.shape[1], dtype=torch.float32)
        sums = all_sum(torch.cat([values.sum(over), number]) * counts)
        mean, number = sums[:-1] / sums[-1:], sums[-1:]
        var = all_sum((values - _along(mean, values)).square().sum(over) * counts) / number  # around the mean: squares alone would cancel
        ctx.save_for_backward(inputs, weight, mean, (var + eps).rsqrt(), number)
        ctx.counts = counts
        outputs = F.batch_norm(inputs, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, number)
        return outputs, mean, var, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale, number = ctx.saved_tensors
        over, slope = _all_but_channels(inputs), gradient.float()
        normed = (inputs.float() - _along(mean, inputs)) * _along(scale, inputs)
        sums = torch.stack([slope.sum(over), (slope * normed).sum(over)])
        of_bias, of_weight = sums.clone()
        if ctx.counts:
            sums = all_sum(sums) / number
            slope = slope - _along(sums[0], inputs) - normed * _along(sums[1], inputs)
        else:
            all_sum(sums)  # the others wait for it; these values had no part in mean and variance
        slope = slope * _along(scale if weight is None else scale * weight, inputs)
        return slope.to(inputs.dtype), None if weight is None else of_weight, None if weight is None else of_bias, None, None


def _all_but_channels(values: Tensor) -> list[int]:
    return [0, *range(2, values.ndim)]


def _along(each: Tensor, values: Tensor) -> Tensor:
    """One number a channel, so that it goes with ``values``."""
    return each.view(1, -1, *[1] * (values.ndim - 2))
