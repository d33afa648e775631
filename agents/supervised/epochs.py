"""The epoch loop that the stages 0, 1 and 3 share."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource
from agents.config.settings import SupervisedConfig
from agents.runs.seeding import random_states, restore_random_states
from agents.supervised.batches import Batch, load_batch
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stage_model import Part, Running, Scores
from classifiers.checkpoint import tensor_faults
from classifiers.errors import InputError
from classifiers.optimize import check_compiler, check_precision

OPTIMIZERS: dict[str, Callable[[list[dict], SupervisedConfig], Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, config.learning_rate, weight_decay=config.weight_decay),
    "sgd": lambda groups, config: SGD(groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay),
}
# The optimiser, the config and the batches of an epoch → a schedule that is moved on after every batch.
SCHEDULES: dict[str, Callable[[Optimizer, SupervisedConfig, int], LRScheduler]] = {
    "one_cycle": lambda optimizer, config, batches: OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(1, config.epochs * batches),
        cycle_momentum=config.optimizer != "sgd",  # whose momentum is the one that was asked for
    ),
    "cosine": lambda optimizer, config, batches: CosineAnnealingLR(optimizer, max(1, config.epochs * batches)),
    "step": lambda optimizer, config, batches: MultiStepLR(optimizer, [epoch * batches for epoch in config.milestones], 0.1),
}


def train_epochs(
    parts: Sequence[Part],
    clips: ClipSource,
    scores: Scores,
    config: SupervisedConfig,
    *,
    seed: int,
    device: torch.device,
    frozen: Sequence[nn.Module] = (),
    saved: EpochCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Trains ``parts`` by cross-entropy and yields the mean loss and accuracy of every epoch, and its highest learning rate.

    Only the parts are in training mode; everything else stays as it is. Draws depend on ``seed`` and the epoch alone, but for those of
    PyTorch's dropout. Several processes (`adafocus_env.distributed`) share the clips of every step and end with the same weights and
    figures as one alone, up to the rounding of sums; their dropout differs.

    Args:
        parts: what learns; the learning rate is that of the first.
        clips: the training clips; each epoch draws a new crop and flip of their stored frames, or all anew where they are fresh.
        scores: a batch → scores (M, K) and labels (M,).
        config: epochs, optimiser, schedule, dropout, and how the networks are run.
        seed: of the order, the crops and what ``scores`` draws.
        device: where the networks live.
        frozen: further networks that ``scores`` looks with.
        saved: where it is saved, after every epoch once the caller asks for the next, and within epochs. Where something is saved
            already, training goes on from it, bit for bit as if it had not been interrupted, and yields the epochs that are left.

    Raises:
        InputError: a setting is not known or out of its range, the loss or a weight is no longer a number (names the epoch and the clips),
            the processes cannot share the batches, or the checkpoint is of another training or cannot be written.
        Stopped: the user asked to stop; everything is saved.
    """
    training = _Training(parts, clips, scores, config, seed, device, frozen, saved)
    while training.epochs_left:
        yield training.finish_epoch()
        training.save_epoch()


@dataclass
class _Position:
    """How far a training is.

    Attributes:
        epoch: the one that is worked on, from 0.
        batches: of it that are done.
        losses: sum over their scores, as for ``correct`` and ``count``.
        correct: scores that are right.
        count: all of them.
        rng: what is drawn next for this epoch; None: it begins.
        rate: the highest learning rate of its steps, of the first part.
    """

    epoch: int = 0
    batches: int = 0
    losses: float = 0.0
    correct: int = 0
    count: int = 0
    rng: Mapping[str, Any] | None = None
    rate: float = 0.0


class _Training:
    """One call of `train_epochs`, whose arguments these are."""

    def __init__(
        self,
        parts: Sequence[Part],
        clips: ClipSource,
        scores: Scores,
        config: SupervisedConfig,
        seed: int,
        device: torch.device,
        frozen: Sequence[nn.Module],
        saved: EpochCheckpoint | None,
    ) -> None:
        check_settings(config, device)
        self._parts, self._clips, self._config, self._seed, self._saved = parts, clips, config, seed, saved
        self._running = Running(parts, frozen, scores, config, device)
        self._device, self._scaler = device, torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self._batches = -(-clips.epoch_size // config.batch_size)
        groups = [{"params": part.module.parameters(), "lr": part.learning_rate} for part in parts]
        self._optimizer = OPTIMIZERS[config.optimizer](groups, config)
        self._schedule = SCHEDULES[config.schedule](self._optimizer, config, self._batches)
        self._at = _Position()
        self.identity = {**asdict(config), "seed": seed, "clips": _digest(clips)}
        if distributed.rank():  # the others draw other dropout
            torch.manual_seed(int(np.random.SeedSequence((seed, distributed.rank())).generate_state(1)[0]))
        if saved is not None:
            saved.begin(self)

    @property
    def epochs_left(self) -> int:
        """How many are still to be finished."""
        return self._config.epochs - self._at.epoch

    def finish_epoch(self) -> dict[str, float]:
        """Trains to the end of the epoch and returns what is yielded of it; raises as `train_epochs`."""
        rng = np.random.default_rng((self._seed, self._at.epoch))
        order = np.array_split(self._clips.epoch(self._at.epoch, rng), self._batches)
        if self._at.rng is not None:
            rng.bit_generator.state = self._at.rng
        left = order[self._at.batches :]
        mine = np.concatenate([distributed.shares(drawn)[distributed.rank()] for drawn in left])
        if len(mine) < self._clips.epoch_size:
            self._clips.prefetch(mine)
        with _training(self._parts, self._config.dropout), self._running.epoch():
            for drawn in left:
                self._learn(drawn, rng)
                self._at.batches, self._at.rng = self._at.batches + 1, rng.bit_generator.state
                if self._saved is not None and self._at.batches < self._batches:
                    self._saved.between_batches(self._at.epoch + self._at.batches / self._batches)
        at, self._at = self._at, _Position(self._at.epoch + 1)
        return {"loss": at.losses / at.count, "accuracy": at.correct / at.count, "learning_rate": at.rate}

    def save_epoch(self) -> None:
        """Saves, if anything is saved, between two epochs."""
        if self._saved is not None:
            self._saved.between_epochs()

    @property
    def name(self) -> str:
        """Of a checkpoint: epochs and batches that are done, later ones later in the alphabet."""
        return f"{self._at.epoch:05d}-{self._at.batches:07d}"

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on: tensors and plain values.

        Raises:
            InputError: a weight is no longer a number, so that nobody could go on from there.
        """
        weights = [part.module.state_dict() for part in self._parts]
        for name, tensor in ((name, tensor) for each in weights for name, tensor in each.items()):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(self._lost(f"{name} holds values that are no numbers"))
        return {
            "position": asdict(self._at), "weights": weights, "random": distributed.gather_objects(random_states()),
            "optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict(), "scaler": self._scaler.state_dict(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`.

        Raises:
            InputError: it is of other networks.
        """
        modules, weights = [part.module for part in self._parts], state["weights"]
        if len(weights) != len(modules):
            raise InputError(f"it is of {len(weights)} networks, not of {len(modules)}")
        if faults := [fault for module, each in zip(modules, weights, strict=True) for fault in tensor_faults(module.state_dict(), each)]:
            raise InputError(f"it is of another network: {'; '.join(faults)}")
        for module, each in zip(modules, weights, strict=True):
            module.load_state_dict(each)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self._at = _Position(**state["position"])
        if distributed.rank() < len(state["random"]):  # of processes that were not there then, dropout begins anew
            restore_random_states(state["random"][distributed.rank()])

    def _learn(self, drawn: NDArray[np.int64], rng: np.random.Generator) -> None:
        """One step of optimiser and schedule, on what can be read of the clips ``drawn``."""
        batch, counts = load_batch(self._clips, drawn, rng, self._device)
        if not batch.total:
            return
        self._last = self._at.epoch + 1, batch.clips if len(counts) == 1 else drawn
        self._optimizer.zero_grad()
        losses, correct, count = distributed.all_sum(self._backward(batch, max(1, min(self._config.accumulate, *counts)))).tolist()
        if not math.isfinite(losses):  # before the step: the weights are still those that were good
            raise InputError(self._lost(f"the loss is {losses / count}"))
        self._at.rate = max(self._at.rate, self._optimizer.param_groups[0]["lr"])
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # otherwise a gradient was too large for float16, and no step was made
            self._schedule.step()
        self._at.losses += losses
        self._at.correct += int(correct)
        self._at.count += int(count)

    def _backward(self, batch: Batch, parts: int) -> Tensor:
        """Gradients of the mean loss over all clips of the step; sum of the losses, right scores and number of them (3,) float64."""
        sums, before = np.zeros(3), batch.rng.bit_generator.state
        for number, part in enumerate(batch.split(parts)):
            batch.rng.bit_generator.state = before  # each part makes the draws of the whole and takes its rows
            with self._running.part(last=number == parts - 1, counts=len(part.clips) > 0):
                predicted, labels = self._running.look(part)
                loss = nn.functional.cross_entropy(predicted, labels)
                # Processes take the mean of their gradients.
                self._scaler.scale(loss * (len(part.clips) / part.total * distributed.world_size())).backward()
            if len(part.clips):
                sums += loss.item() * len(labels), int((predicted.argmax(-1) == labels).sum()), len(labels)
        return torch.from_numpy(sums)

    def _lost(self, what: str) -> str:
        """The message when training cannot go on after a batch."""
        epoch, clips = self._last
        names = ", ".join(self._clips.names[clip] for clip in clips)
        patch_mask = f"; the last good checkpoint is kept in {self._saved.folder}" if self._saved is not None and self._saved.any else ""
        return (
            f"{what} in epoch {epoch}, with the clips {names}; choose a lower learning_rate or head_learning_rate, "
            f"or look whether these videos are what they should be{patch_mask}"
        )


def check_settings(config: SupervisedConfig, device: torch.device) -> None:
    """Checks how something shall learn; no clip and no network has to be there for that.

    Raises:
        InputError: milestones and schedule do not go together, the device lacks the precision, nothing can compile, or the processes
            cannot share the batches.
    """
    _check_run(config, device)
    given = list(config.milestones)
    if given != sorted(set(given)) or any(epoch < 1 for epoch in given):
        raise InputError(f"milestones={given} are no rising epochs from 1 on; give some like [20, 40]")
    if bool(given) != (config.schedule == "step"):
        advice = "give some like [20, 40]" if not given else "only schedule=step has milestones; leave them out"
        raise InputError(f"milestones={given} do not go with schedule={config.schedule}; {advice}")


def _check_run(config: SupervisedConfig, device: torch.device) -> None:
    check_precision(config.precision, device)
    if config.compile:
        check_compiler()
    processes = distributed.world_size()
    if config.compile and processes > 1:  # what is compiled cannot wait for other processes in the middle, as batch norm has to
        raise InputError(f"compile=true is for one process, and there are {processes}; leave it out, or start without torchrun")
    if config.batch_size % processes:
        lower, higher = (config.batch_size // processes + more for more in (0, 1))
        advice = " or ".join(f"{each * processes}" for each in (lower, higher) if each)
        raise InputError(f"batch_size={config.batch_size} cannot be shared out equally by {processes} processes; set it to {advice}")


@contextmanager
def _training(parts: Sequence[Part], dropout: float | None) -> Iterator[None]:
    """Within it the parts learn, with this share of dropout if one is given; afterwards they are frozen and as they were."""
    dropouts = [module for part in parts for module in part.module.modules() if isinstance(module, nn.Dropout)]
    if dropout is not None and not dropouts:
        raise InputError(f"dropout={dropout} cannot be set: what is trained here has no dropout; leave it out (dropout=null)")
    before = [module.p for module in dropouts]
    for module in dropouts:
        module.p = module.p if dropout is None else dropout
    for part in parts:
        part.module.train().requires_grad_(True)
    try:
        yield
    finally:
        for module, share in zip(dropouts, before, strict=True):
            module.p = share
        for part in parts:
            part.module.eval().requires_grad_(False)


def _digest(clips: ClipSource) -> str:
    """Hash of the clips of an epoch, wherever their files lie: names and labels."""
    known = [[clips.names[clip], int(clips.labels[clip])] for clip in range(clips.epoch_size)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
