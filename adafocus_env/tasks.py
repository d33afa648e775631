"""The environments of the benchmark tasks: `AdaFocusEnv` and `AdaFocusVectorEnv` with a fixed ``task``; docs/tasks.md describes the tasks.

Scores are compared under the name of an id, so that no argument may make it another problem.
"""

from typing import Any, ClassVar

from adafocus_env.demo.videos import TASKS
from adafocus_env.env import AdaFocusEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import refuse_if


class FixedTask:
    """Refuses another ``task`` than its own."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **arguments: Any) -> None:
        refuse_if(
            (asked := arguments.setdefault("task", self.task)) != self.task,
            f"task must be {self.task!r} for this id, got {asked!r}; leave task out, or make AdaFocus-v0 with task={asked!r}",
        )
        super().__init__(*args, **arguments)


for task in TASKS:  # AdaFocusEasyEnv, AdaFocusEasyVectorEnv, …: the entry points of the ids
    for name, base in (("Env", AdaFocusEnv), ("VectorEnv", AdaFocusVectorEnv)):
        name = f"AdaFocus{task.title()}{name}"
        content = {"task": task, "__doc__": f"`{base.__name__}` on the demo videos of the task {task!r}.", "__module__": __name__}
        globals()[name] = type(name, (FixedTask, base), content)
