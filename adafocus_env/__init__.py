"""Where to look in a video, as a reinforcement-learning problem. Importing this registers the environments.

    video ──readers, decoding──> clip ──features (glance)──> observation ──agent──> action ──> patch
      ▲ datasets, demo             ▲ clips, transforms         ▲ observation          ▲ action    │
                                                                                                  ▼
    reward <──reward── confidence <──dynamics (head)── focus <──features, bank──────────────── focuser

`dynamics` plays it for N clips at once; `env`, `vector` and `sb3` are its faces.
"""

from typing import Any

from gymnasium.envs.registration import register

ARGUMENTS: dict[str, dict[str, Any]] = {
    "AdaFocus-v0": {"action": "grid"},
    "AdaFocusContinuous-v0": {"action": "continuous"},
    "AdaFocusSkip-v0": {"action": "skip", "cost_weight": 0.05},
    "AdaFocusEasy-v0": {"task": "easy", "action": "grid"},
    "AdaFocusEasyContinuous-v0": {"task": "easy", "action": "continuous"},
    "AdaFocusNormal-v0": {"task": "normal", "action": "grid"},
    "AdaFocusHard-v0": {"task": "hard", "action": "grid"},
    "AdaFocusSparse-v0": {"task": "sparse", "action": "grid"},
    "AdaFocusMemory-v0": {"task": "memory", "action": "grid"},
}
"""What each registered id sets; see `adafocus_env.env.AdaFocusEnv`, and `adafocus_env.tasks` for those of a benchmark task."""

for name, arguments in ARGUMENTS.items():
    of_task = f"adafocus_env.tasks:AdaFocus{arguments['task'].title()}" if "task" in arguments else None
    register(
        id=name,
        entry_point=f"{of_task}Env" if of_task else "adafocus_env.env:AdaFocusEnv",
        vector_entry_point=f"{of_task}VectorEnv" if of_task else "adafocus_env.vector_env:AdaFocusVectorEnv",
        kwargs=arguments,
    )
