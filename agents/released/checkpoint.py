"""The authors' checkpoint files of either family: what they hold, read safely and strictly, under our names, and written to a folder."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from adafocus_env.videos.list_files import read_class_names
from agents.config.settings import ImportCheckpoint
from agents.policies import networks as policy_checkpoint
from agents.policies.networks import PolicyNetwork
from agents.released.families import FAMILIES, POLICY_NAMES, Family, Tensors, family_of, has, shape_of
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup

PARTS = ("glancer", "focuser", "fc")

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Released:
    """The networks of a released file.

    Attributes:
        classifier: frozen, in eval mode.
        policy: the same; None in files of the stages 0 and 1.
    """

    classifier: Classifier
    policy: PolicyNetwork | None


def read_released(
    path: Path | str, *, patch_size: int | None = None, classes: tuple[str, ...] | None = None, family: str | None = None
) -> Released:
    """Reads a released checkpoint of any stage; no code in it is run.

    Args:
        path: the file that the authors' code saved.
        patch_size: P in pixels, which the file does not hold; by default the smallest that is published for its family.
        classes: names of the K classes, in the order of the scores; by default "0" … "K-1".
        family: name in `agents.released.families.FAMILIES` that the file must be of; by default any.

    Raises:
        InputError: it cannot be read, is of the other family, lacks tensors or holds others (lists them).
    """
    path = Path(path)
    found = _tensors(_load(path), path)
    kind = _family(found, family, path)
    found = {**_acting_policy(found, kind), **found}
    try:
        num_classes = _num_classes(found, kind)
        policy = _empty(PolicyNetwork, *kind.policy(found)) if has(found, "policy.") else None
    except InputError as problem:
        raise InputError(f"file={path} is not a released checkpoint of the {kind.name} family: {problem}") from problem
    sizes = kind.architecture(found)
    sizes = replace(sizes, patch_size=sizes.patch_size if patch_size is None else patch_size)
    classifier = _empty(Classifier, sizes, _class_names(classes, num_classes, path))
    classifier.clip_format = kind.clip_format
    parts: list[tuple[nn.Module, dict[str, str]]] = [(classifier, kind.names(classifier))]
    if policy is not None:
        parts.append((policy, POLICY_NAMES))
    if faults := checkpoint.tensor_faults(_wanted(parts, found, kind), found):
        raise InputError(f"file={path} is not a released checkpoint of the {kind.name} family: " + "; ".join(faults))
    for module, names in parts:
        _fill(module, names, found)
        module.eval().requires_grad_(False)
    return Released(classifier, policy)


def import_released(settings: ImportCheckpoint) -> str:
    """Read the file, write what it holds into the folder, and return a line that says what that is.

    Raises:
        InputError: the file, the list of classes, the patch size, the family or the folder cannot be used.
    """
    classes = None if settings.classes is None else read_class_names(settings.classes)
    released = read_released(settings.file, patch_size=settings.patch_size, classes=classes, family=settings.family)
    out = Path(settings.out)
    if released.policy is None and (out / policy_checkpoint.CARD).exists():
        raise InputError(f"out={out} holds a policy, and {settings.file} has none to replace it; choose another folder")
    sizes = released.classifier.architecture
    used = {**asdict(settings), "patch_size": sizes.patch_size}  # type: ignore[call-overload]
    arguments = shlex.join(f"{key}={value}" for key, value in used.items() if value is not None)
    command = f"python -m agents.import_checkpoint {arguments}"
    card = checkpoint.save(released.classifier, out, command=command)
    about = f"{out}: classifier with {len(card.classes)} classes, {sizes.head} head, patches of {sizes.patch_size} pixels"
    policy = released.policy
    if policy is None:
        return f"{about}; no policy (a file of stage 0 or 1)"
    policy_checkpoint.save_policy(policy, out, {"classifier": card.fingerprint, "command": command})
    if policy.grid is None:
        return f"{about}; continuous policy on glance maps of {policy.architecture.map_shape[0]} channels per decision"
    return f"{about}; policy on {policy.grid}×{policy.grid} cells"


def _load(path: Path) -> Mapping[str, Any]:
    """The dictionary in the file. Tensors, plain values and NumPy numbers (of measured accuracies) are all it may hold."""
    if not path.is_file():
        raise InputError(f"file must be a checkpoint that the authors' code saved, got {path}, which does not exist")
    try:
        with safe_globals(_numpy_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # damaged pickles raise exceptions of many kinds
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(problem)):
            raise InputError(
                f"file={path} holds other Python objects than tensors ({foreign[1]}); they could run code and are not loaded"
            ) from problem
        raise InputError(
            f"file={path} cannot be read: it was not written by torch.save, or is damaged; download or copy it again"
        ) from problem
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
    return found


def _family(found: Tensors, demanded: str | None, path: Path) -> Family:
    """The family of the file, which must be the one demanded, if any."""
    kind = family_of(found)
    if demanded is not None and lookup("family", demanded, FAMILIES) is not kind:
        raise InputError(f"file={path} is of the {kind.name} family, not of family={demanded}; give another file, or leave family out")
    return kind


def _acting_policy(found: Tensors, kind: Family) -> dict[str, Tensor]:
    """The policy as the focuser holds it, for files that have it nowhere else."""
    copies = kind.copies_of_the_policy[:1] if not has(found, "policy.") else ()
    return {f"policy.{name.removeprefix(copy)}": found[name] for copy in copies for name in found if name.startswith(copy)}


def _num_classes(found: Tensors, kind: Family) -> int:
    name = next((name for name in kind.rows if name in found), None)
    shape = shape_of(found, name) if name else ()
    if len(shape) != 2 or shape[0] < 2:
        fault = f"{name} has shape {shape}" if name else f"missing {kind.rows[0]}"
        raise InputError(f"{fault}, which gives the number of classes")
    return shape[0]


def _class_names(classes: tuple[str, ...] | None, count: int, path: Path) -> tuple[str, ...]:
    if classes is not None and len(classes) != count:
        raise InputError(f"the list has {len(classes)} classes, file={path} has {count}; give the list that it was trained with")
    return classes or tuple(map(str, range(count)))


def _empty(kind: Callable[..., Module], *sizes: object) -> Module:
    """A module without memory, which takes no time to fill with random weights."""
    with torch.device("meta"):
        return kind(*sizes)


def _wanted(parts: Sequence[tuple[nn.Module, Mapping[str, str]]], found: Tensors, kind: Family) -> dict[str, Tensor]:
    """What the file must hold: every tensor of ours, and the whole policy wherever the focuser has any of it."""
    wanted = {_released_name(ours, names): tensor for module, names in parts for ours, tensor in module.state_dict().items()}
    own = {name.removeprefix("policy."): tensor for name, tensor in wanted.items() if name.startswith("policy.")}
    copies = [copy for copy in kind.copies_of_the_policy if has(found, copy)]
    return wanted | {copy + name: tensor for copy in copies for name, tensor in own.items()}


def _released_name(ours: str, names: Mapping[str, str]) -> str:
    start = next(start for start in names if ours.startswith(start))
    return names[start] + ours.removeprefix(start)


def _fill(module: nn.Module, names: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
    """Copies the tensors in: those of a recurrent network that was saved on a GPU may share one piece of memory."""
    state = {name: found[_released_name(name, names)].to(empty.dtype, copy=True) for name, empty in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
