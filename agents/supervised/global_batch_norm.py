"""Batch norm over the batch of all processes that train one network: its statistics are those of a single process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adafocus_env.distributed import all_sum


class GlobalBatchNorm(TorchFunctionMode):
    """Within this mode every batch norm in training mode uses and updates the statistics over all processes, on CPUs and GPUs.

    It replaces `torch.nn.functional.batch_norm`, so that networks, their weights and parameter names stay the same, and so that custom
    layers are covered too. (`torch.nn.SyncBatchNorm` works on GPUs alone.)

    Attributes:
        has_samples: Whether this process's images count; if not, they are normalised by the statistics of the other processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_samples = True

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
        outputs, mean, var, count = _Normalise.apply(inputs, weight, bias, eps, self.has_samples)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * (count / (count - 1)), momentum)
        return outputs


class _Normalise(torch.autograd.Function):
    """Inputs (N, C, …) → normalised ones, and mean (C,), variance (C,) and number (1,) of the values of each channel."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, has_samples: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, over = inputs.detach().float(), _all_but_channels(inputs)
        count = inputs.new_full((1,), inputs.numel() / inputs.shape[1], dtype=torch.float32)
        sums = all_sum(torch.cat([values.sum(over), count]) * has_samples)
        mean, count = sums[:-1] / sums[-1:], sums[-1:]
        centred = values - _per_channel(mean, values)  # a difference of squares would cancel
        var = all_sum(centred.square().sum(over) * has_samples) / count
        ctx.save_for_backward(inputs, weight, mean, (var + eps).rsqrt(), count)
        ctx.has_samples = has_samples
        outputs = F.batch_norm(inputs, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, count)
        return outputs, mean, var, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale, count = ctx.saved_tensors
        over, slope = _all_but_channels(inputs), gradient.float()
        normed = (inputs.float() - _per_channel(mean, inputs)) * _per_channel(scale, inputs)
        sums = torch.stack([slope.sum(over), (slope * normed).sum(over)])
        of_bias, of_weight = sums.clone()
        sums = all_sum(sums) / count  # in every process: the others wait for it
        if ctx.has_samples:
            slope = slope - _per_channel(sums[0], inputs) - normed * _per_channel(sums[1], inputs)
        slope = slope * _per_channel(scale if weight is None else scale * weight, inputs)
        return slope.to(inputs.dtype), None if weight is None else of_weight, None if weight is None else of_bias, None, None


def _all_but_channels(values: Tensor) -> list[int]:
    return [0, *range(2, values.ndim)]


def _per_channel(channels: Tensor, values: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over ``values`` (N, C, …)."""
    return channels.view(1, -1, *[1] * (values.ndim - 2))
