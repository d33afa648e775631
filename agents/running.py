"""How the networks of a supervised stage are run: precision, memory layout, compilation, and together with other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agents.batches import Batch
from agents.config import SupervisedConfig
from classifiers import distributed
from classifiers.backbones import Backbone
from classifiers.execution import PRECISIONS
from classifiers.global_batch_norm import GlobalBatchNorm

Scores = Callable[[Batch], tuple[Tensor, Tensor]]


class Running:
    """Runs what a stage trains.

    Args:
        learning: networks that learn.
        frozen: others that are looked with.
        scores: a batch → scores (M, K) and labels (M,).
        config: precision, channels_last, compile.
        device: where the networks live.

    Attributes:
        look: ``scores``, as it has to be called within `epoch` and `part`.
    """

    def __init__(
        self, learning: Sequence[nn.Module], frozen: Sequence[nn.Module], scores: Scores, config: SupervisedConfig, device: torch.device
    ) -> None:
        self._networks, self._config = [*learning, *frozen], config
        self._module = _Module(learning, scores, device, config.precision)
        self._norms = GlobalBatchNorm()
        self.look: nn.Module = self._module

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
                # The last layer of the focuser has no part in stages 1 and 3.
                self.look = DistributedDataParallel(self._module, broadcast_buffers=False, find_unused_parameters=True)
                undo.callback(setattr, self, "look", self._module)
                undo.enter_context(self._norms)
            yield

    @contextmanager
    def part(self, *, last: bool, counts: bool) -> Iterator[None]:
        """Around forward and backward of a part of a step.

        Args:
            last: the processes bring their gradients together now.
            counts: this process's clips are some of the step's.
        """
        self._norms.counts = counts
        with ExitStack() as undo:
            if isinstance(self.look, DistributedDataParallel) and not last:
                undo.enter_context(self.look.no_sync())
            yield

    def _lay_out(self, form: torch.memory_format) -> None:
        for network in self._networks:
            network.to(memory_format=form)


class _Module(nn.Module):
    """What learns, and the scores that it learns from, as DistributedDataParallel wants them."""

    def __init__(self, learning: Sequence[nn.Module], scores: Scores, device: torch.device, precision: str) -> None:
        super().__init__()
        self.learning, self._scores = nn.ModuleList(learning), scores
        self._device, self._precision = device, precision

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, PRECISIONS[self._precision], enabled=self._precision != "float32"):
            scores, labels = self._scores(batch)
        return scores.float(), labels
