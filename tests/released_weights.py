"""Weights and inputs that are drawn from their names, so that a released checkpoint can be made anywhere from a list of names.

The results that were stored beside the list (`data/released_activitynet.npz`) were computed by the authors' code from these very values.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
COUNTER = "num_batches_tracked"
POLICY = "focuser.policy.policy."


def names() -> dict[str, tuple[tuple[int, ...], float]]:
    """Every tensor of the authors' model by its full name: shape, and the 2-norm of the values that `weight` gives it."""
    rows = json.loads(gzip.decompress((DATA / "released_activitynet_names.json.gz").read_bytes()))
    return {name: (tuple(shape), norm) for name, shape, norm in rows}


def results() -> dict[str, np.ndarray]:
    """What the authors' code computed, on a CPU in float32 and eval mode."""
    with np.load(DATA / "released_activitynet.npz") as stored:
        return dict(stored)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one tensor: one generator, seeded by its name, and one draw. `policy_old` holds what `policy` holds."""
    if name.endswith(COUNTER):
        return torch.zeros(shape, dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32(name.replace(".policy_old.", ".policy.").encode()))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) > 1:
        gain = 0.05 if "classifier.gru.weight_ih" in name else 8.0 if ".actor." in name else 2.0
        return torch.randn(shape, generator=generator) * math.sqrt(gain / math.prod(shape[1:]))
    if name.endswith(".weight"):  # of batch norm; the last one of a residual block is damped
        return (0.8 + 0.4 * torch.rand(shape, generator=generator)) * (0.3 if name.endswith("bn3.weight") else 1.0)
    return (0.1 if name.endswith("running_mean") else 0.05) * torch.randn(shape, generator=generator)


def frames(clips: int, num_frames: int, size: int, seed: int) -> Tensor:
    """Normalised frames (clips, num_frames, 3, size, size): coarse blocks whose contrast differs by frame, and fine noise."""
    channels = 3 * num_frames
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(clips, channels, 7, 7, generator=generator)
    fine = torch.randn(clips, channels, size, size, generator=generator)
    contrast = 0.5 + 1.5 * ((torch.arange(channels) // 3 * 5 + 3) % 8).float() / 7
    blocks = coarse.repeat_interleave(size // 7, 2).repeat_interleave(size // 7, 3)
    return (contrast.view(1, -1, 1, 1) * blocks + 0.5 * fine).unflatten(1, (num_frames, 3))


def released(*, policy: bool = True) -> dict[str, object]:
    """A checkpoint as the authors' code saves it: of stage 2 with a policy, of stage 1 without."""
    tensors = {name: weight(name, shape) for name, (shape, _) in names().items()}
    own = {name: value for name, value in tensors.items() if name.startswith(POLICY)}
    if policy:
        tensors |= {name.replace("policy.policy.", "policy.policy_old."): value for name, value in own.items()}
    else:
        tensors = {name: value for name, value in tensors.items() if name not in own}
    starts = {"glancer": "glancer.", "focuser": "focuser.", "fc": "classifier.", "policy": POLICY}
    parts = {part: {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)} for part, start in starts.items()}
    measured = {"acc": np.float64(71.9), "best_acc": torch.tensor(71.9)}
    return {"epoch": 3, **parts, "policy": parts["policy"] or None, "optimizer": None, **measured}
