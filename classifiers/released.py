"""The authors' checkpoint files, ActivityNet family: what they hold, read safely and strictly, under our names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from classifiers.checkpoint import tensor_faults
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.policy_network import GlanceActorCritic, PolicyNetwork
from classifiers.registry import ARCHITECTURES

# How our names begin → how the same tensors' names begin in the file, its parts (`PARTS` and policy) first.
CLASSIFIER_NAMES = {
    "glancer.features.": "glancer.net.features.",
    "glancer.fc.": "glancer.net.classifier.1.",
    "focuser.features.0.": "focuser.net.conv1.",
    "focuser.features.1.": "focuser.net.bn1.",
    "focuser.features.4.": "focuser.net.layer1.",
    "focuser.features.5.": "focuser.net.layer2.",
    "focuser.features.6.": "focuser.net.layer3.",
    "focuser.features.7.": "focuser.net.layer4.",
    "focuser.fc.": "focuser.net.fc.",
    "head.": "fc.",
}
POLICY_NAMES = {
    "encoder.frame.": "policy.state_encoder.",
    "encoder.gru.": "policy.gru.",
    "actor.": "policy.actor.0.",
    "critic.": "policy.critic.0.",
}
PARTS = ("glancer", "focuser", "fc")
COPIES_OF_THE_POLICY = ("focuser.policy.policy.", "focuser.policy.policy_old.")
"""Where the focuser of the stages 2 and 3 holds the policy again, and once more as it acts."""
MAP_SHAPE = (1280, 7, 7)

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Released:
    """The networks of a released file.

    Attributes:
        classifier: frozen, in eval mode.
        policy: the same; None in files of the stages 0 and 1.
    """

    classifier: Classifier
    policy: GlanceActorCritic | None


def read_released(path: Path | str, *, patch_size: int = 96, classes: tuple[str, ...] | None = None) -> Released:
    """Reads a released checkpoint of any stage; no code in it is run.

    Args:
        path: the file that the authors' code saved.
        patch_size: P in pixels, which the file does not hold.
        classes: names of the K classes, in the order of the scores; by default "0" … "K-1".

    Raises:
        InputError: it cannot be read, is of the other family, lacks tensors or holds others (lists them).
    """
    path = Path(path)
    sizes = replace(ARCHITECTURES["paper"], patch_size=patch_size)
    found = _tensors(_load(path), path)
    if not _has(found, "fc.gru.") and _shape(found, "fc.fc.weight")[1:] != (sizes.hidden_size,):
        sizes = replace(sizes, head="linear")
    classifier = _empty(Classifier, sizes, _class_names(found, classes, path))
    policy = _empty(GlanceActorCritic, PolicyNetwork(MAP_SHAPE), _grid(found, path)) if _has(found, "policy.") else None
    wanted = _under_released_names(classifier, CLASSIFIER_NAMES)
    if policy is not None:
        own = _under_released_names(policy, POLICY_NAMES)
        copies = [copy for copy in COPIES_OF_THE_POLICY if _has(found, copy)]
        wanted |= own | {copy + name.removeprefix("policy."): tensor for copy in copies for name, tensor in own.items()}
    if faults := tensor_faults(wanted, found):
        raise InputError(f"file={path} is no released checkpoint of the ActivityNet family: " + "; ".join(faults))
    _fill(classifier, CLASSIFIER_NAMES, found)
    if policy is not None:
        _fill(policy, POLICY_NAMES, found)
        policy.eval().requires_grad_(False)
    return Released(classifier.freeze(), policy)


def _load(path: Path) -> Mapping[str, Any]:
    """The dictionary in the file. Tensors, plain values and NumPy numbers (of measured accuracies) are all it may hold."""
    if not path.is_file():
        raise InputError(f"file={path} is no file; give the checkpoint that the authors' code saved")
    try:
        with safe_globals(_numpy_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # damaged pickles fail in every way that there is
        foreign = re.search(r"GLOBAL ([\w.]+)", str(problem))
        if foreign:
            raise InputError(
                f"file={path} holds Python objects that are no tensors ({foreign[1]}); they could run code and are not loaded"
            ) from problem
        raise InputError(f"file={path} cannot be read: it is no torch.save file, or damaged; download or copy it again") from problem
    if not isinstance(content, Mapping):
        raise InputError(f"file={path} holds a {type(content).__name__}, not a dictionary with {', '.join(PARTS)}")
    return content


def _numpy_numbers() -> list[Any]:
    """What a pickled NumPy number is made of, under the names of NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """All tensors by part and name, such as ``fc.gru.bias_ih_l0``, without the ``module.`` of parallel training."""
    if missing := [part for part in PARTS if not isinstance(content.get(part), Mapping)]:
        raise InputError(
            f"file={path} has no {', '.join(missing)}; a released checkpoint is a dictionary with {', '.join(PARTS)} "
            f"and, from stage 2 on, policy (this one has {', '.join(map(str, list(content)[:10])) or 'nothing'})"
        )
    policy = {} if content.get("policy") is None else content["policy"]
    if not isinstance(policy, Mapping):
        raise InputError(f"file={path}: policy is a {type(policy).__name__}, not a dictionary of tensors")
    found: dict[str, Tensor] = {}
    for part, tensors in [*((part, content[part]) for part in PARTS), ("policy", policy)]:
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise InputError(f"file={path}: {part}[{name!r}] is a {type(tensor).__name__}, not a tensor")
            found[f"{part}.{str(name).removeprefix('module.')}"] = tensor
    if any(".base_model." in name for name in found) or "fc.weight" in found:
        raise InputError(f"file={path} is of the Something-Something family, which is not supported yet; give an ActivityNet one")
    if not _has(found, "policy."):
        copy = COPIES_OF_THE_POLICY[0]
        found |= {f"policy.{name.removeprefix(copy)}": tensor for name, tensor in found.items() if name.startswith(copy)}
    return found


def _has(found: Mapping[str, Tensor], start: str) -> bool:
    return any(name.startswith(start) for name in found)


def _shape(found: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(found[name].shape) if name in found else ()


def _class_names(found: Mapping[str, Tensor], classes: tuple[str, ...] | None, path: Path) -> tuple[str, ...]:
    shape = _shape(found, "fc.fc.weight")
    if len(shape) != 2 or shape[0] < 2:
        fault = f"fc.fc.weight has shape {shape}" if shape else "missing fc.fc.weight"
        raise InputError(f"file={path} is no released checkpoint of the ActivityNet family: {fault}, which gives the number of classes")
    if classes is not None and len(classes) != shape[0]:
        raise InputError(f"the list has {len(classes)} classes, file={path} has {shape[0]}; give the list that it was trained with")
    return classes or tuple(map(str, range(shape[0])))


def _grid(found: Mapping[str, Tensor], path: Path) -> int:
    """Cells in each axis; those of the paper where the tensor that tells is missing, which is reported with all others."""
    bias = found.get("policy.actor.0.bias", torch.zeros(49))
    grid = math.isqrt(bias.numel())
    if grid < 2 or bias.shape != (grid * grid,):
        raise InputError(f"file={path}: policy.actor.0.bias has shape {tuple(bias.shape)}, but a grid has 16, 25, 36, 49 or 64 cells")
    return grid


def _empty(kind: Callable[..., Module], *sizes: object) -> Module:
    """A module without memory, which takes no time to fill with random weights."""
    with torch.device("meta"):
        return kind(*sizes)


def _under_released_names(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {_released_name(name, names): tensor for name, tensor in module.state_dict().items()}


def _released_name(ours: str, names: Mapping[str, str]) -> str:
    start = next(start for start in names if ours.startswith(start))
    return names[start] + ours.removeprefix(start)


def _fill(module: nn.Module, names: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
    """Copies the tensors in: those of a recurrent network that was saved on a GPU may share one piece of memory."""
    state = {name: found[_released_name(name, names)].to(empty.dtype, copy=True) for name, empty in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
