"""Draw the videos of version 1 of the tasks. The target moves among look-alikes of other classes. Only the task's mark distinguishes the
target from its look-alikes.

Target and look-alikes have the same size, the same colours and the same kind of motion. In a task in which digits are visible in some
frames only, the target and every look-alike are visible in the same number of frames. Therefore, a rule that does not use the mark finds
the target only by chance.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

from adafocus_env.demo.sprites import background, disc, drift, paste, random_colour, sprite
from adafocus_env.demo.videos import DemoTask, Scene

BURN_IN = 24  # frames of motion before the video begins, so that the first frame is distributed like later frames
SPACING = 27.0  # minimum distance in pixels between the centres of two digits, so that a patch on one digit shows little of the other
TURN = 0.15  # standard deviation of the change of direction, in radians per frame
DIGIT_HUES = (-0.04, 0.04)
TARGET_CUE, OTHER_CUE = (-0.04, 0.04), (0.56, 0.64)  # hues of the discs, if the target's disc in the cue has a special colour
HALO = 24  # side of the disc behind a digit
TARGET_HALO, OTHER_HALOS = 0.62, (0.17, 0.33, 0.45, 0.78)  # hues
HALO_SUM = 210.0  # sum of the three channels, so that all halos have the same brightness
CLUTTER_LEVEL = (110.0, 190.0)  # grey levels


def draw_lookalikes(
    scene: Scene, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw a video of version 1.

    Returns:
        The frames (length, size, size, 3) without noise, the target's centres (length, 2), and whether each frame shows the target's digit
        (length,). These arrays have the same meaning as those that `adafocus_env.demo.renderer.draw` returns.
    """
    task, halo = scene.task, scene.task.mark == "halo"
    count, side = 1 + task.lookalikes, HALO if halo else task.target
    centres = _paths(task, count, side, rng)
    frames = background(task.size, task.length, rng)
    for digit in scene.digits[count:]:
        grey = np.full(3, rng.uniform(*CLUTTER_LEVEL))
        path = drift(task.length, task.size - task.distractor, task.speed, rng)
        paste(frames, sprite(digit, task.distractor, rng), grey, path)
    shown = np.stack([_shown(task, rng) for _ in range(count)])
    discs = _halo_colours(count, rng) if halo else _cue_colours(task, count, rng)
    for number, digit in enumerate(scene.digits[:count]):
        colour = np.full(3, 235.0) if halo else random_colour(DIGIT_HUES, rng)
        with_disc = shown[number] if halo else np.arange(task.length) < task.cue
        _paste_centred(frames, with_disc, disc(side), discs[number], centres[number])
        _paste_centred(frames, shown[number], sprite(digit, task.target, rng), colour, centres[number])
    return frames, centres[0], shown[0]


def _paste_centred(
    frames: npt.NDArray[np.float32],
    when: npt.NDArray[np.bool_],
    opacity: npt.NDArray[np.float32],
    colour: npt.NDArray[np.float64],
    centres: npt.NDArray[np.float64],
) -> None:
    for frame in np.flatnonzero(when):
        paste(frames[frame : frame + 1], opacity, colour, centres[frame : frame + 1] - (len(opacity) - 1) / 2)


def _paths(task: DemoTask, count: int, side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the centres (count, length, 2) of moving digits. The digits change direction slowly, bounce off the borders and stay apart.

    If the mark is motion in the cue, the first digit moves during the cue and the other digits stand still.
    """
    low, high = (side - 1) / 2, task.size - 1 - (side - 1) / 2
    centres, heading = rng.uniform(low, high, (count, 2)), rng.uniform(0, 2 * np.pi, count)
    speed, path = task.speed * rng.uniform(0.7, 1.3, (count, 1)), []
    for frame in range(-BURN_IN, task.length):
        moving = np.full((count, 1), True)
        if task.mark == "cue_motion" and 0 < frame < task.cue:
            moving[1:] = False
        heading += rng.normal(0, TURN, count)
        direction = np.stack([np.sin(heading), np.cos(heading)], axis=1)
        free = centres + speed * direction * moving
        centres = _apart(free, moving, low, high)
        push = centres - free
        normal = push / np.maximum(np.linalg.norm(push, axis=1, keepdims=True), 1e-9)
        direction -= 2 * (direction * normal).sum(1, keepdims=True).clip(max=0) * normal  # digits bounce off each other and off the borders
        heading = np.arctan2(direction[:, 0], direction[:, 1])
        path.append(centres)
    return np.stack(path[BURN_IN:], axis=1)


def _apart(centres: npt.NDArray[np.float64], moving: npt.NDArray[np.bool_], low: float, high: float) -> npt.NDArray[np.float64]:
    """Move the centres (count, 2) inside the borders, and return them.

    Moving digits are pushed until all centres are at least `SPACING` apart.
    """
    others = ~np.eye(len(centres), dtype=bool)
    for _ in range(50):
        centres = np.where(moving, centres.clip(low, high), centres)
        offset = centres[:, None] - centres[None]
        distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-9)
        lacking = (SPACING - distance).clip(0) * others
        if not lacking.any():
            break
        share = moving / np.maximum(1, moving.astype(int) + moving.T)
        centres = centres + (offset * (1.05 * lacking * share / distance)[..., None]).sum(1)
    return centres.clip(low, high)


def _shown(task: DemoTask, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return a mask (length,) of the frames that show a digit. The frames that show a digit are consecutive and lie after the cue."""
    count = max(1, round(task.visible * (task.length - task.cue)))
    first = int(rng.integers(task.cue, task.length - count + 1))
    frames = np.arange(task.length)
    return (frames >= first) & (frames < first + count)


def _cue_colours(task: DemoTask, count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Return the colours of all discs in the cue. The first colour is that of the target's disc."""
    others = OTHER_CUE if task.mark == "cue_colour" else TARGET_CUE
    return [random_colour(TARGET_CUE, rng), *(random_colour(others, rng) for _ in range(count - 1))]


def _halo_colours(count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Return the colours of all halos. The first colour is that of the target's halo.

    If there is only one digit, as in the videos that train the classifier, its halo may have any of the colours.
    """
    hues = rng.permutation(OTHER_HALOS).tolist()
    first = rng.choice([TARGET_HALO, *hues]) if count == 1 else TARGET_HALO
    colours = [np.array(colorsys.hsv_to_rgb(hue, 0.9, 1.0)) for hue in [first, *hues][:count]]
    return [HALO_SUM * colour / colour.sum() for colour in colours]
