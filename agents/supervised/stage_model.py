"""How the networks of a supervised stage are run: precision, memory layout, compilation, and together with other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafocus_env import distributed
from agents.config.settings import SupervisedConfig
from agents.supervised.batches import Batch
from agents.supervised.global_batch_norm import GlobalBatchNorm
from classifiers.backbones.backbone import Backbone
from classifiers.optimize import PRECISIONS

Scores = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """Parameters that learn, and how fast.

    Attributes:
        module: they are its own.
        learning_rate: the highest one.
        partly: some of them have no part in the scores.
    """

    module: nn.Module
    learning_rate: float
    partly: bool = False


class Running:
    """Runs what a stage trains.

    Args:
        learning: what learns.
        frozen: others that are looked with.
        scores: a batch → scores (M, K) and labels (M,).
        config: precision, channels_last, compile.
        device: where the networks live.

    Attributes:
        look: ``scores``, as it has to be called within `epoch` and `part`.
    """

    def __init__(
        self, learning: Sequence[Part], frozen: Sequence[nn.Module], scores: Scores, config: SupervisedConfig, device: torch.device
    ) -> None:
        modules = [part.module for part in learning]
        self._networks, self._config, self._partly = [*modules, *frozen], config, any(part.partly for part in learning)
        self._module = _Module(modules, scores, device, config.precision)
        self.look: Any = self._module

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Within it the networks, which are in training mode already, are laid out, compiled and tied to the other processes'."""
        backbones = [network for network in self._networks if isinstance(network, Backbone)]
        with ExitStack() as undo:
            if self._config.channels_last:
                self._lay_out(torch.channels_last)
                undo.callback(self._lay_out, torch.contiguous_format)
            if self._config.compile:
                for network in backbones:
                    network.compile()
                    undo.callback(setattr, network, "_compiled_call_impl", None)
            if distributed.world_size() > 1:
                self.look = distributed.together(self._module, partly=self._partly)
                undo.callback(setattr, self, "look", self._module)
            yield

    @contextmanager
    def part(self, *, last: bool, counts: bool) -> Iterator[None]:
        """Goes around forward and backward of a part of a step.

        Args:
            last: the processes bring their gradients together now.
            counts: this process's clips are some of the step's.
        """
        self._module.norms.counts = counts
        with nullcontext() if last or self.look is self._module else self.look.no_sync():
            yield

    def _lay_out(self, form: torch.memory_format) -> None:
        for network in self._networks:
            network.to(memory_format=form)


class _Module(nn.Module):
    """What learns, and the scores that it learns from, as DistributedDataParallel wants them."""

    def __init__(self, learning: Sequence[nn.Module], scores: Scores, device: torch.device, precision: str) -> None:
        super().__init__()
        self.learning, self._scores, self.norms = nn.ModuleList(learning), scores, GlobalBatchNorm()
        self._device, self._precision = device, precision

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mixed = torch.autocast(self._device.type, PRECISIONS[self._precision], enabled=self._precision != "float32")
        with mixed, self.norms if distributed.world_size() > 1 else nullcontext():
            scores, labels = self._scores(batch)
        return scores.float(), labels
