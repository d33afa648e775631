"""A policy on disk: a folder with `policy.safetensors` and a JSON card. No pickle is written or read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.policies import GlancePolicy, PolicyNetwork
from classifiers.checkpoint import load_tensors, read_json, save_tensors
from classifiers.errors import InputError
from classifiers.files import write_text

WEIGHTS = "policy.safetensors"
CARD = "policy.json"


def save_policy(policy: GlancePolicy, folder: Path | str, about: Mapping[str, Any]) -> None:
    """Writes weights and card, each in one step.

    Args:
        policy: what to save.
        folder: where; made if missing.
        about: what else the card shall say, such as the fingerprint of the classifier that it was trained with.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    save_tensors(policy, folder / WEIGHTS)
    write_text(folder / CARD, json.dumps({"network": policy.card(), **about}, indent=2) + "\n")


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> GlancePolicy:
    """The policy in ``folder``, frozen and in eval mode.

    Raises:
        InputError: the folder is no policy, or its card and weights do not fit together.
    """
    folder = Path(folder)
    sizes: Any = read_json(folder, CARD, f"policy={folder}").get("network")
    try:
        network = {**sizes, "map_shape": tuple(sizes["map_shape"])}
        policy = GlancePolicy(grid=network.pop("grid"), network=PolicyNetwork(**network))
    except (TypeError, KeyError, ValueError, RuntimeError) as problem:
        raise InputError(f"{folder / CARD}: network={sizes!r} does not describe a policy ({problem})") from problem
    load_tensors(policy, folder / WEIGHTS)
    return policy.to(device).eval().requires_grad_(False)
