"""What a supervised stage trains, and how it runs: precision, memory layout, compilation, data parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adafocus_env import distributed
from agents.config.settings import SupervisedConfig
from agents.supervised.batches import Batch
from agents.supervised.global_batch_norm import GlobalBatchNorm
from classifiers.backbones.backbone import Backbone
from classifiers.errors import InputError
from classifiers.optimize import PRECISIONS

Scores = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trainable:
    """A network that is trained.

    Attributes:
        module: The network.
        learning_rate: Its highest learning rate.
        find_unused: Whether some of its parameters receive no gradient.
    """

    module: nn.Module
    learning_rate: float
    find_unused: bool = False


class StageModel(nn.Module):
    """One forward pass from a batch to its scores, as DistributedDataParallel expects it.

    Args:
        trainables: The networks that are trained.
        frozen: Modules used in the forward pass but not trained.
        scores: Maps a batch to scores (M, K) and labels (M,).
        config: Precision, channels_last, compile and dropout.
        device: Where the networks are.

    Attributes:
        batch_norm: The batch norm over all processes.
    """

    def __init__(
        self, trainables: Sequence[Trainable], frozen: Sequence[nn.Module], scores: Scores, config: SupervisedConfig, device: torch.device
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleList(trainable.module for trainable in trainables)
        self.batch_norm = GlobalBatchNorm()
        self._networks = [*self.trained, *frozen]
        self._find_unused = any(trainable.find_unused for trainable in trainables)
        self._scores, self._config, self._device = scores, config, device

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 scores (M, K) and labels (M,)."""
        precision = self._config.precision
        autocast = torch.autocast(self._device.type, PRECISIONS[precision], enabled=precision != "float32")
        with autocast, self.batch_norm if distributed.world_size() > 1 else nullcontext():
            scores, labels = self._scores(batch)
        return scores.float(), labels

    @contextmanager
    def epoch(self) -> Iterator[nn.Module]:
        """Yield the module to call while the networks are in training mode, laid out, compiled and wrapped for data parallelism.

        Afterwards they are frozen, and everything else is as before.

        Raises:
            InputError: dropout is set and the trained networks have none.
        """
        with ExitStack() as undo:
            self._set_dropout(undo)
            self.trained.train().requires_grad_(True)
            undo.callback(lambda: self.trained.eval().requires_grad_(False))
            if self._config.channels_last:
                self._set_memory_format(torch.channels_last)
                undo.callback(self._set_memory_format, torch.contiguous_format)
            for network in self._networks if self._config.compile else ():
                if isinstance(network, Backbone):
                    network.compile()
                    undo.callback(setattr, network, "_compiled_call_impl", None)
            yield distributed.wrap_ddp(self, find_unused_parameters=self._find_unused) if distributed.world_size() > 1 else self

    def _set_dropout(self, undo: ExitStack) -> None:
        if (dropout := self._config.dropout) is None:
            return
        layers = [module for module in self.trained.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise InputError(f"dropout={dropout} has no effect: the trained networks have no dropout; leave it out (dropout=null)")
        for layer in layers:
            undo.callback(setattr, layer, "p", layer.p)
            layer.p = dropout

    def _set_memory_format(self, memory_format: torch.memory_format) -> None:
        for network in self._networks:
            network.to(memory_format=memory_format)
