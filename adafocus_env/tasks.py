"""The fixed benchmark tasks on the demo videos, one class for each: what is named here differs, all else is as in `AdaFocusEnv`.

What the videos look like is fixed by `adafocus_env.demo.videos.TASKS`, and with the bundled classifier it makes the version of an id. The
scores are those of ``python -m benchmarks.task_scores``, on the 500 test clips: top-1 after the last step, and the mean sum of the rewards
of an episode (reward `random`; the expectation over all cells, or over 16 random patches where actions are continuous). Random is the
mean of five seeds; the oracle looks at the target by the renderer's ground truth.

No argument changes the task of an id. Those that say what is seen and what is paid (observation, reward, baseline, bank, …) are
free; with another classifier, action, grid or price it is another problem, and its scores do not belong beside these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from adafocus_env.env import AdaFocusEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import InputError


def _fixed(made: Callable[..., None], task: str) -> Callable[..., None]:
    """A constructor for one task: scores are compared under the name of an id, so that no argument may make it another problem."""

    @wraps(made)
    def of_task(self: Any, *args: Any, **arguments: Any) -> None:
        if (given := arguments.setdefault("task", task)) != task:
            raise InputError(
                f"task={given!r}: this id is the task {task!r}, and its scores are compared under that name; "
                f"leave task out, or make AdaFocus-v0 with task={given!r}"
            )
        made(self, *args, **arguments)

    signature = inspect.signature(made)
    with_task = [each.replace(default=task) if name == "task" else each for name, each in signature.parameters.items()]
    of_task.__signature__ = signature.replace(parameters=with_task)  # type: ignore[attr-defined]
    return of_task


class AdaFocusEasyEnv(AdaFocusEnv):
    """A slow target in little clutter, through larger patches.

    ## Description
    As `AdaFocusEnv`, on demo videos with 4 distractors and a target that moves by 2 pixels a frame. Patches have 28 pixels in
    frames of 96. It is there to see an algorithm work at all, within minutes.

    ## Action Space
    `AdaFocusEasy-v0`: `Discrete(49)`, the cells of a 7×7 grid. `AdaFocusEasyContinuous-v0`: `Box(0, 1, (2,), float32)`.

    ## Observation Space
    As `AdaFocusEnv`; by default `map`: `Box((32, 8, 8), float32)`.

    ## Rewards
    As `AdaFocusEnv`; by default `random`.

    | id | policy | top-1 | mean return |
    |---|---|---|---|
    | `AdaFocusEasy-v0` | random | 62.6 % | 0.01 |
    | `AdaFocusEasy-v0` | oracle | 96.2 % | 0.70 |
    | `AdaFocusEasyContinuous-v0` | random | 60.0 % | −0.03 |
    | `AdaFocusEasyContinuous-v0` | oracle | 96.6 % | 0.70 |

    ## Starting State
    As `AdaFocusEnv`: a training clip drawn uniformly.

    ## Episode End
    As `AdaFocusEnv`: terminated after 8 steps.

    ## Arguments
    As `AdaFocusEnv`, but for ``task``, which is "easy".
    The classifier is `demo-easy`; ``python -m benchmarks.rebuild_bundled task=easy out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """

    __init__ = _fixed(AdaFocusEnv.__init__, "easy")  # type: ignore[assignment]


class AdaFocusNormalEnv(AdaFocusEnv):
    """The demo videos as they are by default.

    ## Description
    As `AdaFocusEnv`, whose default task this is: `AdaFocus-v0` is the same problem. There are 10 distractors, and the target moves by
    4 pixels a frame. Patches have 24 pixels in frames of 96.

    ## Action Space
    `AdaFocusNormal-v0`: `Discrete(49)`, the cells of a 7×7 grid. With continuous places it is `AdaFocusContinuous-v0`.

    ## Observation Space
    As `AdaFocusEnv`; by default `map`: `Box((32, 8, 8), float32)`.

    ## Rewards
    As `AdaFocusEnv`; by default `random`.

    | id | policy | top-1 | mean return |
    |---|---|---|---|
    | `AdaFocusNormal-v0` | random | 51.5 % | 0.01 |
    | `AdaFocusNormal-v0` | oracle | 93.8 % | 0.65 |

    ## Starting State
    As `AdaFocusEnv`: a training clip drawn uniformly.

    ## Episode End
    As `AdaFocusEnv`: terminated after 8 steps.

    ## Arguments
    As `AdaFocusEnv`, but for ``task``, which is "normal".
    The classifier is `demo`; ``python -m benchmarks.rebuild_bundled task=normal out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """

    __init__ = _fixed(AdaFocusEnv.__init__, "normal")  # type: ignore[assignment]


class AdaFocusHardEnv(AdaFocusEnv):
    """A fast target in dense clutter, through smaller patches.

    ## Description
    As `AdaFocusEnv`, on demo videos with 20 distractors and a target that moves by 7 pixels a frame. Patches have 20 pixels in
    frames of 96, and the target 14: a look that is off by a few pixels cuts it.

    ## Action Space
    `AdaFocusHard-v0`: `Discrete(49)`, the cells of a 7×7 grid.

    ## Observation Space
    As `AdaFocusEnv`; by default `map`: `Box((32, 8, 8), float32)`.

    ## Rewards
    As `AdaFocusEnv`; by default `random`.

    | id | policy | top-1 | mean return |
    |---|---|---|---|
    | `AdaFocusHard-v0` | random | 40.4 % | 0.01 |
    | `AdaFocusHard-v0` | oracle | 88.8 % | 0.51 |

    ## Starting State
    As `AdaFocusEnv`: a training clip drawn uniformly.

    ## Episode End
    As `AdaFocusEnv`: terminated after 8 steps.

    ## Arguments
    As `AdaFocusEnv`, but for ``task``, which is "hard".
    The classifier is `demo-hard`; ``python -m benchmarks.rebuild_bundled task=hard out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """

    __init__ = _fixed(AdaFocusEnv.__init__, "hard")  # type: ignore[assignment]


class AdaFocusSparseEnv(AdaFocusEnv):
    """The target is visible in only a third of the frames.

    ## Description
    As `AdaFocusEnv`, on demo videos of 24 frames of which 8, one after the other from a random one on, show the target. The clutter is
    there all the time, and so is the hidden target's way. Of a clip's 8 frames, 2 to 4 are worth a look, in most videos none of the
    first two: who stops early has seen nothing, and who knows which frames to skip loses nothing.

    ## Action Space
    `AdaFocusSparse-v0`: `Discrete(49)`, the cells of a 7×7 grid of patches of 24 pixels in frames of 96.

    ## Observation Space
    As `AdaFocusEnv`; by default `map`: `Box((32, 8, 8), float32)`.

    ## Rewards
    As `AdaFocusEnv`; by default `random`.

    | id | policy | top-1 | mean return |
    |---|---|---|---|
    | `AdaFocusSparse-v0` | random | 28.1 % | 0.00 |
    | `AdaFocusSparse-v0` | oracle | 90.8 % | 0.68 |

    ## Starting State
    As `AdaFocusEnv`: a training clip drawn uniformly.

    ## Episode End
    As `AdaFocusEnv`: terminated after 8 steps.

    ## Arguments
    As `AdaFocusEnv`, but for ``task``, which is "sparse".
    The classifier is `demo-sparse`; ``python -m benchmarks.rebuild_bundled task=sparse out=DIR`` rebuilds it, from the same videos with
    the target in every frame.

    ## Version History
    * v0: first version.
    """

    __init__ = _fixed(AdaFocusEnv.__init__, "sparse")  # type: ignore[assignment]


class AdaFocusMemoryEnv(AdaFocusEnv):
    """Only who remembers an early cue can know where to look.

    ## Description
    As `AdaFocusEnv`, on demo videos of two scenes. In the first (2 of a clip's 8 frames) a red disc marks a place, and no red digit is
    shown. In the second, five red digits of different classes stand still, in five of the nine squares of the frame; the class of the
    video is that of the digit whose square the disc has marked. Ground, clutter, colours and the exact places are drawn anew for the
    second scene: nothing in it tells the target from its four look-alikes.

    A policy without memory, which sees the glance of one frame at a time, is therefore right in about 1 of 5 videos (20 %) at best,
    whatever it looks at: given all that it sees in the second scene, each of the five digits is the target with the same probability,
    and the classifier, which was trained without look-alikes, does not tell them apart for it. A policy with memory can be the oracle.
    The bound is one of policies that see the current frame alone: an observation that tells the clip, or the state of the
    classifier's head, is a memory of a kind.

    ## Action Space
    `AdaFocusMemory-v0`: `Discrete(49)`, the cells of a 7×7 grid of patches of 24 pixels in frames of 96. A patch on one digit shows
    nothing of the others.

    ## Observation Space
    As `AdaFocusEnv`; by default `map`: `Box((32, 8, 8), float32)`.

    ## Rewards
    As `AdaFocusEnv`; by default `random`.

    | id | policy | top-1 | mean return |
    |---|---|---|---|
    | `AdaFocusMemory-v0` | random | 15.2 % | −0.01 |
    | `AdaFocusMemory-v0` | oracle | 89.6 % | 1.17 |

    ## Starting State
    As `AdaFocusEnv`: a training clip drawn uniformly.

    ## Episode End
    As `AdaFocusEnv`: terminated after 8 steps.

    ## Arguments
    As `AdaFocusEnv`, but for ``task``, which is "memory".
    The classifier is `demo-memory`; ``python -m benchmarks.rebuild_bundled task=memory out=DIR`` rebuilds it, from the same videos without
    look-alikes.

    ## Version History
    * v0: first version.
    """

    __init__ = _fixed(AdaFocusEnv.__init__, "memory")  # type: ignore[assignment]


class AdaFocusEasyVectorEnv(AdaFocusVectorEnv):
    """N of `AdaFocusEasyEnv`, stepped together; see `AdaFocusVectorEnv`."""

    __init__ = _fixed(AdaFocusVectorEnv.__init__, "easy")  # type: ignore[assignment]


class AdaFocusNormalVectorEnv(AdaFocusVectorEnv):
    """N of `AdaFocusNormalEnv`, stepped together; see `AdaFocusVectorEnv`."""

    __init__ = _fixed(AdaFocusVectorEnv.__init__, "normal")  # type: ignore[assignment]


class AdaFocusHardVectorEnv(AdaFocusVectorEnv):
    """N of `AdaFocusHardEnv`, stepped together; see `AdaFocusVectorEnv`."""

    __init__ = _fixed(AdaFocusVectorEnv.__init__, "hard")  # type: ignore[assignment]


class AdaFocusSparseVectorEnv(AdaFocusVectorEnv):
    """N of `AdaFocusSparseEnv`, stepped together; see `AdaFocusVectorEnv`."""

    __init__ = _fixed(AdaFocusVectorEnv.__init__, "sparse")  # type: ignore[assignment]


class AdaFocusMemoryVectorEnv(AdaFocusVectorEnv):
    """N of `AdaFocusMemoryEnv`, stepped together; see `AdaFocusVectorEnv`."""

    __init__ = _fixed(AdaFocusVectorEnv.__init__, "memory")  # type: ignore[assignment]
