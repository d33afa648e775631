"""Read and write classifier checkpoints.

A checkpoint is a folder with `classifier.safetensors` and a JSON card. No pickle is written or read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from classifiers.atomic_files import replacing, sync
from classifiers.classifier import Architecture, Classifier, ClipFormat, hash_of
from classifiers.errors import InputError, refuse_if
from classifiers.model_zoo import BUNDLED

WEIGHTS = "classifier.safetensors"
CARD = "card.json"
CHECKSUM = "sha256"
"""Key of the checksum in the metadata of a safetensors file."""


@dataclass(frozen=True)
class Card:
    """Metadata of a classifier.

    Attributes:
        architecture: Networks and preprocessing.
        classes: Names of the classes, in the order of the scores.
        fingerprint: Fingerprint of the weights.
        parent: Fingerprint of the classifier that training started from, if any.
        data: Name of the training data set.
        metrics: Metrics by name.
        command: The command that wrote the checkpoint.
        clip_format: How clips are made from a video.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    fingerprint: str
    parent: str | None = None
    data: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None
    clip_format: ClipFormat = field(default_factory=ClipFormat)


def save(classifier: Classifier, folder: Path | str, **about: Any) -> Card:
    """Write the weights and the card, and return the card. Old files are replaced only when both new files are complete.

    Args:
        classifier: The classifier.
        folder: The destination; created if missing.
        about: The fields `parent`, `data`, `metrics`, `command` and `clip_format` of the card. The default of `clip_format` is the
            classifier's clip format.

    Raises:
        InputError: If the folder cannot be written.
    """
    folder = Path(folder)
    card = Card(classifier.architecture, classifier.classes, classifier.fingerprint(), **{"clip_format": classifier.clip_format, **about})
    text = json.dumps(asdict(card), indent=2) + "\n"
    with replacing(folder / CARD) as described, replacing(folder / WEIGHTS) as weights:  # the card is replaced last, so that
        described.write_text(text, encoding="utf-8")  # a folder with a card is a complete checkpoint
        sync(described)
        _write_tensors(classifier, weights)
    return card


def load(source: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Load a classifier, frozen and in eval mode.

    Args:
        source: A name that `list_classifiers()` returns, or a folder that `save` wrote.
        device: Device of the classifier.

    Raises:
        InputError: If the folder is not a checkpoint, or if card, weights and fingerprint do not match.
    """
    folder = BUNDLED.get(str(source), Path(source))
    card = read_card(folder)
    classifier = Classifier(card.architecture, card.classes)
    classifier.clip_format = card.clip_format
    load_tensors(classifier, folder / WEIGHTS)
    refuse_if(
        classifier.fingerprint() != card.fingerprint,
        f"{folder / WEIGHTS} does not hold the weights that {CARD} describes; train or copy the checkpoint again",
    )
    return classifier.to(device).freeze()


def list_classifiers() -> list[str]:
    """Return the names of the bundled classifiers, which `load` accepts."""
    return sorted(BUNDLED)


def read_card(folder: Path | str) -> Card:
    """Return the card of a checkpoint. ``folder`` may also be the name of a bundled classifier.

    Raises:
        InputError: If the card is missing or invalid. The message names the field.
    """
    folder = BUNDLED.get(str(folder), Path(folder))
    values = read_json(folder, CARD, f"classifier={folder}")
    values["architecture"] = from_fields(Architecture, values.get("architecture", {}), folder / CARD)
    # Cards of earlier versions have no clip format. At that time, demo videos were cropped without a margin.
    stated = values.get("clip_format", {"margin": 1.0} if str(values.get("data")).startswith("demo") else {})
    values["clip_format"] = from_fields(ClipFormat, stated, folder / CARD)
    card = from_fields(Card, values, folder / CARD)
    refuse_if(len(card.classes) < 2, f"{folder / CARD}: classes has {len(card.classes)} entries; a classifier needs two or more")
    return card


def read_json(folder: Path, name: str, what: str) -> dict[str, Any]:
    """Return the JSON object in ``folder/name``.

    Raises:
        InputError: If the file is missing or invalid. The message contains ``what`` and the name of the file.
    """
    refuse_if(folder.is_file(), f"{what} is a file; a checkpoint is a folder with {name} and a .safetensors file (pickles are not read)")
    refuse_if(
        not (folder / name).is_file(),
        f"{what} holds no {name}; give the folder of a checkpoint (bundled classifiers: {list_classifiers()})",
    )
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{folder / name} is not valid JSON ({problem}); train or copy the checkpoint again") from problem
    refuse_if(
        not isinstance(values, dict),
        f"{folder / name} holds a {type(values).__name__}, not an object; train or copy the checkpoint again",
    )
    return values


def from_fields(kind: type[Any], values: object, path: Path) -> Any:
    """Create an object of the dataclass ``kind`` from the values of a JSON object. Lists become tuples.

    Raises:
        InputError: If ``values`` is not a JSON object, or if a field is missing, unknown or of another type. The message names the field
            and the file.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: {kind.__name__.lower()} is a {type(values).__name__}, not an object; train or copy the checkpoint again")
    known = {f.name for f in fields(kind)}
    refuse_if(
        unknown := sorted(set(values) - known),
        f"{path}: unknown fields {unknown}; it was written by another version, or is the card of another kind of file",
    )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    types = get_type_hints(kind)
    for name, value in values.items():
        try:  # integers are valid floats, booleans are not
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError:
            expected = types[name] if get_args(types[name]) else types[name].__name__
            raise InputError(f"{path}: {name}={value!r} is not of type {expected}; train or copy the checkpoint again") from None
    try:
        return kind(**values)
    except (TypeError, InputError) as problem:
        raise InputError(f"{path}: {problem}") from problem


def save_tensors(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of ``module`` to a safetensors file atomically."""
    with replacing(path) as temporary:
        _write_tensors(module, temporary)


def _write_tensors(module: nn.Module, path: Path) -> None:
    write_checked({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)


def write_checked(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and metadata to a safetensors file, with a checksum that `read_checked` verifies.

    Raises:
        OSError: If the file cannot be written.
    """
    about = dict(metadata or {})
    try:
        save_file(dict(tensors), path, {**about, CHECKSUM: _checksum(tensors, about)})
    except SafetensorError as problem:
        raise OSError(None, str(problem)) from problem


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file. Files of earlier versions have no checksum and are not verified.

    Raises:
        SafetensorError: If the file is not a safetensors file.
        OSError: If the file cannot be read.
        InputError: If the content is not what was written.
    """
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    stated = metadata.pop(CHECKSUM, None)
    refuse_if(stated not in (None, _checksum(tensors, metadata)), "its checksum is wrong: some of its bytes have changed")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return hashlib.sha256((hash_of(tensors) + json.dumps(metadata, sort_keys=True)).encode()).hexdigest()


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load the tensors of ``module`` from a safetensors file. The names and shapes must match exactly.

    Raises:
        InputError: If the file is missing, damaged or a pickle, or if its tensors do not match. The message lists tensors that do not
            match.
    """
    try:
        tensors, _ = read_checked(path)
    except (SafetensorError, OSError, InputError) as problem:
        raise InputError(f"{path} is not a readable safetensors file ({problem}); train or copy the checkpoint again") from problem
    refuse_if(
        faults := tensor_faults(module.state_dict(), tensors),
        f"{path} does not fit the architecture on its card: " + "; ".join(faults),
    )
    module.load_state_dict(tensors)


def tensor_faults(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Describe how the tensors in ``found`` differ from ``expected``: missing tensors, unexpected tensors, and wrong shapes."""
    reshaped = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    return [
        *(f"missing {name}" for name in expected if name not in found),
        *(f"unexpected {name}" for name in found if name not in expected),
        *(f"{name} has shape {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}" for name in reshaped),
    ]
