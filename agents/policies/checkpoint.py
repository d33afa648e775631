"""A policy on disk: a folder with `policy.safetensors` and the JSON card `policy.json`. No pickle is written or read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers.atomic_files import write_text
from classifiers.checkpoint import load_tensors, read_json, save_tensors
from classifiers.errors import InputError

WEIGHTS = "policy.safetensors"
CARD = "policy.json"


def save_policy(policy: PolicyNetwork, folder: Path | str, about: Mapping[str, Any]) -> None:
    """Write weights and card, both atomically.

    Args:
        policy: what to save.
        folder: the destination; made if missing.
        about: further entries of the card, such as the fingerprint of the classifier that the policy was trained with.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    save_tensors(policy, folder / WEIGHTS)
    write_text(folder / CARD, json.dumps({"network": policy.card(), **about}, indent=2) + "\n")


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> PolicyNetwork:
    """Return the policy in ``folder``, frozen and in eval mode.

    Raises:
        InputError: if the folder does not hold a policy, or its card and weights do not match.
    """
    folder = Path(folder)
    card: Any = read_json(folder, CARD, f"policy={folder}").get("network")
    try:
        sizes = {**card, "map_shape": tuple(card["map_shape"])}
        arguments = {"grid": sizes.pop("grid"), **{key: sizes.pop(key) for key in ("std", "skips", "keep_threshold") if key in sizes}}
        policy = PolicyNetwork(PolicyArchitecture(**sizes), **arguments)
    except (TypeError, KeyError, ValueError, RuntimeError) as problem:
        raise InputError(f"{folder / CARD}: network={card!r} does not describe a policy ({problem})") from problem
    load_tensors(policy, folder / WEIGHTS)
    return policy.to(device).eval().requires_grad_(False)
