"""Importing a checkpoint file that the authors' code saved: a classifier, and a policy where there is one, in a folder of ours."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from adafocus_env.videos.class_names import read_class_names
from agents.config.settings import ImportCheckpoint
from agents.policies import networks as policy_checkpoint
from agents.policies.networks import PolicyNetwork
from agents.released.checkpoint import read_released
from classifiers import checkpoint
from classifiers.errors import InputError


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
    if released.policy is None:
        return f"{about}; no policy (a file of stage 0 or 1)"
    policy_checkpoint.save_policy(released.policy, out, {"classifier": card.fingerprint, "command": command})
    return f"{about}; {_about(released.policy)}"


def _about(policy: PolicyNetwork) -> str:
    if policy.grid is not None:
        return f"policy on {policy.grid}×{policy.grid} cells"
    return f"continuous policy on glance maps of {policy.architecture.map_shape[0]} channels per decision"
