"""The epoch loop of stages 0, 1 and 3 and of end-to-end training."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource
from agents.config.settings import EndToEndConfig, SupervisedConfig
from agents.runs.seeding import random_states, restore_random_states
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stage_model import Batch, Scores, StageModel, Trainable, load_batch
from classifiers.checkpoint import tensor_faults
from classifiers.errors import InputError, refuse_if
from classifiers.optimize import check_compiler, check_precision

Learning = SupervisedConfig | EndToEndConfig
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Learning], Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, config.learning_rate, weight_decay=config.weight_decay),
    "sgd": lambda groups, config: SGD(groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay),
}
"""Parameter groups, with their learning rates, and settings → optimiser."""

SCHEDULES: dict[str, Callable[[Optimizer, Learning, int], LRScheduler]] = {
    "one_cycle": lambda optimizer, config, batches: OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(1, config.epochs * batches),
        cycle_momentum=config.optimizer != "sgd",  # SGD keeps the momentum that was set
    ),
    "cosine": lambda optimizer, config, batches: CosineAnnealingLR(optimizer, max(1, config.epochs * batches)),
    "cosine_epochs": lambda optimizer, config, batches: LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * (step // batches) / config.epochs))
    ),
    "step": lambda optimizer, config, batches: MultiStepLR(optimizer, [epoch * batches for epoch in config.milestones], 0.1),
}
"""Optimiser, settings and batches per epoch → schedule that is stepped after every batch."""


def train_epochs(
    trainables: Sequence[Trainable],
    clips: ClipSource,
    scores: Scores,
    config: Learning,
    *,
    seed: int,
    device: torch.device,
    frozen: Sequence[nn.Module] = (),
    weights: Mapping[str, float] | None = None,
    max_grad_norm: float | None = None,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train networks by cross-entropy; yield the mean loss, the accuracy and the highest learning rate of every epoch.

    Where ``scores`` has several outputs, the loss is the weighted sum of their cross-entropies, which are yielded too (``loss_NAME``), and
    the accuracy is that of the first.

    Only the trained networks are in training mode. Samples depend on ``seed`` and the epoch alone, except for PyTorch's dropout. Several
    processes (`adafocus_env.distributed`) share the clips of every step and end with the weights and figures of a single process, up to
    the rounding of sums; their dropout differs.

    Args:
        trainables: What is trained; the reported learning rate is that of the first.
        clips: The training clips; each epoch samples a new crop and flip of the stored frames, or whole new clips where they are streamed.
        scores: Maps a batch to scores (M, K), or those of R outputs (R, M, K), and labels (M,).
        config: Epochs, optimiser, schedule, dropout, and how the networks run.
        seed: Seed of the order, the crops and what ``scores`` samples.
        device: Where the networks are.
        frozen: Modules used in the forward pass but not trained.
        weights: Names of the R outputs and the weights of their losses; None: there is one output.
        max_grad_norm: The gradient of all trained parameters together is clipped to this norm; None: it is not.
        checkpoints: Saves the training after every epoch, when the caller asks for the next one, and within epochs. Where a checkpoint
            exists, training resumes from it, bit for bit as if it had never stopped, and yields the remaining epochs.

    Raises:
        InputError: A setting is unknown or out of range, the loss or a weight is not finite (names the epoch and the clips), the
            processes cannot share the batches, or the checkpoint belongs to another training or cannot be written.
        Stopped: The user asked to stop; everything is saved.
    """
    training = _Training(trainables, clips, scores, config, seed, device, frozen, weights or {}, max_grad_norm, checkpoints)
    while training.position.epoch < config.epochs:
        yield training.train_epoch()
        if checkpoints is not None:
            checkpoints.between_epochs()


@dataclass
class _Position:
    """How far a training has come.

    Attributes:
        epoch: The current epoch, from 0.
        batches: Its finished batches.
        losses: Sum of their losses.
        correct: Number of their correct scores.
        count: Number of their scores.
        rng: State of the epoch's random generator; None at its beginning.
        rate: The highest learning rate of their steps, of the first parameter group.
        outputs: Sums of the losses of each of several outputs; empty where there is one.
    """

    epoch: int = 0
    batches: int = 0
    losses: float = 0.0
    correct: int = 0
    count: int = 0
    rng: Mapping[str, Any] | None = None
    rate: float = 0.0
    outputs: list[float] = field(default_factory=list)


class _Training:
    """The state of one call of `train_epochs`, which documents the arguments."""

    def __init__(
        self,
        trainables: Sequence[Trainable],
        clips: ClipSource,
        scores: Scores,
        config: Learning,
        seed: int,
        device: torch.device,
        frozen: Sequence[nn.Module],
        weights: Mapping[str, float],
        max_grad_norm: float | None,
        checkpoints: EpochCheckpoint | None,
    ) -> None:
        check_settings(config, device)
        self.position = _Position()
        self._weights, self._max_grad_norm = weights, max_grad_norm
        self.identity = {**asdict(config), "seed": seed, "clips": _digest(clips)}
        self._clips, self._config, self._seed, self._device, self._checkpoints = clips, config, seed, device, checkpoints
        self._batches = math.ceil(clips.epoch_size / config.batch_size)
        self._model = StageModel(trainables, frozen, scores, config, device)
        groups = [{"params": trainable.module.parameters(), "lr": trainable.learning_rate} for trainable in trainables]
        self._optimizer = OPTIMIZERS[config.optimizer](groups, config)
        self._schedule = SCHEDULES[config.schedule](self._optimizer, config, self._batches)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        if rank := distributed.rank():  # every process has its own dropout
            torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]))
        if checkpoints is not None:
            checkpoints.begin(self)

    def train_epoch(self) -> dict[str, float]:
        """Train to the end of the epoch and return its metrics; raises as `train_epochs`."""
        position = self.position
        rng = np.random.default_rng((self._seed, position.epoch))
        batches = np.array_split(self._clips.epoch(position.epoch, rng), self._batches)[position.batches :]
        if position.rng is not None:
            rng.bit_generator.state = position.rng
        ours = np.concatenate([distributed.shard(indices)[distributed.rank()] for indices in batches])
        if len(ours) < self._clips.epoch_size:
            self._clips.prefetch(ours)
        with self._model.epoch() as model:
            for indices in batches:
                self._train_batch(model, indices, rng)
                position.batches, position.rng = position.batches + 1, rng.bit_generator.state
                if self._checkpoints is not None and position.batches < self._batches:
                    self._checkpoints.between_batches(position.epoch + position.batches / self._batches)
        self.position = _Position(position.epoch + 1)
        means = {f"loss_{name}": loss / position.count for name, loss in zip(self._weights, position.outputs, strict=True)}
        measured = {"loss": position.losses / position.count, **means, "accuracy": position.correct / position.count}
        return {**measured, "learning_rate": position.rate}

    def _train_batch(self, model: nn.Module, indices: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Make one step of the optimiser and the schedule, on the readable ones of the clips ``indices``."""
        batch, counts = load_batch(self._clips, indices, rng, self._device)
        if not batch.total:
            return
        self._last = self.position.epoch + 1, batch.clips if len(counts) == 1 else indices
        self._optimizer.zero_grad()
        microbatches = max(1, min(self._config.accumulate, *counts))
        losses, correct, count, *outputs = distributed.all_sum(self._backward(model, batch, microbatches)).tolist()
        if not math.isfinite(losses):  # before the step, which would spoil the weights
            raise InputError(self._divergence(f"the loss is {losses / count}"))
        self.position.rate = max(self.position.rate, self._optimizer.param_groups[0]["lr"])
        scale = self._scaler.get_scale()
        if self._max_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.trained.parameters(), self._max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # a lower scale means that a gradient overflowed float16 and the step was skipped
            self._schedule.step()
        self.position.losses += losses
        self.position.outputs = [sum(pair) for pair in zip(self.position.outputs or [0.0] * len(outputs), outputs, strict=True)]
        self.position.correct += int(correct)
        self.position.count += int(count)

    def _backward(self, model: nn.Module, batch: Batch, microbatches: int) -> Tensor:
        """Accumulate the gradient of the mean loss of the step.

        Returns:
            (3 + R,) float64: sum of losses, correct scores, scores; sums of the losses of each of R outputs, where there are several.
        """
        sums, rng_state = np.zeros(3 + len(self._weights)), batch.rng.bit_generator.state
        for number, microbatch in enumerate(batch.split(microbatches), 1):
            batch.rng.bit_generator.state = rng_state  # each microbatch samples for the whole step and takes its rows
            self._model.batch_norm.has_samples = len(microbatch.clips) > 0
            with model.no_sync() if number < microbatches and isinstance(model, DistributedDataParallel) else nullcontext():
                scores, labels = model(microbatch)
                loss, outputs = weighted_loss(scores, labels, list(self._weights.values()))
                share = len(microbatch.clips) / batch.total * distributed.world_size()  # processes average their gradients
                self._scaler.scale(loss * share).backward()
            if len(microbatch.clips):
                correct = int(((scores[0] if self._weights else scores).argmax(-1) == labels).sum())
                mean, *means = torch.stack([loss, *outputs]).tolist()
                sums += mean * len(labels), correct, len(labels), *(each * len(labels) for each in means)
        return torch.from_numpy(sums)

    # What `EpochCheckpoint` saves

    @property
    def name(self) -> str:
        """Name of a checkpoint: finished epochs and batches, in alphabetical order."""
        return f"{self.position.epoch:05d}-{self.position.batches:07d}"

    def state(self) -> dict[str, Any]:
        """Return all that the remaining training depends on: tensors and plain values.

        Raises:
            InputError: A weight is not finite, so that nothing could resume from there.
        """
        weights = [module.state_dict() for module in self._model.trained]
        for name, tensor in ((name, tensor) for tensors in weights for name, tensor in tensors.items()):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(self._divergence(f"{name} holds values that are not finite"))
        return {
            "position": asdict(self.position), "weights": weights, "random": distributed.gather_objects(random_states()),
            "optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict(), "scaler": self._scaler.state_dict(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`.

        Raises:
            InputError: It belongs to other networks.
        """
        modules, weights = self._model.trained, state["weights"]
        refuse_if(len(weights) != len(modules), f"it holds {len(weights)} networks, not {len(modules)}")
        pairs = list(zip(modules, weights, strict=True))
        refuse_if(
            faults := [fault for module, tensors in pairs for fault in tensor_faults(module.state_dict(), tensors)],
            f"it holds another network: {'; '.join(faults)}",
        )
        for module, tensors in pairs:
            module.load_state_dict(tensors)
        for name, target in (("optimizer", self._optimizer), ("schedule", self._schedule), ("scaler", self._scaler)):
            target.load_state_dict(state[name])
        self.position = _Position(**state["position"])
        if distributed.rank() < len(state["random"]):  # a process without saved random states begins with new dropout
            restore_random_states(state["random"][distributed.rank()])

    def _divergence(self, problem: str) -> str:
        epoch, clips = self._last
        names = ", ".join(self._clips.names[clip] for clip in clips)
        message = (
            f"{problem} in epoch {epoch}, with the clips {names}; choose a lower learning_rate, also that of the head, or check the videos"
        )
        if self._checkpoints is not None and self._checkpoints.any:
            message += f"; the last good checkpoint is in {self._checkpoints.folder}"
        return message


def weighted_loss(scores: Tensor, labels: Tensor, weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """Return the loss to minimise, and those of its outputs.

    Args:
        scores: (R, M, K) of R outputs; without weights (M, K) of a single one.
        labels: (M,).
        weights: Of the R cross-entropies in the loss; empty: there is one output, which is not returned separately.
    """
    if not weights:
        return nn.functional.cross_entropy(scores, labels), []
    losses = [nn.functional.cross_entropy(each, labels) for each in scores]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum(), losses


def check_settings(config: Learning, device: torch.device) -> None:
    """Check the settings of a stage, before any clip or network is loaded.

    Raises:
        InputError: Milestones and schedule do not match, the device lacks the precision, no compiler is installed, or the processes
            cannot share the batches.
    """
    milestones = list(config.milestones)
    refuse_if(
        milestones != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones),
        f"milestones must be strictly increasing epochs from 1 on, such as [20, 40], got {milestones}",
    )
    hint = "only schedule=step has milestones; leave them out" if milestones else "set some, such as [20, 40]"
    refuse_if(bool(milestones) != (config.schedule == "step"), f"milestones={milestones} do not go with schedule={config.schedule}; {hint}")
    check_precision(config.precision, device)
    if config.compile:
        check_compiler()
    processes = distributed.world_size()
    # compiled code cannot wait for other processes in the middle, as batch norm must
    refuse_if(
        config.compile and processes > 1, f"compile=true needs a single process, got {processes}; leave it out, or start without torchrun"
    )
    lower = config.batch_size // processes * processes
    sizes = " or ".join(str(size) for size in (lower, lower + processes) if size)
    refuse_if(
        config.batch_size % processes,
        f"batch_size must be a multiple of the {processes} processes, got {config.batch_size}; set it to {sizes}",
    )


def _digest(clips: ClipSource) -> str:
    """Return a hash of the names and labels of an epoch's clips, independent of where their files are."""
    labelled = [[clips.names[clip], int(clips.labels[clip])] for clip in range(clips.epoch_size)]
    return hashlib.sha256(json.dumps(labelled).encode()).hexdigest()[:16]
