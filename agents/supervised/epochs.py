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
Loss = Callable[[Tensor, Tensor], Tensor]
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Learning], Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, config.learning_rate, weight_decay=config.weight_decay),
    "sgd": lambda groups, config: SGD(groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay),
}
"""Functions that take parameter groups (with their learning rates) and settings, and return an optimiser."""

SCHEDULES: dict[str, Callable[[Optimizer, Learning, int], LRScheduler]] = {
    "one_cycle": lambda optimizer, config, batches: OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(1, config.epochs * batches),
        cycle_momentum=config.optimizer != "sgd",  # the momentum of SGD is a setting
    ),
    "cosine": lambda optimizer, config, batches: CosineAnnealingLR(optimizer, max(1, config.epochs * batches)),
    "cosine_epochs": lambda optimizer, config, batches: LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * (step // batches) / config.epochs))
    ),
    "step": lambda optimizer, config, batches: MultiStepLR(optimizer, [epoch * batches for epoch in config.milestones], 0.1),
}
"""Functions that take an optimiser, settings and the number of batches per epoch, and return a schedule that steps after every batch."""


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
    loss: Loss | None = None,
    max_grad_norm: float | None = None,
    checkpoints: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train networks. Yield the mean loss, the accuracy and the highest learning rate of every epoch.

    If ``scores`` returns several outputs, the loss is the weighted sum of their losses, and the accuracy is that of the first output. With
    several outputs, the loss of each output is also yielded, under the key ``loss_NAME``.

    Only the trained networks are in training mode. Random numbers depend only on ``seed`` and the epoch, except for PyTorch's dropout. If
    there are several processes (`adafocus_env.distributed`), each of them processes a share of the clips of every step. With several
    processes, weights and metrics equal those of a single process, apart from the rounding of sums. With dropout, weights and metrics
    differ from those of a single process, because dropout differs between processes.

    Args:
        trainables: The networks to train. The reported learning rate is that of the first network.
        clips: The training clips. If the clips are stored, each epoch samples new crops and flips of the same clips. If the clips are
            streamed, each epoch samples entirely new clips.
        scores: Function that takes a batch and returns scores and labels (M,). The scores are (M, K), or (R, M, K) for R outputs.
        config: Epochs, optimiser, schedule, dropout and execution of the networks.
        seed: Seed of the order of the clips, the crops and the random numbers of ``scores``.
        device: Device of the networks.
        frozen: Modules that are used in the forward pass but not trained.
        weights: Maps the names of the R outputs to the weights of their losses; None: there is one output.
        loss: Function that takes scores (M, K) and labels (M,) and returns a loss, which is minimised; None: the cross-entropy.
        max_grad_norm: The gradient is clipped to this norm, computed over all trained parameters together; None: no clipping.
        checkpoints: Saves the training within epochs. After every epoch, the training is saved when the caller requests the next epoch. If
            there is a checkpoint, training resumes from it and yields the remaining epochs, which are bit-identical to those of an
            uninterrupted training.

    Raises:
        InputError: If a setting is unknown or out of range, if the loss or a weight is not finite, or if the batches cannot be divided
            among the processes. The error is also raised if the checkpoint belongs to another training or cannot be written. For a loss or
            weight that is not finite, the message names the epoch and the clips.
        Stopped: If the user asked to stop. Everything is saved before.
    """
    training = _Training(trainables, clips, scores, config, seed, device, frozen, weights or {}, loss, max_grad_norm, checkpoints)
    while training.position.epoch < config.epochs:
        yield training.train_epoch()
        if checkpoints is not None:
            checkpoints.between_epochs()


@dataclass
class _Position:
    """The progress of a training.

    Attributes:
        epoch: The current epoch, starting at 0.
        batches: Number of finished batches in this epoch.
        losses: Sum of the losses in the finished batches.
        correct: Number of correct predictions in the finished batches.
        count: Number of predictions in the finished batches.
        rng: State of the epoch's random generator; None at the start of the epoch.
        rate: The highest learning rate of the first parameter group in the finished batches.
        outputs: For each output, the sum of its losses in the finished batches; empty if there is only one output.
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
    """The state of one call of `train_epochs`. The arguments are those of `train_epochs`."""

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
        loss: Loss | None,
        max_grad_norm: float | None,
        checkpoints: EpochCheckpoint | None,
    ) -> None:
        check_settings(config, device)
        self.position = _Position()
        self._weights, self._loss, self._max_grad_norm = weights, loss, max_grad_norm
        self.identity = {**asdict(config), "seed": seed, "clips": _digest(clips)}
        self._clips, self._config, self._seed, self._device, self._checkpoints = clips, config, seed, device, checkpoints
        self._batches = math.ceil(clips.epoch_size / config.batch_size)
        self._model = StageModel(trainables, frozen, scores, config, device)
        groups = [{"params": trainable.module.parameters(), "lr": trainable.learning_rate} for trainable in trainables]
        self._optimizer = OPTIMIZERS[config.optimizer](groups, config)
        self._schedule = SCHEDULES[config.schedule](self._optimizer, config, self._batches)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        if rank := distributed.rank():  # each process has different dropout
            torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]))
        if checkpoints is not None:
            checkpoints.begin(self)

    def train_epoch(self) -> dict[str, float]:
        """Train to the end of the epoch and return its metrics. Raises the same errors as `train_epochs`."""
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
        """Perform one step of the optimiser and the schedule on the clips ``indices``. Clips that cannot be read are left out."""
        batch, counts = load_batch(self._clips, indices, rng, self._device)
        if not batch.total:
            return
        self._last = self.position.epoch + 1, batch.clips if len(counts) == 1 else indices
        self._optimizer.zero_grad()
        microbatches = max(1, min(self._config.accumulate, *counts))
        losses, correct, count, *outputs = distributed.all_sum(self._backward(model, batch, microbatches)).tolist()
        if not math.isfinite(losses):  # checked before the step, which would make the weights non-finite
            raise InputError(self._divergence(f"the loss is {losses / count}"))
        self.position.rate = max(self.position.rate, self._optimizer.param_groups[0]["lr"])
        scale = self._scaler.get_scale()
        if self._max_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.trained.parameters(), self._max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # if a gradient overflowed float16, the scale decreases and the step is skipped
            self._schedule.step()
        self.position.losses += losses
        self.position.outputs = [sum(pair) for pair in zip(self.position.outputs or [0.0] * len(outputs), outputs, strict=True)]
        self.position.correct += int(correct)
        self.position.count += int(count)

    def _backward(self, model: nn.Module, batch: Batch, microbatches: int) -> Tensor:
        """Accumulate the gradient of the mean loss of the step.

        Returns:
            An array (3 + R,) float64. The first three entries are the sum of the losses, the number of correct predictions and the number
            of predictions. If there are several outputs, the last R entries are the sums of the losses of each output.
        """
        sums, rng_state = np.zeros(3 + len(self._weights)), batch.rng.bit_generator.state
        for number, microbatch in enumerate(batch.split(microbatches), 1):
            batch.rng.bit_generator.state = rng_state  # each microbatch samples for all clips of the step, and uses its rows
            self._model.batch_norm.has_samples = len(microbatch.clips) > 0
            with model.no_sync() if number < microbatches and isinstance(model, DistributedDataParallel) else nullcontext():
                scores, labels = model(microbatch)
                loss, outputs = weighted_loss(scores, labels, list(self._weights.values()), self._loss)
                share = len(microbatch.clips) / batch.total * distributed.world_size()  # processes average their gradients
                self._scaler.scale(loss * share).backward()
            if len(microbatch.clips):
                correct = int(((scores[0] if self._weights else scores).argmax(-1) == labels).sum())
                mean, *means = torch.stack([loss, *outputs]).tolist()
                sums += mean * len(labels), correct, len(labels), *(each * len(labels) for each in means)
        return torch.from_numpy(sums)

    # Members that `EpochCheckpoint` uses

    @property
    def name(self) -> str:
        """Name of the checkpoint, which consists of the numbers of finished epochs and batches, with leading zeros."""
        return f"{self.position.epoch:05d}-{self.position.batches:07d}"

    def state(self) -> dict[str, Any]:
        """Return everything on which the remaining training depends, as tensors and plain values.

        Raises:
            InputError: If a weight is not finite, because training could not resume from such a state.
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
            InputError: If the state belongs to other networks.
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
        if distributed.rank() < len(state["random"]):  # other processes restart their dropout
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


def weighted_loss(
    scores: Tensor, labels: Tensor, weights: Sequence[float], loss: Loss | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss to minimise and a list with the loss of each output.

    Args:
        scores: Scores (R, M, K) of R outputs, or scores (M, K) of a single output if ``weights`` is empty.
        labels: Labels (M,).
        weights: Weights of the R losses in the sum. If ``weights`` is empty, there is one output, and the returned list is empty.
        loss: See `train_epochs`.
    """
    loss = loss or nn.functional.cross_entropy
    if not weights:
        return loss(scores, labels), []
    losses = [loss(each, labels) for each in scores]
    return torch.stack([weight * each for weight, each in zip(weights, losses, strict=True)]).sum(), losses


def check_settings(config: Learning, device: torch.device) -> None:
    """Check the settings of a stage, before any clip or network is loaded.

    Raises:
        InputError: If milestones and schedule do not match, if the device does not support the precision, if no compiler is installed, or
            if the batches cannot be divided among the processes.
    """
    milestones = list(config.milestones)
    refuse_if(
        milestones != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones),
        f"milestones must be strictly increasing epochs of at least 1, such as [20, 40], got {milestones}",
    )
    hint = "only schedule=step has milestones; leave them out" if milestones else "set some, such as [20, 40]"
    refuse_if(bool(milestones) != (config.schedule == "step"), f"milestones={milestones} do not go with schedule={config.schedule}; {hint}")
    check_precision(config.precision, device)
    if config.compile:
        check_compiler()
    processes = distributed.world_size()
    # batch norm waits for the other processes, and compiled code cannot wait
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
    """Return a hash of the names and labels of an epoch's clips. The hash does not depend on the location of the files."""
    labelled = [[clips.names[clip], int(clips.labels[clip])] for clip in range(clips.epoch_size)]
    return hashlib.sha256(json.dumps(labelled).encode()).hexdigest()[:16]
