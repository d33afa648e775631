"""Makes a classifier, and a policy where there is one, from a checkpoint file that the authors' code saved.

    python -m agents.import_checkpoint file=FILE out=DIR [patch_size=P] [classes=FILE] [family=NAME]

file        the authors' checkpoint, of any stage and either family
out         folder for the result: give it to the other commands as classifier=DIR and, from stage 2 on, policy=DIR
patch_size  height and width of the patches in pixels, which the file does not hold. Published are 96, 128, 160 and 192 for ActivityNet,
            144, 160 and 176 for Something-Something; without it, the smallest of the file's family
classes     a text file with the names of the classes, one a line, numbered or not (classInd.txt of the data set), in the order of the
            scores; without it they are 0, 1, 2, …
family      ActivityNet or Something-Something: refuses a file of the other family; without it, the file's names tell which it is of
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_env.videos.class_names import read_class_names
from agents.config.arguments import key, run_command
from classifiers.errors import InputError

if TYPE_CHECKING:
    from agents.policies.networks import PolicyNetwork


@dataclass(frozen=True)
class Arguments:
    """The keys of the command, as the module's docstring explains them."""

    file: str
    out: str
    patch_size: int | None = key("patch_size", None, of="pixels")
    classes: str | None = None
    family: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. A mistake that the user can mend ends it with its message on stderr and status 2."""
    run_command(_command, Arguments, __doc__, arguments)


def _command(given: Arguments) -> int:
    sys.stdout.write(f"{import_released(given)}\n")
    return 0


def import_released(given: Arguments) -> str:
    """Reads ``given.file``, writes what it holds into ``given.out``, and says what that is.

    Raises:
        InputError: the file, the list of classes, the patch size, the family or the folder cannot be used.
    """
    from agents.policies import checkpoint as policy_checkpoint
    from agents.released.checkpoint import read_released
    from classifiers import checkpoint  # here, so that --help and mistyped keys are answered at once

    classes = None if given.classes is None else read_class_names(given.classes)
    released = read_released(given.file, patch_size=given.patch_size, classes=classes, family=given.family)
    out = Path(given.out)
    if released.policy is None and (out / policy_checkpoint.CARD).exists():
        raise InputError(f"out={out} holds a policy, and {given.file} has none to replace it; choose another folder")
    sizes = released.classifier.architecture
    used = {**asdict(given), "patch_size": sizes.patch_size}
    typed = (f"{key}={value}" for key, value in used.items() if value is not None)
    command = f"python -m agents.import_checkpoint {shlex.join(typed)}"
    card = checkpoint.save(released.classifier, out, command=command)
    told = f"{out}: classifier with {len(card.classes)} classes, {sizes.head} head, patches of {sizes.patch_size} pixels"
    if released.policy is None:
        return f"{told}; no policy (a file of stage 0 or 1)"
    policy_checkpoint.save_policy(released.policy, out, {"classifier": card.fingerprint, "command": command})
    return f"{told}; {_told(released.policy)}"


def _told(policy: PolicyNetwork) -> str:
    if policy.grid is not None:
        return f"policy on {policy.grid}×{policy.grid} cells"
    return f"continuous policy on glance maps of {policy.architecture.map_shape[0]} channels a decision"


if __name__ == "__main__":
    main()
