"""PPO on disk at a rollout boundary: what the next start needs to go on as if nothing had happened."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.trust import sign, signed_here
from classifiers.errors import InputError
from classifiers.files import replacing, write_text

POINTER = "last.json"


def save_checkpoint(model: PPO, folder: Path, progress: dict[str, Any]) -> None:
    """Saves the model, all random states and ``progress`` at the beginning of a rollout.

    Args:
        model: with an environment whose episodes are all at their beginning.
        folder: where the zip and its pointer go.
        progress: plain values that the caller wants back.

    Raises:
        InputError: the folder cannot be written; the checkpoint before stays.
    """
    assert model.env is not None
    model.random_states = {  # type: ignore[attr-defined]  # saved with the model's other attributes
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the source that Stable-Baselines3 draws from)
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "env": model.env.env_method("random_state", indices=[0])[0],
    }
    path = folder / f"ppo-{model.num_timesteps}.zip"
    with replacing(path) as temporary, temporary.open("wb") as file:
        model.save(file)
    write_text(folder / POINTER, json.dumps({"file": path.name, "signature": sign(path), **progress}) + "\n")
    for other in folder.glob("ppo-*.zip"):
        if other != path:
            other.unlink()


def load_checkpoint(folder: Path, env: VecEnv, *, device: str, trust: bool) -> tuple[PPO, dict[str, Any]] | None:
    """The model that was saved last, set to go on in ``env``, and the caller's progress; None if nothing was saved.

    Raises:
        InputError: the checkpoint is broken, or was not written on this machine and ``trust`` is not given.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    try:
        progress = json.loads(pointer.read_text(encoding="utf-8"))
        path, signature = folder / progress.pop("file"), progress.pop("signature")
    except (ValueError, KeyError, AttributeError) as problem:
        raise InputError(f"{pointer} cannot be read ({problem!r}); force=true starts the run over") from problem
    if not path.is_file():
        raise InputError(f"{path} is missing; force=true starts the run over")
    if not trust and not signed_here(path, signature):
        raise InputError(
            f"{path} was not written by you on this machine, or was changed since. Loading it can run any code that it holds: "
            "trust=true loads it all the same, force=true starts the run over"
        )
    model = PPO.load(path, env=env, device=device, force_reset=False)
    states = model.random_states  # type: ignore[attr-defined]
    env.env_method("restore_random_state", states["env"], indices=[0])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    return model, progress
