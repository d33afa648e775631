"""Makes a classifier, and a policy where there is one, from a checkpoint file that the authors' code saved.

    python -m classifiers.import_released file=FILE out=DIR [patch_size=P] [classes=FILE] [family=NAME]

file        the authors' checkpoint, of any stage and either family
out         folder for the result: give it to the other commands as classifier=DIR and, from stage 2 on, policy=DIR
patch_size  height and width of the patches in pixels, which the file does not hold. Published are 96, 128, 160 and 192 for ActivityNet,
            144, 160 and 176 for Something-Something; without it, the smallest of the file's family
classes     a text file with the names of the classes, one a line, in the order of the scores; without it they are 0, 1, 2, …
family      ActivityNet or Something-Something: refuses a file of the other family; without it, the file's names tell which it is of
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from classifiers.errors import InputError

if TYPE_CHECKING:
    from classifiers.policy_network import GlanceActorCritic


@dataclass(frozen=True)
class Arguments:
    """The keys of the command, as the module's docstring explains them."""

    file: str
    out: str
    patch_size: int | None = None
    classes: str | None = None
    family: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. A mistake that the user can mend ends it with its message on stderr and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(f"{(__doc__ or '').strip()}\n")
        return
    try:
        sys.stdout.write(import_released(parse(arguments)) + "\n")
    except InputError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def import_released(given: Arguments) -> str:
    """Reads ``given.file``, writes what it holds into ``given.out``, and says what that is.

    Raises:
        InputError: the file, the list of classes, the patch size, the family or the folder cannot be used.
    """
    from classifiers import checkpoint, policy_network  # here, so that --help and mistyped keys are answered at once
    from classifiers.released import read_released

    classes = read_classes(given.classes)
    released = read_released(given.file, patch_size=given.patch_size, classes=classes, family=given.family)
    out = Path(given.out)
    if released.policy is None and (out / policy_network.CARD).exists():
        raise InputError(f"out={out} holds a policy, and {given.file} has none to replace it; choose another folder")
    sizes = released.classifier.architecture
    used = {**asdict(given), "patch_size": sizes.patch_size}
    typed = (f"{key}={value}" for key, value in used.items() if value is not None)
    command = f"python -m classifiers.import_released {shlex.join(typed)}"
    card = checkpoint.save(released.classifier, out, command=command)
    told = f"{out}: classifier with {len(card.classes)} classes, {sizes.head} head, patches of {sizes.patch_size} pixels"
    if released.policy is None:
        return f"{told}; no policy (a file of stage 0 or 1)"
    policy_network.save_policy(released.policy, out, {"classifier": card.fingerprint, "command": command})
    return f"{told}; {_told(released.policy)}"


def _told(policy: GlanceActorCritic) -> str:
    if policy.grid is not None:
        return f"policy on {policy.grid}×{policy.grid} cells"
    return f"continuous policy on glance maps of {policy.network.map_shape[0]} channels a decision"


def parse(arguments: Sequence[str]) -> Arguments:
    """The typed arguments.

    Raises:
        InputError: one has no ``=``, an unknown key (suggests the nearest) or a wrong value, or file or out is missing.
    """
    known = [field.name for field in fields(Arguments)]
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} has no '='; arguments are written key=value (--help lists the keys)")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"there is no key {key!r}; {hint}the keys are {', '.join(known)}")
        given[key] = value
    for key in ("file", "out"):
        if not given.get(key):
            raise InputError(f"{key} is missing: add {key}=VALUE")
    return Arguments(given["file"], given["out"], _pixels(given.get("patch_size")), given.get("classes"), given.get("family"))


def _pixels(typed: str | None) -> int | None:
    try:
        return None if typed is None else int(typed)
    except ValueError as problem:
        raise InputError(f"patch_size={typed}: patch_size must be a whole number of pixels") from problem


def read_classes(path: str | None) -> tuple[str, ...] | None:
    """The lines of a list of classes; None without one.

    Raises:
        InputError: it cannot be read as UTF-8, has an empty line between names, or names a class twice.
    """
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"classes={path} cannot be read ({problem}); give a UTF-8 text file with one name a line") from problem
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"classes={path}: line {number} is empty; give one name a line, in the order of the scores")
        if name in names[: number - 1]:
            raise InputError(f"classes={path}: line {number} names {name!r} again (first in line {names.index(name) + 1})")
    return tuple(names)


if __name__ == "__main__":
    main()
