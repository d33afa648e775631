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
    "AdaFocusSkip-v0": {"action": "skip", "price": 0.05},
}
"""What each registered id sets; see `adafocus_env.env.AdaFocusEnv`."""

for name, arguments in ARGUMENTS.items():
    register(
        id=name,
        entry_point="adafocus_env.env:AdaFocusEnv",
        vector_entry_point="adafocus_env.vector:AdaFocusVectorEnv",
        kwargs=arguments,
    )
