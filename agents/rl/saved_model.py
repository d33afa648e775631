"""A trained Stable-Baselines3 model as a policy that can be evaluated, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from adafocus_env.features.live import Features
from agents.policies.sb3 import bind
from agents.rl.algorithms import class_of
from agents.rl.training_state import check_signed
from agents.rl.trust import sign
from classifiers.atomic_files import replacing, write_text
from classifiers.checkpoint import read_json
from classifiers.errors import InputError

ZIP, CARD = "model.zip", "model.json"


class TrainedModel:
    """A model that is no longer trained, and what it has to be shown.

    Args:
        model: of Stable-Baselines3 or in its manner.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`.
    """

    def __init__(self, model: BaseAlgorithm, observation: str) -> None:
        self.model, self.observation, self.action_space = model, observation, model.action_space

    def on(self, features: Features) -> TrainedModel:
        """Itself, as a policy for the clips of ``features``, until it is asked for those of others."""
        bind(self.model.policy, features, cache=True)
        return self

    @property
    def predict(self) -> Callable[..., tuple[Any, Any]]:
        """The model's own: actions and the next recurrent state. That of MaskablePPO takes ``action_masks`` too."""
        return self.model.predict


def save_model(model: BaseAlgorithm, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes Stable-Baselines3's zip and a card that vouches for it.

    Args:
        model: what to save.
        folder: where; made if missing.
        about: what the card shall say: ``algo``, ``observation``, and whatever else is to be known.

    Raises:
        InputError: the folder cannot be written.
    """
    path = folder / ZIP
    with replacing(path) as temporary, temporary.open("wb") as file:
        model.save(file)
    write_text(folder / CARD, json.dumps({"signature": sign(path), **about}, indent=2) + "\n")


def load_model(folder: Path, device: torch.device | str, *, trust: bool = False) -> TrainedModel:
    """The model in ``folder``. It is unpickled, so that one from another machine is read only if it is trusted.

    Raises:
        InputError: there is none, its class cannot be imported, or it was not written on this machine and ``trust`` is not given.
    """
    card: Any = read_json(folder, CARD, f"model={folder}")
    try:
        kind, observation, signature = class_of(card["algo"]), card["observation"], card["signature"]
    except (KeyError, TypeError) as problem:
        raise InputError(f"{folder / CARD} does not describe a model ({problem!r})") from problem
    check_signed(folder / ZIP, signature, trust=trust)
    return TrainedModel(kind.load(folder / ZIP, device=device), observation)
