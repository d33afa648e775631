"""The epoch loop that the stages 0, 1 and 3 share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from adafocus_env.clips import ClipStore
from agents.config import SupervisedConfig
from classifiers.errors import InputError, named

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": AdamW,
    "sgd": lambda groups, **options: SGD(groups, momentum=0.9, **options),
}
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "one_cycle": lambda optimizer, steps: OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}


@dataclass(frozen=True)
class Batch:
    """Clips of one step, with crops and flips of their own.

    Attributes:
        frames: (B, T, 3, H, W) uint8 on the device.
        labels: (B,) int64 on the device.
        clips: (B,) their numbers.
        rng: for further draws.
    """

    frames: Tensor
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
    clips: ClipStore,
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
        clips: the training clips; each epoch draws a new crop and flip of their stored frames.
        scores: a batch → scores (M, K) and labels (M,).
        config: epochs, optimiser, schedule.
        seed: of the order, the crops and what ``scores`` draws.
        device: where the networks live.

    Raises:
        InputError: the optimiser or the schedule is not known, or a number is too small.
    """
    make_optimizer, make_schedule = named("optimizer", config.optimizer, OPTIMIZERS), named("schedule", config.schedule, SCHEDULES)
    for key in ("batch_size", "frames"):
        if getattr(config, key) < 1:
            raise InputError(f"{key}={getattr(config, key)} is too small; choose 1 or more")
    batches = -(-len(clips) // config.batch_size)
    groups = [{"params": part.module.parameters(), "lr": part.learning_rate} for part in parts]
    optimizer = make_optimizer(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = make_schedule(optimizer, max(1, config.epochs * batches))
    for epoch in range(config.epochs):
        for part in parts:
            part.module.train().requires_grad_(True)
        losses, correct, count = 0.0, 0, 0
        for batch in _batches(clips, config.batch_size, np.random.default_rng((seed, epoch)), device):
            predicted, labels = scores(batch)
            loss = nn.functional.cross_entropy(predicted, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.item() * len(labels)
            correct += int((predicted.argmax(-1) == labels).sum())
            count += len(labels)
        for part in parts:
            part.module.eval().requires_grad_(False)
        yield {"loss": losses / count, "accuracy": correct / count}


def _batches(clips: ClipStore, size: int, rng: np.random.Generator, device: torch.device) -> Iterator[Batch]:
    order = rng.permutation(len(clips))
    for chosen in np.array_split(order, -(-len(clips) // size)):
        frames = torch.stack([clips.fresh(int(clip), rng) for clip in chosen]).to(device, non_blocking=True)
        yield Batch(frames, torch.from_numpy(clips.labels[chosen]).to(device), chosen, rng)
