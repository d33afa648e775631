"""Names of architectures and of classifiers that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from classifiers.classifier import Architecture
from classifiers.errors import InputError

ARCHITECTURES: dict[str, Architecture] = {
    "small": Architecture(
        glancer="small_glancer",
        focuser="small_focuser",
        head="gru",
        hidden_size=96,
        dropout=0.1,
        size=96,
        glance_size=32,
        patch_size=24,
    ),
    "paper": Architecture(
        glancer="mobilenet_v2",
        focuser="resnet50",
        head="gru",
        hidden_size=1024,
        dropout=0.8,
        size=224,
        glance_size=224,
        patch_size=96,
    ),
}

SHIPPED: dict[str, Path] = {"demo": Path(__file__).parent / "shipped" / "demo"}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: no such name (suggests the nearest).
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"classifier={name!r} is not known; {hint}choose one of {sorted(ARCHITECTURES)}")
    return ARCHITECTURES[name]
