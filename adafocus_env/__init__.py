"""Patch selection in videos as a reinforcement-learning problem. Importing this package registers the environments.

    FILES      videos/     data set, split → reader, decoded in a worker process → frames
      ▼        demo/       or rendered: the benchmark tasks
    CLIPS      clips/      clip specification → T frames, cropped and flipped; stored once or resampled every epoch
      ▼
    FEATURES   features/   glancer → glance map and vector of a frame; focuser → focus vector of a patch; computed live or stored in a bank
      ▼
    STEP       observation → agent → action → patch → focus vector → head → confidence → reward
               dynamics steps N clips at once; vector_env, env and sb3_env are its APIs; settings declares their arguments

Every module imports only from the levels above it.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gymnasium.envs.registration import register

from adafocus_env.scores import normalized_score, reference_scores

__all__ = ["ARGUMENTS", "__version__", "normalized_score", "reference_scores"]

try:
    __version__ = version("adafocus-env")
except PackageNotFoundError:  # the package is on the import path, but not installed
    __version__ = "0+unknown"

FORMS: dict[str, dict[str, Any]] = {
    "": {"action": "grid"},
    "Continuous": {"action": "continuous"},
    "Skip": {"action": "skip", "cost_weight": 0.05},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{f"AdaFocus{form}-v1": arguments for form, arguments in FORMS.items()},
    **{
        f"AdaFocus{task.title()}{form}-v1": {"task": task, **arguments}
        for task in ("track", "mover", "sparse")
        for form, arguments in FORMS.items()
    },
    **{f"AdaFocus{form}-v0": {"task": "normal@v0", **arguments} for form, arguments in FORMS.items()},
    **{f"AdaFocus{task.title()}-v0": {"task": f"{task}@v0", **FORMS[""]} for task in ("easy", "normal", "hard", "sparse", "memory")},
    "AdaFocusEasyContinuous-v0": {"task": "easy@v0", **FORMS["Continuous"]},
}
"""The arguments of each registered id; see `adafocus_env.env.AdaFocusEnv`. If the id names a task, the task is fixed; see
`adafocus_env.tasks`."""


def _entry_point(name: str, base: str) -> str:
    task = ARGUMENTS[name].get("task", "")
    if name.endswith("-v0"):
        fixed = "" if name.startswith(tuple(f"AdaFocus{form}-" for form in FORMS)) else task.split("@")[0].title()
        return f"adafocus_env.tasks:AdaFocus{fixed}V0{base}"
    if task:
        return f"adafocus_env.tasks:AdaFocus{task.title()}{base}"
    return f"adafocus_env.{'env' if base == 'Env' else 'vector_env'}:AdaFocus{base}"


for name, arguments in ARGUMENTS.items():
    register(id=name, entry_point=_entry_point(name, "Env"), vector_entry_point=_entry_point(name, "VectorEnv"), kwargs=arguments)
