"""Store the state of a Stable-Baselines3 model as tensors and plain values, and restore it in a new model with the same settings."""

import functools
import json
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from torch import Tensor, nn

from classifiers.atomic_files import replacing
from classifiers.checkpoint import read_checked, write_checked
from classifiers.errors import InputError, refuse_if

REBUILT_NAMES = frozenset({
    "env", "_vec_normalize_env", "policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs", "tensorboard_log",
    "start_time", "_num_timesteps_at_start", "_logger",
})  # fmt: skip
"""Attributes of a model that its constructor or `learn` sets again in every process."""

REBUILT_TYPES = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, torch.device, torch.dtype,
    spaces.Space, RolloutBuffer,
)  # fmt: skip
"""Types of values that the constructor sets and training does not change. (A rollout buffer is empty between two rollouts.)"""

RANDOM: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], object]]] = {
    np.random.Generator: (lambda source: source.bit_generator.state, lambda source, state: setattr(source.bit_generator, "state", state)),
    np.random.RandomState: (lambda source: source.get_state(legacy=False), lambda source, state: source.set_state(state)),
    random.Random: (lambda source: source.getstate(), lambda source, state: source.setstate(state)),
    torch.Generator: (lambda source: source.get_state(), lambda source, state: source.set_state(state)),
}
"""For every type of random number generator, the functions that read and restore its state."""

REBUILT: dict[str, None] = {"rebuilt": None}
VALUES = "values"


class UnsavedError(Exception):
    """Raised if a value is neither a tensor nor a plain value."""


class MisfitError(Exception):
    """Raised if a stored state does not belong to the model."""


@dataclass
class State:
    """The state of a model: plain values (JSON), and tensors to which these values refer by name.

    Attributes:
        values: nested dictionaries and lists.
        tensors: contiguous tensors on the CPU. Tensors made from NumPy arrays share memory with the model if possible.
        unsaved: attributes that could not be stored, as ``NAME (CLASS)``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unsaved: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write everything to one safetensors file, with the plain values as its metadata.

        Raises:
            InputError: if the file cannot be written. An existing file then stays unchanged.
        """
        with replacing(path) as temporary:
            write_checked(self.tensors, temporary, {VALUES: json.dumps(self.values)})

    @classmethod
    def read(cls, path: Path) -> "State":
        """Read a file that `write` wrote.

        Raises:
            InputError: if the file is missing or damaged.
        """
        refuse_if(not path.is_file(), f"{path} is missing")
        try:
            tensors, metadata = read_checked(path)
            return cls(json.loads(metadata[VALUES]), tensors)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as problem:
            raise InputError(f"{path} is not a readable safetensors file with a model's state ({problem})") from problem


def model_state(model: BaseAlgorithm, *, buffers: bool = True) -> State:
    """Return everything that training changes in a model: parameters, optimizers, counters, replay buffer and so on.

    Args:
        model: the model, between two rollouts.
        buffers: whether to store replay buffers.
    """
    writer = _Writer(State(), buffers=buffers)
    attributes: dict[str, Any] = {}
    names = [name for name in vars(model) if name not in REBUILT_NAMES]
    for name in sorted(names, key=lambda name: name != "policy"):  # policy first: other attributes hold parts of it
        visited = writer.visited.copy()
        try:
            attributes[name] = writer.store(vars(model)[name], name)
        except (UnsavedError, RecursionError):
            writer.visited = visited
            writer.state.unsaved.append(f"{name} ({type(vars(model)[name]).__name__})")
    writer.state.values |= {"class": type(model).__name__, "model": attributes}
    return writer.state


def add_values(state: State, name: str, values: Mapping[str, Any]) -> None:
    """Add tensors, arrays and plain values to a state, under a name."""
    state.values[name] = _Writer(state).store(dict(values), f":{name}")  # attributes cannot have such a name


def values_of(state: State, name: str) -> Any:
    """Return the values that `add_values` added, with tensors on the CPU."""
    return _Reader(state, torch.device("cpu")).restore(None, state.values[name], name)


def restore_model(model: BaseAlgorithm, state: State) -> None:
    """Restore a state in a new model of the same class and settings, in place.

    Raises:
        MisfitError: if the state belongs to another model. The message names the attribute that differs.
    """
    if (saved := state.values["class"]) != type(model).__name__:
        raise MisfitError(f"it is of a {saved}, the model is a {type(model).__name__}")
    reader = _Reader(state, model.device)
    for name, stored in state.values["model"].items():
        setattr(model, name, reader.restore(getattr(model, name, None), stored, name))


class _Writer:
    """A writer that converts values to JSON, and stores their tensors and arrays as entries of a state."""

    def __init__(self, state: State, *, buffers: bool = True) -> None:
        self.state, self._buffers = state, buffers
        self.visited: set[int] = set()
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()
        self._alive: list[Tensor] = []

    def store(self, value: Any, path: str) -> Any:
        """Return the JSON for a value.

        Raises:
            UnsavedError: if the value has a type that cannot be stored.
        """
        match value:
            case Tensor():
                return {"tensor": self._add(value, path)}
            case np.ndarray():
                return {"array": self._add(value, path)}
            case Enum():
                return {"enum": value.name}
            case np.integer() | np.floating() | np.bool_():
                return {"scalar": [value.dtype.str, value.item()]}
            case None | bool() | int() | float() | str():
                return value
            case _ if isinstance(value, REBUILT_TYPES) or id(value) in self.visited or _is_schedule(value):
                return REBUILT
            case dict() if type(value) in (dict, OrderedDict) and all(type(key) in (str, int, float, bool) for key in value):
                pairs = [[key, self.store(each, f"{path}.{key}")] for key, each in value.items()]
                return {"dict" if type(value) is dict else "ordered": pairs}
            case tuple() | list() | deque() if isinstance(value, tuple) or type(value) in (list, deque):
                return self._store_sequence(value, path)
        return self._store_object(value, path)

    def _store_sequence(self, value: Any, path: str) -> dict[str, Any]:
        items = [self.store(each, f"{path}.{index}") for index, each in enumerate(value)]
        match value:
            case deque():
                return {"deque": items, "maxlen": value.maxlen}
            case list():
                return {"list": items}
        return {"tuple": items, "class": type(value).__name__} if hasattr(value, "_fields") else {"tuple": items}

    def _store_object(self, value: Any, path: str) -> dict[str, Any]:
        self.visited.add(id(value))
        get_state = next((get for kind, (get, _) in RANDOM.items() if isinstance(value, kind)), None)
        match value:
            case nn.Module():
                self.visited.update(map(id, value.modules()))
                optimizers = {name: self.store(each, f"{path}.{name}") for name, each in _stateful_attributes(value)}
                return {"module": self.store(dict(value.state_dict()), path), "optimizers": optimizers}
            case _ if has_state(value):
                return {"state": self.store(value.state_dict(), path)}
            case _ if get_state is not None:
                return {"random": self.store(get_state(value), path), "class": type(value).__name__}
            case BaseBuffer() if not self._buffers:
                return REBUILT
            case BaseBuffer() | ActionNoise():
                stored = {name: self.store(each, f"{path}.{name}") for name, each in vars(value).items()}
                return {"class": type(value).__name__, "attributes": stored}
        raise UnsavedError(path)

    def _add(self, value: Tensor | np.ndarray, path: str) -> str:
        """Add a tensor and return the name of its entry. A tensor that is added twice is stored once."""
        try:
            tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements=["C", "W"]))
            memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        except (TypeError, ValueError, RuntimeError) as problem:  # strings, objects, sparse tensors
            raise UnsavedError(path) from problem
        if tensor.is_complex():  # safetensors has no complex types
            raise UnsavedError(path)
        self._alive.append(tensor)  # otherwise, its memory could be freed and reused by another tensor
        name = self._names.get(memory)
        if name is None or not tensor.numel():
            name = self._names[memory] = path
            tensor = tensor.cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            self.state.tensors[path] = tensor.clone() if storage in self._storages else tensor
            self._storages.add(storage)
        return name


class _Reader:
    """A reader that restores values from a state.

    Objects are updated in place. A tensor that several objects shared is shared by them again.
    """

    def __init__(self, state: State, device: torch.device) -> None:
        self._saved, self._device = state, device
        self._restored: dict[str, Tensor] = {}

    def restore(self, current: Any, stored: Any, path: str) -> Any:
        """Return the restored value of the attribute ``path``.

        Args:
            current: the current value, which is updated in place if it is an object with a state.
            stored: the JSON that `_Writer.store` returned.
            path: name of the attribute, for error messages.

        Raises:
            MisfitError: if the class or shape of the current value differs from that of the stored value.
        """
        if not isinstance(stored, dict):
            return stored
        if stored == REBUILT and current is None:
            raise MisfitError(f"{path} is missing: the constructor does not set it")
        try:
            return self._value(current, stored, path)
        except (AttributeError, RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise MisfitError(f"{path} ({type(current).__name__}) differs: {str(problem).splitlines()[0]}") from problem

    def _value(self, current: Any, stored: dict[str, Any], path: str) -> Any:
        """Return the value that `_Writer` stored in the form of this dictionary."""
        match stored:
            case {"enum": name}:
                return type(current)[name]
            case {"scalar": [kind, value]}:
                return np.dtype(kind).type(value)
            case {"array": name}:
                return self._saved.tensors[name].numpy().copy()
            case {"tensor": name}:
                return self._tensor(current, name)
            case {"dict": pairs}:
                return self._dict(current, pairs, path)
            case {"ordered": pairs}:
                return OrderedDict(self._dict(current, pairs, path))
            case {"deque": values, "maxlen": length}:
                return deque(self._items(current, values, path), length)
            case {"list": values}:
                return self._items(current, values, path)
            case {"tuple": values}:
                items = self._items(current, values, path)
                return _checked(current, stored)(*items) if "class" in stored else tuple(items)
            case {"random": state}:
                kind = _checked(current, stored)
                next(restore for each, (_, restore) in RANDOM.items() if issubclass(kind, each))(current, self._plain(state, path))
            case {"state": state}:
                current.load_state_dict(self._plain(state, path))
            case {"module": state, "optimizers": optimizers}:
                self._fill_module(current, state, optimizers, path)
            case {"attributes": attributes}:
                return self._fill_attributes(current, stored, attributes, path)
        return current

    def _dict(self, current: Any, pairs: list[Any], path: str) -> dict[Any, Any]:
        now = current if isinstance(current, dict) else {}
        return {key: self.restore(now.get(key), each, f"{path}.{key}") for key, each in pairs}

    def _items(self, current: Any, values: list[Any], path: str) -> list[Any]:
        now = list(current) if isinstance(current, list | tuple | deque) and len(current) == len(values) else [None] * len(values)
        return [self.restore(*pair, f"{path}.{index}") for index, pair in enumerate(zip(now, values, strict=True))]

    def _tensor(self, current: Any, name: str) -> Tensor:
        """Return the saved tensor. If an optimizer updates the current tensor, overwrite it in place; otherwise, make a new tensor."""
        if name not in self._restored:
            saved = self._saved.tensors[name]
            if isinstance(current, Tensor) and current.requires_grad:
                with torch.no_grad():
                    self._restored[name] = current.copy_(saved)
            else:
                self._restored[name] = saved.clone().to(current.device if isinstance(current, Tensor) else self._device)
        return self._restored[name]

    def _plain(self, stored: Any, path: str) -> Any:
        """Return the values of a state dict on the CPU. (Loading them moves them to the device.)"""
        return _Reader(self._saved, torch.device("cpu")).restore(None, stored, path)

    def _fill_module(self, current: nn.Module, stored: Any, optimizers: dict[str, Any], path: str) -> None:
        current.load_state_dict(self._plain(stored, path))
        tensors = current.state_dict()
        self._restored |= {each["tensor"]: tensors[name] for name, each in stored["dict"] if isinstance(each, dict) and "tensor" in each}
        now = dict(_stateful_attributes(current))
        for name, each in optimizers.items():
            self.restore(now[name], each, f"{path}.{name}")

    def _fill_attributes(self, current: Any, stored: Any, attributes: dict[str, Any], path: str) -> Any:
        if stored["class"] == VectorizedActionNoise.__name__ and not isinstance(current, VectorizedActionNoise):
            current = VectorizedActionNoise(current, len(attributes["_noises"]["list"]))  # as in `learn`
        _checked(current, stored)
        for name, each in attributes.items():
            setattr(current, name, self.restore(getattr(current, name), each, f"{path}.{name}"))
        return current


def _checked(current: object, stored: Mapping[str, Any]) -> type[Any]:
    """Check that the stored value has the class of the current value, and return this class."""
    if type(current).__name__ != stored["class"]:
        raise TypeError(f"a {stored['class']} was saved")
    return type(current)


def has_state(value: object) -> bool:
    """Return whether an object has the methods ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _stateful_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the objects with a state, such as optimizers, in a network and its parts. (``state_dict`` of the network omits them.)"""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if has_state(value) and not isinstance(value, type):
                yield f"{name}.{key}".lstrip("."), value


def _is_schedule(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module | ActionNoise) and type(value).__module__.startswith("stable_baselines3.")
