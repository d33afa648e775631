"""Import of the authors' checkpoint files: read a file safely, check it strictly, rename its tensors and write them to a folder.

Files of AdaFocus are dictionaries with the entries `PARTS` and, in stage 2 and later, ``policy``. Files of AdaFocusV2 have all tensors in
the entry ``state_dict``.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from agents.released.families import Family, Tensors, has, shape_of
from agents.released.families_v2 import FAMILIES, family_of
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup

PARTS = ("glancer", "focuser", "fc")
WHOLE = "state_dict"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Released:
    """The networks of a released file.

    Attributes:
        classifier: the classifier, frozen and in eval mode.
        policy: the policy, frozen and in eval mode; None for files of stages 0 and 1.
        unused: names of the tensors that no network uses.
    """

    classifier: Classifier
    policy: PolicyNetwork | None
    unused: tuple[str, ...] = ()


def read_released(
    path: Path | str, *, patch_size: int | None = None, classes: tuple[str, ...] | None = None, family: str | None = None
) -> Released:
    """Read a released checkpoint of any stage, without running any code from the file.

    Args:
        path: the file that the authors' code saved.
        patch_size: P in pixels, which the file does not contain. By default, the patch size of an AdaFocusV2 file is read from its name,
            such as ``actnet_p128_mbv2.pth.tar``. If the name has no patch size, the default is the smallest published size of the family.
        classes: names of the K classes, in the order of the scores; by default "0" … "K-1".
        family: the required family, a name in `agents.released.families.FAMILIES`; by default, any family is accepted.

    Raises:
        InputError: if the file cannot be read, if it belongs to another family, if its name contains another patch size, or if tensors are
            missing or unexpected. The message lists missing and unexpected tensors.
    """
    path = Path(path)
    found = _tensors(_load(path), path)
    kind = _family(found, family, path)
    unused = tuple(name for name in found if name.startswith(kind.unused)) if kind.unused else ()
    found = {**_acting_policy(found, kind), **{name: tensor for name, tensor in found.items() if name not in unused}}
    try:
        num_classes = _num_classes(found, kind)
        has_policy = kind.interpolated or has(found, "policy.")  # a file of AdaFocusV2 always has a policy
        policy = _empty(partial(PolicyNetwork, interpolated=kind.interpolated), *kind.policy(found)) if has_policy else None
        sizes = kind.architecture(found)
    except InputError as problem:
        raise InputError(f"file={path} is not a released checkpoint of the {kind.name} family: {problem}") from problem
    given = _patch_size(path, kind, patch_size)
    sizes = sizes if given is None else replace(sizes, patch_size=given)
    classifier = _empty(Classifier, sizes, _class_names(classes, num_classes, path))
    classifier.clip_format = replace(kind.clip_format, num_frames=sizes.head_steps or kind.clip_format.num_frames)
    parts: list[tuple[nn.Module, dict[str, str]]] = [(classifier, kind.names(classifier))]
    if policy is not None:
        parts.append((policy, dict(kind.policy_names)))
    if faults := checkpoint.tensor_faults(_wanted(parts, found, kind), found):
        raise InputError(f"file={path} is not a released checkpoint of the {kind.name} family: " + "; ".join(faults))
    for module, names in parts:
        _fill(module, names, found)
        module.eval().requires_grad_(False)
    return Released(classifier, policy, unused)


def import_released(settings: ImportCheckpoint) -> str:
    """Read the file and write its networks to the folder. Return a line of text that describes the networks.

    Raises:
        InputError: if the file, the list of classes, the patch size, the family or the folder cannot be used.
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
    if released.unused:
        about = f"left out, because no network uses them: {', '.join(released.unused)}\n{about}"
    policy = released.policy
    if policy is None:
        return f"{about}; no policy (a file of stage 0 or 1)"
    policy_checkpoint.save_policy(policy, out, {"classifier": card.fingerprint, "command": command})
    if policy.grid is None:
        kind = "continuous policy with interpolated patches" if policy.interpolated else "continuous policy"
        return f"{about}; {kind} on glance maps of {policy.architecture.map_shape[0]} channels per decision"
    return f"{about}; policy on {policy.grid}×{policy.grid} cells"


def _load(path: Path) -> Mapping[str, Any]:
    """Return the dictionary in the file. The file may contain only tensors, plain values and NumPy numbers (measured accuracies)."""
    if not path.is_file():
        raise InputError(f"file must be a checkpoint that the authors' code saved, got {path}, which does not exist")
    try:
        with safe_globals(_numpy_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged pickle can raise many kinds of exception
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(problem)):
            raise InputError(
                f"file={path} holds other Python objects than tensors ({foreign[1]}); they could run code and are not loaded"
            ) from problem
        raise InputError(
            f"file={path} cannot be read: it was not written by torch.save, or is damaged; download or copy it again"
        ) from problem
    if not isinstance(content, Mapping):
        raise InputError(f"file={path} holds a {type(content).__name__}, not a dictionary with {', '.join(PARTS)}, or with {WHOLE}")
    return content


def _numpy_numbers() -> list[Any]:
    """Return the globals to which a pickled NumPy number refers, for NumPy 1 and NumPy 2."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return a dictionary that maps names such as ``fc.gru.bias_ih_l0`` to the tensors of the file.

    Each name begins with the entry of the file, such as ``fc``. The prefix ``module.``, which parallel training adds, is removed.
    """
    if isinstance(content.get(WHOLE), Mapping) and not any(part in content for part in PARTS):
        return dict(_named(content[WHOLE], WHOLE, "", path))
    if missing := [part for part in PARTS if not isinstance(content.get(part), Mapping)]:
        raise InputError(
            f"file={path} has no {', '.join(missing)}; a released checkpoint is a dictionary with {', '.join(PARTS)} "
            f"and, from stage 2 on, policy, or with {WHOLE} (this one has {', '.join(map(str, list(content)[:10])) or 'nothing'})"
        )
    policy = {} if content.get("policy") is None else content["policy"]
    if not isinstance(policy, Mapping):
        raise InputError(f"file={path}: policy is a {type(policy).__name__}, not a dictionary of tensors")
    parts = [*((part, content[part]) for part in PARTS), ("policy", policy)]
    return {name: tensor for part, tensors in parts for name, tensor in _named(tensors, part, f"{part}.", path)}


def _named(tensors: Mapping[str, Any], part: str, prefix: str, path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"file={path}: {part}[{name!r}] is a {type(tensor).__name__}, not a tensor")
        yield f"{prefix}{str(name).removeprefix('module.')}", tensor


def _patch_size(path: Path, kind: Family, patch_size: int | None) -> int | None:
    """Return the patch size from the argument, or from the name of an AdaFocusV2 file. Two different sizes are an error."""
    named = re.search(r"_p(\d+)(?=[_.])", path.name) if kind.interpolated else None
    if named and patch_size not in (None, int(named[1])):
        raise InputError(f"patch_size must be {named[1]}, as in the name of file={path}, got {patch_size}; leave it out")
    return int(named[1]) if named else patch_size


def _family(found: Tensors, demanded: str | None, path: Path) -> Family:
    """Return the family of the file. If a family is required, check that the file belongs to this family."""
    kind = family_of(found)
    if demanded is not None and lookup("family", demanded, FAMILIES) is not kind:
        raise InputError(f"file={path} is of the {kind.name} family, not of family={demanded}; give another file, or leave family out")
    return kind


def _acting_policy(found: Tensors, kind: Family) -> dict[str, Tensor]:
    """Return the copy of the policy inside the focuser, for files without an entry ``policy``."""
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
    """Create a module on the meta device, which saves the time of random initialisation."""
    with torch.device("meta"):
        return kind(*sizes)


def _wanted(parts: Sequence[tuple[nn.Module, Mapping[str, str]]], found: Tensors, kind: Family) -> dict[str, Tensor]:
    """Return the tensors that the file must contain.

    The file must contain the tensors of the networks. If the file also has copies of the policy in the focuser, it must contain every
    tensor of each copy.
    """
    wanted = {_released_name(ours, names): tensor for module, names in parts for ours, tensor in module.state_dict().items()}
    wanted.pop("", None)
    own = {name.removeprefix("policy."): tensor for name, tensor in wanted.items() if name.startswith("policy.")}
    copies = [copy for copy in kind.copies_of_the_policy if has(found, copy)]
    return wanted | {copy + name: tensor for copy in copies for name, tensor in own.items()}


def _released_name(ours: str, names: Mapping[str, str]) -> str:
    """Return the name of a tensor in the file; empty if files of the family do not contain the tensor."""
    start = next(start for start in names if ours.startswith(start))
    return names[start] and names[start] + ours.removeprefix(start)


def _fill(module: nn.Module, names: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
    """Copy the tensors into the module.

    The tensors are copied, because tensors of a recurrent network that was saved on a GPU may share memory.

    Files of some families do not contain the tensors of the critic, which are therefore set to zero.
    """
    state = {}
    for name, empty in module.state_dict().items():
        released = _released_name(name, names)
        state[name] = found[released].to(empty.dtype, copy=True) if released else torch.zeros(empty.shape, dtype=empty.dtype)
    module.load_state_dict(state, assign=True)
