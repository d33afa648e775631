"""A classifier on disk: a folder with `classifier.safetensors` and a JSON card. No pickle is written or read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from classifiers.atomic_files import replacing, sync
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError
from classifiers.model_zoo import BUNDLED

WEIGHTS = "classifier.safetensors"
CARD = "card.json"


@dataclass(frozen=True)
class Card:
    """What travels with the weights of a classifier.

    Attributes:
        architecture: what it is made of, and the pixels that it expects.
        classes: names of the classes, in the order of the scores.
        fingerprint: of the weights.
        parent: fingerprint of the classifier that this one was trained from, if any.
        data: name of the data set that it was trained on.
        metrics: what was measured of it.
        command: the command that made it.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    fingerprint: str
    parent: str | None = None
    data: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None


def save(classifier: Classifier, folder: Path | str, **about: Any) -> Card:
    """Writes weights and card; returns the card. Both are written whole before they take the places of the old ones.

    Args:
        classifier: what to save.
        folder: where; made if missing.
        about: the fields `parent`, `data`, `metrics` and `command` of the card.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    card = Card(classifier.architecture, classifier.classes, classifier.fingerprint(), **about)
    text = json.dumps(asdict(card), indent=2) + "\n"
    with replacing(folder / CARD) as described, replacing(folder / WEIGHTS) as weights:  # the card takes its place last:
        described.write_text(text, encoding="utf-8")  # a folder that has one is a whole checkpoint
        sync(described)
        _write_tensors(classifier, weights)
    return card


def load(source: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of that name or folder, frozen and in eval mode.

    Args:
        source: a name of `list_classifiers()` or a folder that `save` wrote.
        device: where to put it.

    Raises:
        InputError: the folder is no checkpoint, or its card, weights or fingerprint do not fit together.
    """
    folder = BUNDLED.get(str(source), Path(source))
    card = read_card(folder)
    classifier = Classifier(card.architecture, card.classes)
    load_tensors(classifier, folder / WEIGHTS)
    if classifier.fingerprint() != card.fingerprint:
        raise InputError(f"{folder / WEIGHTS} does not hold the weights that {CARD} describes; train or copy the checkpoint again")
    return classifier.to(device).freeze()


def list_classifiers() -> list[str]:
    """Names of the classifiers that come with the package, for `load`."""
    return sorted(BUNDLED)


def read_card(folder: Path | str) -> Card:
    """The card of the checkpoint in ``folder`` (or of a bundled name).

    Raises:
        InputError: there is none, or it cannot be used (names the field).
    """
    folder = BUNDLED.get(str(folder), Path(folder))
    values = read_json(folder, CARD, f"classifier={folder}")
    values["architecture"] = from_fields(Architecture, values.get("architecture", {}), folder / CARD)
    card = from_fields(Card, values, folder / CARD)
    if len(card.classes) < 2:
        raise InputError(f"{folder / CARD}: classes has {len(card.classes)} entries; a classifier needs two or more")
    return card


def read_json(folder: Path, name: str, what: str) -> dict[str, Any]:
    """The JSON object in ``folder/name``, or an InputError that says what was looked for and what is there."""
    if folder.is_file():
        raise InputError(f"{what} is a file; a checkpoint is a folder with {name} and a .safetensors file (pickles are not read)")
    if not (folder / name).is_file():
        raise InputError(f"{what} holds no {name}; give the folder of a checkpoint (bundled classifiers: {list_classifiers()})")
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"{folder / name} is not valid JSON ({problem}); train or copy the checkpoint again") from problem
    if not isinstance(values, dict):
        raise InputError(f"{folder / name} holds a {type(values).__name__}, not an object; train or copy the checkpoint again")
    return values


def from_fields(kind: type[Any], values: object, path: Path) -> Any:
    """Builds the dataclass ``kind`` from a JSON object; lists become tuples.

    Raises:
        InputError: it is no object, or a field is missing, unknown or of another type (names it and the file).
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: {kind.__name__.lower()} is a {type(values).__name__}, not an object; train or copy the checkpoint again")
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{path}: unknown fields {unknown}; it was written by another version, or is the card of something else")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    types = get_type_hints(kind)
    for name, value in values.items():
        if not _is_a(value, types[name]):
            wanted = types[name] if get_args(types[name]) else types[name].__name__
            raise InputError(f"{path}: {name}={value!r} is not of type {wanted}; train or copy the checkpoint again")
    try:
        return kind(**values)
    except TypeError as problem:
        raise InputError(f"{path}: {problem}") from problem
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from problem


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is what the annotation of its field says. Whole numbers are floats too; truth values are no numbers."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is tuple and isinstance(value, tuple):
        inner = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(value) == len(inner) and all(map(_is_a, value, inner))
    if outer in (Union, UnionType):
        return any(_is_a(value, one) for one in inner)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, outer or kind)


def save_tensors(module: nn.Module, path: Path) -> None:
    """Writes all parameters and buffers of ``module`` to a safetensors file, in one step."""
    with replacing(path) as temporary:
        _write_tensors(module, temporary)


def _write_tensors(module: nn.Module, path: Path) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)
    except SafetensorError as problem:
        raise OSError(None, str(problem)) from problem


def load_tensors(module: nn.Module, path: Path) -> None:
    """Fills ``module`` from a safetensors file, strictly.

    Raises:
        InputError: the file is missing, truncated, a pickle, or does not fit (lists the tensors).
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise InputError(f"{path} is not a readable safetensors file ({problem}); train or copy the checkpoint again") from problem
    if faults := tensor_faults(module.state_dict(), tensors):
        raise InputError(f"{path} does not fit the architecture on its card: " + "; ".join(faults))
    module.load_state_dict(tensors)


def tensor_faults(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What is missing in ``found``, what is in it unexpectedly, and what has another shape than in ``wanted``."""
    faults = [f"missing {name}" for name in wanted if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in wanted]
    faults += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return faults
