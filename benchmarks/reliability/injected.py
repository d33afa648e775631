"""Faults that are injected into a child before its command starts: losses that become NaN, and permissions that root obeys."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch

BATCHES = 4  # losses that are right before the first that is NaN
_DAC_OVERRIDE = 1  # the capability by which root ignores permissions
_CAPABILITY_VERSION = 0x20080522
_PR_CAPBSET_DROP = 24


def nan_in_value_loss() -> None:
    """Make the loss of PPO's value function NaN."""
    _poison("mse_loss")


def nan_in_q_loss() -> None:
    """Make the loss of DQN NaN."""
    _poison("smooth_l1_loss")


def nan_in_cross_entropy() -> None:
    """Make the loss of supervised training NaN."""
    _poison("cross_entropy")


def _poison(name: str) -> None:
    """Make a loss of `torch.nn.functional` NaN from the call number `BATCHES` + 1 on."""
    real: Callable[..., torch.Tensor] = getattr(torch.nn.functional, name)
    calls = 0

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments, **options) * (float("nan") if calls > BATCHES else 1)

    setattr(torch.nn.functional, name, poisoned)


def obey_permissions() -> None:
    """Give up the right of root to write to read-only folders, in this process and its children. Other users do not have it."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.prctl(_PR_CAPBSET_DROP, _DAC_OVERRIDE, 0, 0, 0) or libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "cannot give up a capability")
    sets[0] &= ~(1 << _DAC_OVERRIDE)  # of the effective and the permitted set
    sets[1] &= ~(1 << _DAC_OVERRIDE)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "cannot give up a capability")
