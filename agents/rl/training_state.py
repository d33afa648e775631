"""A Stable-Baselines3 model on disk at a rollout boundary: what the next start needs to go on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.rl.trust import sign, signed_here
from agents.runs.seeding import random_states, restore_random_states
from classifiers.atomic_files import replacing, write_text
from classifiers.errors import InputError

POINTER = "last.json"
REPLAY = ".replay"


def save_checkpoint(model: BaseAlgorithm, folder: Path, progress: dict[str, Any]) -> None:
    """Saves the model, its replay buffer where it has one, all random states and ``progress`` at the beginning of a rollout.

    Args:
        model: with an environment whose episodes are all at their beginning.
        folder: where the files and their pointer go.
        progress: plain values that the caller wants back.

    Raises:
        InputError: the folder cannot be written; the checkpoint before stays.
    """
    assert model.env is not None
    model.random_states = {  # type: ignore[attr-defined]  # saved with the model's other attributes
        **random_states(),
        "env": model.env.env_method("random_state", indices=[0])[0],
        "actions": model.action_space.np_random.bit_generator.state,  # which values are explored with
    }
    path = folder / f"{_prefix(type(model))}-{model.num_timesteps}.zip"
    with replacing(path) as temporary, temporary.open("wb") as file:
        model.save(file)
    pointer = {"file": path.name, "signature": sign(path)}
    if isinstance(model, OffPolicyAlgorithm):
        with replacing(path.with_suffix(REPLAY)) as temporary, temporary.open("wb") as file:
            model.save_replay_buffer(file)
        pointer["replay_signature"] = sign(path.with_suffix(REPLAY))
    write_text(folder / POINTER, json.dumps({**pointer, **progress}) + "\n")
    for other in folder.glob(f"{_prefix(type(model))}-*"):
        if other.stem != path.stem:
            other.unlink()


def load_checkpoint(
    folder: Path, env: VecEnv, *, device: str, trust: bool, kind: type[BaseAlgorithm] = PPO
) -> tuple[Any, dict[str, Any]] | None:
    """The model that was saved last, set to go on in ``env``, and the caller's progress; None if nothing was saved.

    Args:
        folder: where `save_checkpoint` put it.
        env: the same environment as then.
        device: where the model shall live.
        trust: unpickle files that were not written on this machine.
        kind: the class of the model.

    Raises:
        InputError: the checkpoint is broken, or was not written on this machine and ``trust`` is not given.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    try:
        progress = json.loads(pointer.read_text(encoding="utf-8"))
        path, signature = folder / progress.pop("file"), progress.pop("signature")
        replay = progress.pop("replay_signature", None)
    except (ValueError, KeyError, AttributeError) as problem:
        raise InputError(f"{pointer} cannot be read ({problem!r}); force=true starts the run over") from problem
    check_signed(path, signature, trust=trust)
    if replay is not None:
        check_signed(path.with_suffix(REPLAY), replay, trust=trust)
    model = kind.load(path, env=env, device=device, force_reset=False)
    if replay is not None:
        assert isinstance(model, OffPolicyAlgorithm)
        model.load_replay_buffer(path.with_suffix(REPLAY))
    states = model.random_states  # type: ignore[attr-defined]
    env.env_method("restore_random_state", states["env"], indices=[0])
    model.action_space.np_random.bit_generator.state = states["actions"]
    restore_random_states(states)
    return model, progress


def check_signed(path: Path, signature: str, *, trust: bool) -> None:
    """Checks that a pickle is there and may be read.

    Raises:
        InputError: it is missing, or was not written on this machine and ``trust`` is not given.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; force=true starts the run over")
    if not trust and not signed_here(path, signature):
        raise InputError(
            f"{path} was not written by you on this machine, or was changed since, or the cache folder was removed, which holds the key "
            "that it is signed with. Loading it can run any code that it holds: "
            "trust=true loads it all the same, force=true starts the run over"
        )


def _prefix(kind: type[BaseAlgorithm]) -> str:
    return kind.__name__.lower()
