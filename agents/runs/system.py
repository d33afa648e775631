"""The machine, the package versions and the commit of a run."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def system_information() -> dict[str, Any]:
    """Return the information needed to repeat a run or to compare its times. Versions and OS are those that Stable-Baselines3 reports."""
    import torch  # imported here: it takes seconds, and commands that only read runs do not need it
    from stable_baselines3.common.utils import get_system_info

    versions, _ = get_system_info(print_info=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"command": sys.argv, "commit": _commit(), "cpu_count": os.cpu_count(), "cuda_device": gpu, **versions}


def command_line(arguments: Sequence[str]) -> str:
    """Return the command line of a process as a user types it, with ``python -m`` for modules of a package."""
    script = Path(arguments[0])
    program = f"python -m {script.parent.name}.{script.stem}" if script.suffix == ".py" else shlex.quote(script.name)
    return " ".join([program, *(shlex.quote(each) for each in arguments[1:])])


def _commit() -> str | None:
    """Return the commit of the checkout, followed by ``-dirty`` if files differ from this commit.

    If the code is not in a checkout, return None.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(  # noqa: S603  # a constant command
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
