"""One step of a supervised stage: the batch of clips, the trained networks and their execution.

In each step, all processes sample the same clips, but each process loads only its share of these clips.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource
from agents.config.settings import EndToEndConfig, SupervisedConfig
from classifiers.backbones.backbone import Backbone
from classifiers.errors import refuse_if
from classifiers.optimize import PRECISIONS


@dataclass(frozen=True)
class Batch:
    """The clips of a step that one process loads, or a microbatch of these clips. Each clip has a separate crop and flip.

    Attributes:
        frames: (B, T, 3, H, W) uint8 on the device, the focuser's frames.
        glance_frames: (B, g, 3, H, W) uint8 on the device, the glancer's frames with the same crops. If both networks see the same frames,
            ``glance_frames`` is the tensor ``frames``.
        labels: (B,) int64 on the device.
        clips: (B,), indices of the clips. A process that has no clips in this step has no indices, and runs a dummy batch of one clip with
            weight zero.
        first: Position of the first clip of this batch among all clips of the step.
        total: Number of clips of the step in all processes together.
        rng: Random state for further samples; see `sample`.
    """

    frames: Tensor
    glance_frames: Tensor
    labels: Tensor
    clips: NDArray[np.int64]
    first: int
    total: int
    rng: np.random.Generator

    def sample(self, make: Callable[[np.random.Generator, int], NDArray[Any]]) -> NDArray[Any]:
        """Call ``make(rng, total)``, which samples for all clips of the step, and return the rows (B, …) of the clips in this batch."""
        return make(self.rng, self.total)[self.first : self.first + len(self.frames)]

    def split(self, microbatches: int) -> "list[Batch]":
        """Return microbatches of nearly equal size."""
        rows = np.array_split(np.arange(len(self.clips)), microbatches)
        return [self] if microbatches == 1 else [self._rows(int(each[0]), int(each[-1]) + 1) for each in rows]

    def _rows(self, start: int, stop: int) -> "Batch":
        frames = self.frames[start:stop]
        glance_frames = frames if self.glance_frames is self.frames else self.glance_frames[start:stop]
        return replace(
            self, frames=frames, glance_frames=glance_frames, labels=self.labels[start:stop], clips=self.clips[start:stop],
            first=self.first + start,
        )  # fmt: skip


def load_batch(clips: ClipSource, indices: NDArray[np.int64], rng: np.random.Generator, device: torch.device) -> tuple[Batch, list[int]]:
    """Load the clips of a step that belong to this process, with new crops and flips.

    In every process, the state of ``rng`` advances as if this process loaded all clips. Videos that cannot be read are left out.

    Args:
        clips: The training clips.
        indices: (N,), indices of the clips of the step, the same in every process.
        rng: Random state of the epoch.
        device: Device of the batch.

    Returns:
        The batch, and a list with the number of clips in each process.
    """
    shards, rank = distributed.shard(indices), distributed.rank()
    readable = clips.readable_clips(shards[rank])
    counts = distributed.all_gather_counts(len(readable))
    if sum(counts) < len(indices):  # so that no process tries to read these clips again
        for failures in distributed.gather_objects(clips.failures):
            clips.leave_out(failures)
    for shard in shards[:rank]:
        clips.skip_rng(shard, rng)
    loaded = [clips.resampled(int(clip), rng) for clip in readable] or [_black_frames(clips)]
    for shard in shards[rank + 1 :]:
        clips.skip_rng(shard, rng)
    frames = torch.stack([frames for frames, _ in loaded]).to(device, non_blocking=True)
    separate = torch.stack([glance_frames for _, glance_frames in loaded]) if clips.settings.glance_frames else None
    glance_frames = frames if separate is None else separate.to(device, non_blocking=True)
    labels = torch.from_numpy(clips.labels[readable] if len(readable) else np.zeros(1, np.int64)).to(device)
    first = sum(counts[:rank]) if len(readable) else 0
    return Batch(frames, glance_frames, labels, readable, first, sum(counts), rng), counts


def _black_frames(clips: ClipSource) -> tuple[Tensor, Tensor]:
    lengths = clips.num_frames, clips.settings.num_glance_frames
    frames, glance_frames = (torch.zeros(length, 3, clips.size, clips.size, dtype=torch.uint8) for length in lengths)
    return frames, glance_frames


Scores = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trainable:
    """A network to train.

    Attributes:
        module: The network.
        learning_rate: The highest learning rate of the schedule.
        find_unused: Whether some parameters get no gradient.
    """

    module: nn.Module
    learning_rate: float
    find_unused: bool = False


class StageModel(nn.Module):
    """A module whose forward pass maps a batch to its scores. DistributedDataParallel needs such a module.

    Args:
        trainables: The networks that are trained.
        frozen: Modules that are used in the forward pass but not trained.
        scores: Function that takes a batch and returns scores and labels (M,). The scores are (M, K), or (R, M, K) for R outputs.
        config: Settings, of which precision, channels_last, compile and dropout are used.
        device: Device of the networks.

    Attributes:
        batch_norm: The mode in which the statistics of batch norms are computed over all processes.
    """

    def __init__(
        self, trainables: Sequence[Trainable], frozen: Sequence[nn.Module], scores: Scores, config: SupervisedConfig | EndToEndConfig,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleList(trainable.module for trainable in trainables)
        self.batch_norm = GlobalBatchNorm()
        self._networks = [*self.trained, *frozen]
        self._find_unused = any(trainable.find_unused for trainable in trainables)
        self._scores, self._config, self._device = scores, config, device

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 scores, (M, K) or (R, M, K), and labels (M,)."""
        precision = self._config.precision
        autocast = torch.autocast(self._device.type, PRECISIONS[precision], enabled=precision != "float32")
        with autocast, self.batch_norm if distributed.world_size() > 1 else nullcontext():
            scores, labels = self._scores(batch)
        return scores.float(), labels

    @contextmanager
    def epoch(self) -> Iterator[nn.Module]:
        """Yield the module for the forward pass. The networks are in training mode, and are compiled and wrapped according to the settings.

        On exit, the networks are frozen and all other changes are undone.

        Raises:
            InputError: If dropout is set and the trained networks have no dropout.
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
        refuse_if(not layers, f"dropout={dropout} has no effect: the trained networks have no dropout; leave it out (dropout=null)")
        for layer in layers:
            undo.callback(setattr, layer, "p", layer.p)
            layer.p = dropout

    def _set_memory_format(self, memory_format: torch.memory_format) -> None:
        for network in self._networks:
            network.to(memory_format=memory_format)


class GlobalBatchNorm(TorchFunctionMode):
    """A mode in which batch norms in training mode use and update statistics over all processes, on CPUs and GPUs.

    The mode replaces the function `torch.nn.functional.batch_norm`. Networks, weights and parameter names therefore stay the same, and the
    mode also applies to custom layers. (`torch.nn.SyncBatchNorm` works only on GPUs.)

    Attributes:
        has_samples: Whether the statistics include the images of this process. If ``has_samples`` is False, the images of this process are
            nevertheless normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_samples = True

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        call = self._batch_norm if func is F.batch_norm else func
        return call(*args, **(kwargs or {}))

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
        over, channels = [0, *range(2, inputs.ndim)], (1, -1, *[1] * (inputs.ndim - 2))
        values = inputs.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums: Tensor = _AllSum.apply(torch.cat([values.sum(over), count]) * self.has_samples)
        count = sums[-1:].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(channels)  # E[x²] − E[x]² would lose precision
        var: Tensor = _AllSum.apply(centred.square().sum(over) * self.has_samples) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * (count / (count - 1)), momentum)
        scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
        outputs = centred * scale.view(channels)
        return (outputs if bias is None else outputs + bias.view(channels)).to(inputs.dtype)


class _AllSum(torch.autograd.Function):
    """The sum of a tensor over all processes. The gradient of this sum is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return distributed.all_sum(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.all_sum(gradient.clone())
