"""The state of a training between two rollouts on disk: what the next start needs to go on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.rl.model_state import MisfitError, State, add_values, model_state, restore_model, values_of
from agents.runs.seeding import random_states, restore_random_states
from classifiers.atomic_files import write_text
from classifiers.errors import InputError

POINTER, SUFFIX = "last.json", ".safetensors"
START_OVER = "force=true starts the run over"


def save_training_state(model: BaseAlgorithm, folder: Path, progress: Mapping[str, Any], random: Mapping[str, Any] | None = None) -> None:
    """Save the model with its replay buffer, all random states and ``progress``, as tensors and plain values.

    Args:
        model: at the start of a rollout, with an environment whose episodes are all at their beginning.
        folder: where the file and its pointer go.
        progress: plain values that the caller wants back.
        random: the process's random states if they are not the present ones, see `agents.runs.seeding.random_states`.

    Raises:
        InputError: if the folder cannot be written; the state saved before is left as it was.
    """
    assert model.env is not None
    state = model_state(model)
    add_values(state, "random", {
        "process": random or random_states(),
        "env": model.env.env_method("random_state", indices=[0])[0],
        "actions": model.action_space.np_random.bit_generator.state,  # of the actions to explore with
    })  # fmt: skip
    prefix = type(model).__name__.lower()
    path = folder / f"{prefix}-{model.num_timesteps}{SUFFIX}"
    state.write(path)
    write_text(folder / POINTER, json.dumps({"file": path.name, **progress}) + "\n")
    for other in folder.glob(f"{prefix}-*{SUFFIX}"):
        if other != path:
            other.unlink()


def load_training_state(model: BaseAlgorithm, folder: Path) -> dict[str, Any] | None:
    """Restore the state that was saved last into a new model, and all random states; return the caller's progress.

    Args:
        model: of the same class and settings, with the same environment.
        folder: where `save_training_state` put it.

    Returns:
        The progress, or None if nothing was saved.

    Raises:
        InputError: if the state is damaged, of an earlier version, or of another model.
    """
    if not (folder / POINTER).exists():
        return None
    path, progress = _pointer(folder / POINTER)
    try:
        state = State.read(path)
        restore_model(model, state)
        random = values_of(state, "random")
    except InputError as problem:
        raise InputError(f"{problem}; {START_OVER}") from problem
    except MisfitError as problem:
        raise InputError(f"{path} does not fit this run: {problem}; {START_OVER}") from problem
    assert model.env is not None
    model.env.env_method("restore_random_state", random["env"], indices=[0])
    model.env.unwrapped._reset_seeds()  # which the constructor has set for the next reset: it was long ago
    model.action_space.np_random.bit_generator.state = random["actions"]
    restore_random_states(random["process"])
    return progress


def unsaved_attributes(model: BaseAlgorithm) -> list[str]:
    """Return the attributes, as ``NAME (CLASS)``, that are neither tensors, plain values nor objects with a state dict."""
    return model_state(model).unsaved


def why_not_resumable(model: BaseAlgorithm) -> str:
    """Return why a run of this model cannot be resumed; empty if it can."""
    if not (unsaved := unsaved_attributes(model)):
        return ""
    return (
        f"this run cannot be resumed: {type(model).__name__} has attributes that cannot be saved, {', '.join(unsaved)}; "
        "make them tensors or plain values, or give their classes state_dict and load_state_dict"
    )


def _pointer(pointer: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path of the state and the progress."""
    try:
        progress = json.loads(pointer.read_text(encoding="utf-8"))
        path = pointer.parent / progress.pop("file")
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise InputError(f"{pointer} cannot be read ({problem!r}); {START_OVER}") from problem
    if path.suffix != SUFFIX:
        raise InputError(f"{path} was written by an earlier version, whose training states are not read; {START_OVER}")
    return path, progress
