"""Optimisers and learning-rate schedules of the supervised stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from agents.config.settings import SupervisedConfig

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], SupervisedConfig], Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, config.learning_rate, weight_decay=config.weight_decay),
    "sgd": lambda groups, config: SGD(groups, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay),
}
"""Parameter groups, with their learning rates, and settings → optimiser."""

SCHEDULES: dict[str, Callable[[Optimizer, SupervisedConfig, int], LRScheduler]] = {
    "one_cycle": lambda optimizer, config, batches: OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(1, config.epochs * batches),
        cycle_momentum=config.optimizer != "sgd",  # SGD keeps the momentum that was set
    ),
    "cosine": lambda optimizer, config, batches: CosineAnnealingLR(optimizer, max(1, config.epochs * batches)),
    "step": lambda optimizer, config, batches: MultiStepLR(optimizer, [epoch * batches for epoch in config.milestones], 0.1),
}
"""Optimiser, settings and batches per epoch → schedule that is stepped after every batch."""
