"""The files of a Stable-Baselines3 model: weights and JSON card of a trained model, and the state of an unfinished training."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from adafocus_env.features.live import Features
from agents.config.settings import AlgoConfig, NetworkConfig
from agents.policies.networks import CARD as POLICY_CARD
from agents.policies.networks import PolicyNetwork, load_policy
from agents.policies.sb3 import bind
from agents.rl.algorithms import Interface, rebuild_model
from agents.rl.model_state import MisfitError, State, add_values, model_state, restore_model, values_of
from agents.runs.seeding import random_states, restore_random_states
from classifiers.atomic_files import write_text
from classifiers.checkpoint import CHECKSUM, from_fields, read_json
from classifiers.errors import InputError, refuse_if

WEIGHTS, CARD = "model.safetensors", "model.json"
KNOWN_PACKAGES = ("stable_baselines3", "sb3_contrib", "agents")
"""A card may name classes of these packages. Classes of other modules are used only if the user has named the module."""


class TrainedModel:
    """A trained model and the name of its observation.

    Args:
        model: a model of Stable-Baselines3, or one with the same interface.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`.
    """

    def __init__(self, model: BaseAlgorithm, observation: str) -> None:
        self.model, self.observation, self.action_space = model, observation, model.action_space

    def on(self, features: Features) -> "TrainedModel":
        """Bind the model to the clips of ``features`` until the next call, and return it as a policy."""
        bind(self.model.policy, features, cache=True)
        return self

    @property
    def predict(self) -> Callable[..., tuple[Any, Any]]:
        """The method `predict` of the model, which returns actions and the next state. (MaskablePPO's also takes ``action_masks``.)"""
        return self.model.predict


Policy = PolicyNetwork | TrainedModel


@dataclass(frozen=True)
class ModelCard:
    """The card of a model, from which the model can be rebuilt.

    Attributes:
        algo: a name in `agents.rl.algorithms.ALGORITHMS` or the dotted path of a class.
        observation: a name in `adafocus_env.observation.OBSERVATIONS`.
        classifier: fingerprint of the classifier that the model was trained on.
        interface: interface of the training environment.
        settings: arguments of the constructor, as plain values.
        network: network of the policy, if the policy reads glances by reference.
        metrics: metrics of the model.
        steps: number of environment steps before the model was saved.
    """

    algo: str
    observation: str
    classifier: str
    interface: Interface
    settings: dict[str, Any]
    network: NetworkConfig
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def to_json(self) -> str:
        """Return the content of the card's file."""
        plain = {**asdict(replace(self, interface=None)), "interface": {**vars(self.interface)}}  # type: ignore[arg-type]  # filled at once
        for name in ("observation_space", "action_space"):
            plain["interface"][name] = space_to_json(getattr(self.interface, name))
        return json.dumps(plain, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "ModelCard":
        """Return the card in a folder.

        Raises:
            InputError: if there is no card, if the card was written by an earlier version, or if it does not describe a model.
        """
        card, path = read_json(folder, CARD, f"model={folder}"), folder / CARD
        refuse_if(
            "signature" in card, f"{path} was written by an earlier version, whose models are not read; train it again with force=true"
        )
        try:
            for name, kind in (("algo", str), ("observation", str), ("classifier", str), ("settings", dict)):
                refuse_if(not isinstance(card[name], kind), TypeError(f"{name} is a {type(card[name]).__name__}, not a {kind.__name__}"))
            about = {**card["interface"], "map_shape": tuple(card["interface"]["map_shape"])}
            about |= {name: space_from_json(about[name]) for name in ("observation_space", "action_space")}
            network = from_fields(NetworkConfig, {"name": "published", **card["network"]}, path)  # the only kind in earlier versions
            return cls(**{**card, "interface": Interface(**about), "network": network})
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"{path} does not describe a model ({problem!r})") from problem


def save_model(model: BaseAlgorithm, folder: Path, card: ModelCard) -> None:
    """Write the card of a model, and the state of the model without its replay buffer.

    Args:
        model: the model to save. Attributes that cannot be stored are omitted.
        folder: the destination; created if missing.
        card: describes how the model was built.

    Raises:
        InputError: if the folder cannot be written.
    """
    model_state(model, buffers=False).write(folder / WEIGHTS)
    write_text(folder / CARD, card.to_json())


def load_model(folder: Path, device: torch.device | str) -> TrainedModel:
    """Build the model that the card in ``folder`` describes, and load its weights.

    Raises:
        InputError: if there is no model, if its class is in a module that the user has not named, if the class cannot be imported, or if
            card and weights do not match.
    """
    card = ModelCard.read(folder)
    module = card.algo.rpartition(".")[0]
    refuse_if(
        module and module.split(".")[0] not in KNOWN_PACKAGES and module not in sys.modules,  # a plugin has been imported before
        f"{folder / CARD} names the class {card.algo}; its module is imported only if you say so: add plugin={module}",
    )
    config = AlgoConfig(name=card.algo, observation=card.observation, settings=card.settings)
    state = State.read(folder / WEIGHTS)
    try:
        model = rebuild_model(card.interface, config, card.network, str(device))
    except (TypeError, AssertionError, KeyError, RuntimeError) as problem:
        raise InputError(f"{folder / CARD} does not describe a model ({problem!r})") from problem
    try:
        restore_model(model, state)
    except MisfitError as problem:
        raise InputError(f"{folder / WEIGHTS} does not fit {CARD}: {problem}; train or copy the model again") from problem
    return TrainedModel(model, card.observation)


def load_trained(folder: Path, device: torch.device | str) -> Policy:
    """Load the policy in ``folder``: the network of PPO, or the model of another algorithm. Raise the same errors as `load_model`."""
    return load_model(folder, device) if (folder / CARD).is_file() else load_policy(folder, device)


def selection_of(folder: Path) -> dict[str, Any]:
    """Return the entries ``steps``, ``epoch`` and ``metrics`` of the card in ``folder``.

    ``steps`` or ``epoch`` states when the policy was selected, and ``metrics`` are its validation metrics.

    Entries that the card does not have are left out.

    Raises:
        InputError: if there is no policy.
    """
    card = read_json(folder, CARD if (folder / CARD).is_file() else POLICY_CARD, f"policy={folder}")
    return {key: card[key] for key in ("steps", "epoch", "metrics") if key in card}


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as plain values.

    Raises:
        InputError: if the space is neither Discrete, Box nor a Dict of these.
    """
    match space:
        case spaces.Discrete():
            return {"discrete": int(space.n), "start": int(space.start)}
        case spaces.Box():
            low, high = (bound.flat[0].item() if (bound == bound.flat[0]).all() else bound.tolist() for bound in (space.low, space.high))
            return {"box": list(space.shape), "low": low, "high": high, "dtype": str(space.dtype)}
        case spaces.Dict():
            return {"dict": {name: space_to_json(each) for name, each in space.items()}}
    raise InputError(f"the space {space} cannot be saved; observations and actions must be of Discrete, Box or Dict spaces")


def space_from_json(stored: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_to_json` stored.

    Raises:
        KeyError: if an entry is missing.
    """
    if "discrete" in stored:
        return spaces.Discrete(stored["discrete"], start=stored["start"])
    if "box" in stored:
        dtype, shape = np.dtype(stored["dtype"]), tuple(stored["box"])
        low, high = (np.broadcast_to(np.array(stored[key], dtype), shape).copy() for key in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    return spaces.Dict({name: space_from_json(each) for name, each in stored["dict"].items()})


POINTER, SUFFIX = "last.json", ".safetensors"
FORMAT = 2  # of `last.json`; earlier versions wrote no format and no checksum
START_OVER = "force=true starts the run over"


def save_training_state(model: BaseAlgorithm, folder: Path, progress: Mapping[str, Any], random: Mapping[str, Any] | None = None) -> None:
    """Save the model with its replay buffer, all random states and ``progress``, as tensors and plain values.

    Args:
        model: the model at the start of a rollout, when all episodes of its environment have just begun.
        folder: folder for the state, and for the file `last.json`, which names the state.
        progress: plain values of the caller, which `load_training_state` returns.
        random: the random states to save (see `agents.runs.seeding.random_states`); None: the current random states.

    Raises:
        InputError: if the folder cannot be written. In this case, the state that was saved before stays unchanged.
    """
    assert model.env is not None
    state = model_state(model)
    add_values(state, "random", {
        "process": random or random_states(),
        "env": model.env.env_method("random_state", indices=[0])[0],
        "actions": model.action_space.np_random.bit_generator.state,  # random state of exploratory actions
    })  # fmt: skip
    prefix = type(model).__name__.lower()
    path = folder / f"{prefix}-{model.num_timesteps}{SUFFIX}"
    state.write(path)
    content = {"format": FORMAT, "file": path.name, **progress}
    write_text(folder / POINTER, json.dumps({**content, CHECKSUM: _checksum(content)}) + "\n")
    for other in folder.glob(f"{prefix}-*{SUFFIX}"):
        if other != path:
            other.unlink()


def read_pointer(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path of the last saved training state and the caller's progress.

    Raises:
        InputError: if the file `last.json` is missing or damaged.
    """
    pointer = folder / POINTER
    try:
        content: dict[str, Any] = json.loads(pointer.read_text(encoding="utf-8"))
        checksum, wrong = content.pop(CHECKSUM, None), "its checksum is wrong: some of its bytes have changed"
        refuse_if((checksum or "format" in content) and checksum != _checksum(content), wrong)  # files of earlier versions have neither
        content.pop("format", None)
        path = folder / (name := content.pop("file"))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as problem:
        reason = problem if isinstance(problem, InputError) else repr(problem)
        raise InputError(f"{pointer} cannot be read ({reason}); {START_OVER}") from problem
    refuse_if(path.name != name, f"{pointer} must name a file beside it, got {name!r}; {START_OVER}")
    return path, content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_training_state(model: BaseAlgorithm, folder: Path) -> dict[str, Any] | None:
    """Restore the last saved training state: load it into a new model, and restore all random states.

    Args:
        model: a model of the same class and settings, with the same environment.
        folder: folder of the state, as in `save_training_state`.

    Returns:
        The caller's progress, or None if nothing was saved.

    Raises:
        InputError: if the state is damaged, was written by an earlier version, or belongs to another model.
    """
    if not (folder / POINTER).exists():
        return None
    path, progress = read_pointer(folder)
    refuse_if(path.suffix != SUFFIX, f"{path} was written by an earlier version, whose training states are not read; {START_OVER}")
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
    model.env.unwrapped._reset_seeds()  # drop the seeds that the constructor set for the first reset
    model.action_space.np_random.bit_generator.state = random["actions"]
    restore_random_states(random["process"])
    return progress


def unsaved_attributes(model: BaseAlgorithm) -> list[str]:
    """Return the attributes that cannot be saved, as texts ``NAME (CLASS)``.

    These attributes are neither tensors, nor plain values, nor objects with a state dict.
    """
    return model_state(model).unsaved


def why_not_resumable(model: BaseAlgorithm) -> str:
    """Return the reason why a run of this model cannot be resumed; empty if it can be resumed."""
    unsaved = ", ".join(unsaved_attributes(model))
    reason = (
        f"this run cannot be resumed: {type(model).__name__} has attributes that cannot be saved, {unsaved}; "
        "make them tensors or plain values, or give their classes state_dict and load_state_dict"
    )
    return reason if unsaved else ""
