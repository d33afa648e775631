"""The environments of the benchmark tasks: `AdaFocusEnv` and `AdaFocusVectorEnv` with a fixed ``task``; see docs/tasks.md.

The task is fixed because scores are compared by id, so that an id must always stand for the same problem.
"""

import warnings
from typing import Any, ClassVar

from adafocus_env.demo.videos import TASKS
from adafocus_env.env import AdaFocusEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import refuse_if


class FixedTask:
    """A mixin that raises an error if the argument ``task`` differs from the fixed task."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **arguments: Any) -> None:
        refuse_if(
            (asked := arguments.setdefault("task", self.task)) != self.task,
            f"task must be {self.task!r} for this id, got {asked!r}; leave task out, or make AdaFocus-v1 with task={asked!r}",
        )
        super().__init__(*args, **arguments)


class Version0:
    """A mixin that warns that version 0 of the tasks is deprecated."""

    task: ClassVar[str] = "normal@v0"

    def __init__(self, *args: Any, **arguments: Any) -> None:
        now = REPLACEMENTS.get(self.task, "AdaFocusTrack-v1")
        warnings.warn(f"version 0 of the tasks is deprecated; use {now} (docs/tasks.md)", DeprecationWarning, stacklevel=3)
        super().__init__(*args, **arguments)


REPLACEMENTS = {"sparse@v0": "AdaFocusSparse-v1", "memory@v0": "AdaFocusMover-v1"}
"""Replacements for the ids of version 0, by task. For all other tasks, the replacement is `AdaFocusTrack-v1`."""


def class_name(task: str, base: str) -> str:
    """Return the class name for a task, such as ``AdaFocusTrackEnv`` or ``AdaFocusHardV0VectorEnv``.

    The task ``"@v0"``, which means that no task is fixed, gives ``AdaFocusV0Env``.
    """
    return f"AdaFocus{''.join(word.title() for word in task.split('@'))}{base}"


for task in (*TASKS, "@v0"):  # the entry points of the ids
    for name, base in (("Env", AdaFocusEnv), ("VectorEnv", AdaFocusVectorEnv)):
        fixed = (Version0,) * task.endswith("@v0") + (FixedTask,) * (task != "@v0")
        videos = f"of the task {task!r}" if task in TASKS else "of version 0 by default"
        content = {"__doc__": f"`{base.__name__}` on demo videos {videos}.", "__module__": __name__}
        if task != "@v0":
            content["task"] = task
        globals()[class_name(task, name)] = type(class_name(task, name), (*fixed, base), content)
