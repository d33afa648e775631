"""Where to look in a video, as a reinforcement-learning problem. Importing this registers the environments.

    video ──readers, decoding──> clip ──features (glance)──> observation ──agent──> action ──> patch
      ▲ datasets, demo             ▲ clips, transforms         ▲ observation          ▲ action    │
                                                                                                  ▼
    reward <──reward── confidence <──dynamics (head)── focus <──features, bank──────────────── focuser

`dynamics` plays it for N clips at once; `env`, `vector` and `sb3` are its faces.
"""

from gymnasium.envs.registration import register

for name, action in {"AdaFocus-v0": "grid", "AdaFocusContinuous-v0": "continuous"}.items():
    register(
        id=name,
        entry_point="adafocus_env.env:AdaFocusEnv",
        vector_entry_point="adafocus_env.vector:AdaFocusVectorEnv",
        kwargs={"action": action},
    )
