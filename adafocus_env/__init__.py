"""Where to look in a video, as a reinforcement-learning problem. Importing this registers the environments.

    FILES      videos/     data set, split → reader, decoded in a worker process → frames
      ▼        demo/       or rendered: the benchmark tasks
    CLIPS      clips/      clip specification → T frames, cropped and flipped; stored once or resampled every epoch
      ▼
    FEATURES   features/   glancer → glance map and vector of a frame; focuser → focus vector of a patch; computed live or stored in a bank
      ▼
    STEP       observation → agent → action → patch → focus vector → head → confidence → reward
               dynamics does this for N clips at once; vector_env, env and sb3_env are its APIs; settings declares their arguments

Every module imports only from the levels above it.
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
"""The arguments of each registered id; see `adafocus_env.env.AdaFocusEnv`. A task that is named here is fixed: see `adafocus_env.tasks`."""

for name, arguments in ARGUMENTS.items():
    of_task = f"adafocus_env.tasks:AdaFocus{arguments['task'].title()}" if "task" in arguments else None
    register(
        id=name,
        entry_point=f"{of_task}Env" if of_task else "adafocus_env.env:AdaFocusEnv",
        vector_entry_point=f"{of_task}VectorEnv" if of_task else "adafocus_env.vector_env:AdaFocusVectorEnv",
        kwargs=arguments,
    )
