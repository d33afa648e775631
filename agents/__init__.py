"""Everything that learns or reports."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.policies.networks import load_policy, save_policy

__all__ = ["load_policy", "save_policy"]


def __getattr__(name: str) -> object:
    """Imports PyTorch and Stable-Baselines3 only when a name is used: ``--help`` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    from agents.policies import networks as policy_files

    return getattr(policy_files, name)
