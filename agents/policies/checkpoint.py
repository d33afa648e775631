"""A policy on disk: a folder with `policy.safetensors` and a JSON card. No pickle is written or read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.policies.networks import CARD, WEIGHTS, save_policy
from agents.policies.sb3 import GlancePolicy, PolicyArchitecture
from classifiers.checkpoint import load_tensors, read_json
from classifiers.errors import InputError

__all__ = ["CARD", "WEIGHTS", "load_policy", "save_policy"]


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> GlancePolicy:
    """The policy in ``folder``, frozen and in eval mode.

    Raises:
        InputError: the folder is no policy, or its card and weights do not fit together.
    """
    folder = Path(folder)
    sizes: Any = read_json(folder, CARD, f"policy={folder}").get("network")
    try:
        network = {**sizes, "map_shape": tuple(sizes["map_shape"])}
        about = {"grid": network.pop("grid"), **{key: network.pop(key) for key in ("std", "skips", "keep_threshold") if key in network}}
        policy = GlancePolicy(PolicyArchitecture(**network), **about)
    except (TypeError, KeyError, ValueError, RuntimeError) as problem:
        raise InputError(f"{folder / CARD}: network={sizes!r} does not describe a policy ({problem})") from problem
    load_tensors(policy, folder / WEIGHTS)
    return policy.to(device).eval().requires_grad_(False)
