"""The networks in plain PyTorch: glancer, focuser and temporal head, with checkpoints and counts of multiply-adds."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classifiers.checkpoint import list_classifiers, load, save
    from classifiers.classifier import Architecture, Classifier

__all__ = ["Architecture", "Classifier", "list_classifiers", "load", "save"]

_HOMES = {
    "Architecture": "classifier",
    "Classifier": "classifier",
    "list_classifiers": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
}


def __getattr__(name: str) -> object:
    """Import PyTorch only when a name is used, so that worker processes that decode videos start without it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'classifiers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"classifiers.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the lazy names and the loaded names."""
    return sorted({*globals(), *__all__})
