"""Training, evaluation, prediction and reports."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.policies.networks import load_policy, save_policy
    from agents.prediction.clips import read_clip
    from agents.prediction.predictor import Predictor

__all__ = ["Predictor", "load_policy", "read_clip", "save_policy"]

_HOMES = {
    "Predictor": "prediction.predictor",
    "load_policy": "policies.networks",
    "read_clip": "prediction.clips",
    "save_policy": "policies.networks",
}


def __getattr__(name: str) -> object:
    """Import an object from its module only when the object is used, so that ``--help`` does not import PyTorch and Stable-Baselines3."""
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agents.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the names that are already imported, and those that are imported when they are used."""
    return sorted({*globals(), *__all__})
