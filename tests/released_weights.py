"""Weights and inputs that are sampled with seeds made from their names, so that a list of names suffices to make a released checkpoint.

Each list is stored with results (`data/released_*.npz`), which the authors' code computed from the same values, in float32 on a CPU. The
families are "activitynet" and "something" and, for AdaFocusV2, "activitynet_v2" and "something_v2".
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
COUNTER = "num_batches_tracked"
POLICY = "focuser.policy.policy."
# What the authors' results leave to rounding, of the largest value. Glancer, policy and PPO are compared in float64, so that the whole
# difference is the authors' own rounding: up to 1.3e-4, since a trunk with random weights amplifies it. Focuser and head do not: up to
# 3e-6, also in float32 with ATen's default and AVX2 kernels and oneDNN's SSE4.1 and AVX2 ones.
NEAR, ROUNDING = 2e-4, 1e-5
GAINS_V2 = {
    "policy_stn.gru.weight_ih": 4.0, "policy_stn.gru.weight_hh": 1.0, "policy_stn.fc.0.weight": 9.0, "policy_stn.10.weight": 9.0,
    "classifier.classifiers.": 0.1, "CNN_fc.1.weight": 0.1, "new_fc.weight": 0.1,
}  # fmt: skip


def names(family: str = "activitynet") -> dict[str, tuple[tuple[int, ...], float]]:
    """Return shape and 2-norm (of the values of `weight`) of every tensor in the authors' model, by its full name."""
    rows = json.loads(gzip.decompress((DATA / f"released_{family}_names.json.gz").read_bytes()))
    return {name: (tuple(shape), norm) for name, shape, norm in rows}


def results(name: str = "activitynet") -> dict[str, np.ndarray]:
    """Return the results of the authors' code for a family (or "patches"), on a CPU in float32 and eval mode."""
    with np.load(DATA / f"released_{name}.npz") as stored:
        return dict(stored)


def weight(name: str, shape: tuple[int, ...], *, v2: bool = False) -> Tensor:
    """Return the value of one tensor, one sample of a generator seeded by its name. `policy_old` equals `policy`."""
    if name.endswith(COUNTER):
        return torch.zeros(shape, dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32((f"v2:{name}" if v2 else name.replace(".policy_old.", ".policy.")).encode()))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) > 1:
        return normal(shape, generator) * math.sqrt((_gain_v2(name) if v2 else _gain(name)) / math.prod(shape[1:]))
    if name.endswith(".weight"):  # of batch norm; the last one of a residual block is damped
        return (0.8 + 0.4 * torch.rand(shape, generator=generator)) * (0.3 if name.endswith("bn3.weight") else 1.0)
    return (0.1 if name.endswith("running_mean") else 0.05) * normal(shape, generator)


def _gain(name: str) -> float:
    if name in ("classifier.weight", "glancer.net.classifier.weight"):
        return 0.02
    return 0.05 if "classifier.gru.weight_ih" in name else 8.0 if ".actor." in name else 2.0


def _gain_v2(name: str) -> float:
    """Return a gain with which locations spread over the frame and scores stay small."""
    return next((gain for part, gain in GAINS_V2.items() if part in name), 2.0)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Sample the numbers of `torch.randn` with its AVX2 kernel, as for the results, bit-identical for all kernels of CPUs.

    PyTorch's kernels round the angle of the Box-Muller transform differently, so that their samples differ by up to 2e-6.
    """
    size = math.prod(shape)
    if size < 16:
        return torch.randn(shape, generator=generator)
    uniform = torch.rand(size, generator=generator)
    whole = uniform[: size - size % 16].split(1 << 14)  # small parts stay in the cache
    values = torch.cat([*map(_box_muller, whole), torch.empty(size % 16)])
    if size % 16:
        values[-16:] = _box_muller(torch.rand(16, generator=generator))
    return values.view(shape)


def _box_muller(uniform: Tensor) -> Tensor:
    first, second = uniform.view(-1, 2, 8).unbind(1)
    radius, angle = (-2 * torch.log1p(-first.double())).sqrt(), (second * (2 * math.pi)).double()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten().float()


def frames(clips: int, num_frames: int, size: int, seed: int) -> Tensor:
    """Return normalised frames (clips, num_frames, 3, size, size): coarse blocks, whose contrast differs by frame, and fine noise."""
    channels = 3 * num_frames
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (normal((clips, channels, side, side), generator) for side in (7, size))
    contrast = 0.5 + 1.5 * ((torch.arange(channels) // 3 * 5 + 3) % 8).float() / 7
    blocks = coarse.repeat_interleave(size // 7, 2).repeat_interleave(size // 7, 3)
    return (contrast.view(1, -1, 1, 1) * blocks + 0.5 * fine).unflatten(1, (num_frames, 3))


def same_draws(frames: Tensor, first: np.ndarray) -> Tensor:
    """Check that the frames begin like those of the stored results, and return them."""
    assert same_pixels(frames.flatten()[:64], first), "torch draws other numbers here: nothing can be compared"
    return frames


def same_pixels(ours: Tensor, theirs: np.ndarray) -> bool:
    """Return whether frames or patches have the same pixels up to the rounding of `normal`. (Neighbours differ by at least 0.5.)"""
    return np.allclose(ours, theirs, rtol=0, atol=1e-6)


@functools.lru_cache(maxsize=1)  # making one takes seconds, and each takes some hundred megabytes
def tensors_of(family: str = "activitynet") -> dict[str, Tensor]:
    """Return the values of all tensors of a family by name; do not change them."""
    return {name: weight(name, shape) for name, (shape, _) in names(family).items()}


def released(family: str = "activitynet", *, policy: bool = True, drawn: bool = True) -> dict[str, Any]:
    """Return a checkpoint in the format of the authors' code, of stage 2 with a policy, or of stage 1 without one.

    In the ActivityNet family, the focuser has two copies of the policy. If tensors are not ``drawn``, all values are zero, which makes
    them quick to save.
    """
    zero = torch.zeros(())
    tensors = tensors_of(family) if drawn else {name: zero.expand(shape) for name, (shape, _) in names(family).items()}
    own = {name.removeprefix(POLICY): value for name, value in tensors.items() if name.startswith(POLICY)}
    starts = {"glancer": ("glancer.net.", "glancer."), "focuser": ("focuser.net.", "focuser."), "fc": ("classifier.", "classifier.")}
    parts = {part: {n.removeprefix(cut): v for n, v in tensors.items() if n.startswith(start)} for part, (start, cut) in starts.items()}
    if policy and family == "activitynet":
        parts["focuser"] |= {f"policy.{copy}.{name}": value for copy in ("policy", "policy_old") for name, value in own.items()}
    measured = {"acc": np.float64(71.9), "best_acc": torch.tensor(71.9)}
    return {"epoch": 3, **parts, "policy": own if policy else None, "optimizer": None, **measured}


def released_v2(family: str, *, drawn: bool = True, **shapes: tuple[int, ...] | None) -> dict[str, Any]:
    """Return a checkpoint in the format of AdaFocusV2's code, with the prefixes of parallel training.

    ``shapes`` override the shapes of tensors; None drops a tensor. Without ``drawn``, all values are a single expanded zero, for speed.
    """
    wanted = {name: shape for name, (shape, _) in names(family).items()} | shapes
    tensors = {
        f"module.{name}": weight(name, shape, v2=True) if drawn else torch.zeros(()).expand(shape)
        for name, shape in wanted.items()
        if shape is not None
    }
    others = {"epoch": 50, "arch": "resnet50", "optimizer": {}, "best_prec1": torch.tensor(47.0)}
    return {"state_dict": tensors, **(others if family == "something_v2" else {})}


def save(content: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """Write a released file; ``part={...}`` adds entries to a part, or removes them if the value is None."""
    content = dict(content)
    for part, change in changes.items():
        if isinstance(content.get(part), dict) and isinstance(change, dict):
            change = {name: value for name, value in {**content[part], **change}.items() if value is not None}
        content[part] = change
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def parallel(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content as saved by a program that wrapped each part for parallel training."""
    parts = ("glancer", "focuser", "fc", "policy")
    return {**content, **{part: {f"module.{name}": value for name, value in content[part].items()} for part in parts}}


def assert_near(ours: Any, theirs: Any, what: str, near: float = NEAR) -> None:
    """Check that the largest difference is at most ``near`` times the largest value, for each step or clip (axis 0) separately."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, what
    steps = tuple(range(1, theirs.ndim))
    worst = (np.abs(ours - theirs).max(steps) / np.abs(theirs).max(steps)).max()
    assert worst <= near, f"{what} differs by {worst:.1e} of its largest value"
