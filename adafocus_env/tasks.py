"""The fixed benchmark tasks on the demo videos, one class for each: what is named here differs, all else is as in `AdaFocusEnv`.

What the videos look like is fixed by `adafocus_env.demo.TASKS`, and with the shipped classifier it makes the version of an id. The
scores are those of ``python -m agents.task_scores``, on the 500 test clips: top-1 after the last step, and the mean sum of the rewards
of an episode (reward `random`; the expectation over all cells, or over 16 random patches where actions are continuous). Random is the
mean of five seeds; the oracle looks at the target by the renderer's ground truth.
"""

from __future__ import annotations

from functools import partialmethod

from adafocus_env.env import AdaFocusEnv


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
    As `AdaFocusEnv`, with ``task="easy"``. The classifier is `demo-easy`; ``python -m agents.shipped task=easy out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """

    __init__ = partialmethod(AdaFocusEnv.__init__, task="easy")  # type: ignore[assignment]


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
    As `AdaFocusEnv`. The classifier is `demo`; ``python -m agents.shipped task=normal out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """


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
    As `AdaFocusEnv`, with ``task="hard"``. The classifier is `demo-hard`; ``python -m agents.shipped task=hard out=DIR`` rebuilds it.

    ## Version History
    * v0: first version.
    """

    __init__ = partialmethod(AdaFocusEnv.__init__, task="hard")  # type: ignore[assignment]


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
    As `AdaFocusEnv`, with ``task="sparse"``. The classifier is `demo-sparse`; ``python -m agents.shipped task=sparse out=DIR`` rebuilds
    it, from the same videos with the target in every frame.

    ## Version History
    * v0: first version.
    """

    __init__ = partialmethod(AdaFocusEnv.__init__, task="sparse")  # type: ignore[assignment]


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
    As `AdaFocusEnv`, with ``task="memory"``. The classifier is `demo-memory`; ``python -m agents.shipped task=memory out=DIR`` rebuilds
    it, from the same videos without look-alikes.

    ## Version History
    * v0: first version.
    """

    __init__ = partialmethod(AdaFocusEnv.__init__, task="memory")  # type: ignore[assignment]
