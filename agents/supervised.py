"""The epoch loop that the stages 0, 1 and 3 share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from adafocus_env.clips import ClipSource
from agents.config import SupervisedConfig
from classifiers.errors import InputError, named

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


@dataclass(frozen=True)
class Batch:
    """Clips of one step, with crops and flips of their own.

    Attributes:
        frames: (B, T, 3, H, W) uint8 on the device: the focuser's.
        glance_frames: (B, g, 3, H, W) uint8 on the device: the glancer's, with the same crops; ``frames`` itself where they are the same.
        labels: (B,) int64 on the device.
        clips: (B,) their numbers.
        rng: for further draws.
    """

    frames: Tensor
    glance_frames: Tensor
    labels: Tensor
    clips: NDArray[np.int64]
    rng: np.random.Generator


@dataclass(frozen=True)
class Part:
    """Parameters that learn, and how fast."""

    module: nn.Module
    learning_rate: float


def train_epochs(
    parts: Sequence[Part],
    clips: ClipSource,
    scores: Callable[[Batch], tuple[Tensor, Tensor]],
    config: SupervisedConfig,
    *,
    seed: int,
    device: torch.device,
) -> Iterator[dict[str, float]]:
    """Trains ``parts`` by cross-entropy and yields the mean loss and accuracy of every epoch.

    Only the parts are in training mode; everything else stays as it is. Draws depend on ``seed`` and the epoch alone.

    Args:
        parts: what learns.
        clips: the training clips; each epoch draws a new crop and flip of their stored frames, or all anew where they are fresh.
        scores: a batch → scores (M, K) and labels (M,).
        config: epochs, optimiser, schedule, dropout.
        seed: of the order, the crops and what ``scores`` draws.
        device: where the networks live.

    Raises:
        InputError: a setting is not known or out of its range, or the loss is no longer a number (names the epoch and the clips).
    """
    make_optimizer, make_schedule = named("optimizer", config.optimizer, OPTIMIZERS), named("schedule", config.schedule, SCHEDULES)
    _check(config)
    groups = [{"params": part.module.parameters(), "lr": part.learning_rate} for part in parts]
    optimizer = make_optimizer(groups, config)
    schedule = make_schedule(optimizer, config, -(-clips.epoch_size // config.batch_size))
    for epoch in range(config.epochs):
        losses, correct, count = 0.0, 0, 0
        with _training(parts, config.dropout):
            for batch in _batches(clips, config.batch_size, epoch, np.random.default_rng((seed, epoch)), device):
                predicted, labels = scores(batch)
                loss = nn.functional.cross_entropy(predicted, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses += _number(loss, epoch, batch, clips) * len(labels)
                correct += int((predicted.argmax(-1) == labels).sum())
                count += len(labels)
        yield {"loss": losses / count, "accuracy": correct / count}


def _check(config: SupervisedConfig) -> None:
    for key in ("batch_size", "frames"):
        if getattr(config, key) < 1:
            raise InputError(f"{key}={getattr(config, key)} is too small; choose 1 or more")
    for key, value in (("momentum", config.momentum), ("dropout", config.dropout)):
        if value is not None and not 0 <= value < 1:
            raise InputError(f"{key}={value} is out of its range; choose a share from 0 up to but not including 1")
    given = list(config.milestones)
    if given != sorted(set(given)) or any(epoch < 1 for epoch in given):
        raise InputError(f"milestones={given} are no rising epochs from 1 on; give some like [20, 40]")
    if bool(given) != (config.schedule == "step"):
        advice = "give some like [20, 40]" if not given else "only schedule=step has milestones; leave them out"
        raise InputError(f"milestones={given} do not go with schedule={config.schedule}; {advice}")


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


def _batches(clips: ClipSource, size: int, epoch: int, rng: np.random.Generator, device: torch.device) -> Iterator[Batch]:
    for drawn in np.array_split(clips.epoch(epoch, rng), -(-clips.epoch_size // size)):
        if not len(chosen := clips.readable(drawn)):
            continue
        both = [clips.fresh(int(clip), rng) for clip in chosen]
        frames = torch.stack([frames for frames, _ in both]).to(device, non_blocking=True)
        separate = clips.settings.glance_frames > 0
        glance_frames = torch.stack([glanced for _, glanced in both]).to(device, non_blocking=True) if separate else frames
        yield Batch(frames, glance_frames, torch.from_numpy(clips.labels[chosen]).to(device), chosen, rng)


def _number(loss: Tensor, epoch: int, batch: Batch, clips: ClipSource) -> float:
    value = loss.item()
    if not math.isfinite(value):
        names = ", ".join(clips.names[clip] for clip in batch.clips)
        raise InputError(
            f"the loss is {value} in epoch {epoch + 1}, with the clips {names}; "
            "choose a lower learning_rate or head_learning_rate, or look whether these videos are what they should be"
        )
    return value
