"""Where to look in a video, as a reinforcement-learning problem. Importing this registers the environments.

    video ──readers, decoding──> clip ──features (glance)──> observation ──agent──> action ──> patch
      ▲ datasets, demo             ▲ clips, transforms         ▲ observation          ▲ action    │
                                                                                                  ▼
    reward <──reward── confidence <──dynamics (head)── focus <──features, bank──────────────── focuser

`dynamics` plays it for N clips at once; `env`, `vector` and `sb3` are its faces.
"""

from gymnasium.envs.registration import register

for name, entry, task, action in (
    ("AdaFocus-v0", "env:AdaFocusEnv", "normal", "grid"),
    ("AdaFocusContinuous-v0", "env:AdaFocusEnv", "normal", "continuous"),
    ("AdaFocusEasy-v0", "tasks:AdaFocusEasyEnv", "easy", "grid"),
    ("AdaFocusEasyContinuous-v0", "tasks:AdaFocusEasyEnv", "easy", "continuous"),
    ("AdaFocusNormal-v0", "tasks:AdaFocusNormalEnv", "normal", "grid"),
    ("AdaFocusHard-v0", "tasks:AdaFocusHardEnv", "hard", "grid"),
    ("AdaFocusSparse-v0", "tasks:AdaFocusSparseEnv", "sparse", "grid"),
    ("AdaFocusMemory-v0", "tasks:AdaFocusMemoryEnv", "memory", "grid"),
):
    register(
        id=name,
        entry_point=f"adafocus_env.{entry}",
        vector_entry_point="adafocus_env.vector:AdaFocusVectorEnv",
        kwargs={"task": task, "action": action},
    )
