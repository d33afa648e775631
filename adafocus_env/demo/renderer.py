"""Draw the demo videos, and write them to files.

A handwritten digit determines the class. Around this digit, there is clutter. In version 1 of the tasks, there are also look-alikes.

At the size of the glancer's frames, digits can be located but not classified. At the size of a patch, digits can be classified. In version
0, the target is the only reddish digit. `adafocus_env.demo.lookalikes` draws version 1.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from adafocus_env.demo.lookalikes import draw_lookalikes
from adafocus_env.demo.sprites import background, disc, drift, paste, random_colour, sprite
from adafocus_env.demo.videos import PLACES, DemoTask, Scene
from classifiers.atomic_files import replacing, write_text

TARGET_HUES = (-0.04, 0.04)  # reddish; hues are fractions of the colour circle
DISTRACTOR_HUES = (0.14, 0.86)
JITTER = 3.0  # maximum offset in pixels from the middle of the square


def draw(scene: Scene) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw a video.

    Returns:
        The frames (length, size, size, 3), the target's centres (length, 2), and whether each frame shows the target's digit (length,). The
        centres are (y, x), with (0, 0) at the centre of the top left pixel. Frames with a disc in place of the digit do not show the digit.
    """
    rng = np.random.default_rng(scene.seed)
    frames, centres, visible = (_draw_red if scene.task.mark == "red" else draw_lookalikes)(scene, rng)
    frames += scene.task.noise * rng.standard_normal(frames.shape, dtype=np.float32)
    return frames.clip(0, 255).astype(np.uint8), centres, visible


def render_video(scene: Scene) -> None:
    """Draw one video, and write its MP4 file and its track. Each file is written atomically."""
    import av

    frames, centres, visible = draw(scene)
    track = {"centre": np.round(centres, 2).tolist(), "side": scene.task.target, "visible": visible.tolist(), "label": scene.label}
    write_text(scene.track, json.dumps(track))
    # x264 is deterministic only with mbtree=0, because its rate control by macroblock trees is not deterministic.
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with replacing(scene.path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _draw_red(scene: Scene, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw a video of version 0, without noise."""
    task = scene.task
    marked = 1 + task.lookalikes
    looks = [(task.target, TARGET_HUES)] * marked + [(task.distractor, DISTRACTOR_HUES)] * task.clutter
    drawn = [(sprite(digit, side, rng), random_colour(hues, rng)) for digit, (side, hues) in zip(scene.digits, looks, strict=True)]
    sprites, colours = zip(*drawn, strict=True)
    paths = _stand(task, marked, rng) if task.cue else [_walk(task, len(sprites[0]), rng)]
    paths += [_walk(task, len(sprite), rng) for sprite in sprites[marked:]]
    frames = np.concatenate([background(task.size, length, rng) for length in _scenes(task)])
    shown = _shown(task, rng)
    for number in reversed(range(len(sprites))):  # draw the target last, so that nothing covers it
        when = shown if number < marked else slice(None)
        paste(frames[when], sprites[number], colours[number], paths[number][when])
    if task.cue:
        paste(frames[: task.cue], disc(task.target), random_colour(TARGET_HUES, rng), paths[0][: task.cue])
    visible = np.zeros(task.length, bool)
    visible[shown] = True
    return frames, paths[0] + (len(sprites[0]) - 1) / 2, visible


def _shown(task: DemoTask, rng: np.random.Generator) -> slice:
    """Return a slice of the frames that show the marked digits."""
    if task.visible == 1:
        return slice(task.cue, task.length)
    count = max(1, round(task.visible * (task.length - task.cue)))
    first = int(rng.integers(task.cue, task.length - count + 1))
    return slice(first, first + count)


def _scenes(task: DemoTask) -> list[int]:
    """Return the lengths of a video's scenes in frames.

    After the cue, a new scene starts, in which everything except the target's location is new.
    """
    return [task.cue, task.length - task.cue] if task.cue else [task.length]


def _walk(task: DemoTask, side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the path (length, 2) of the top-left corner of a moving digit."""
    return np.concatenate([drift(length, task.size - side, task.speed, rng) for length in _scenes(task)])


def _stand(task: DemoTask, count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Return the paths (length, 2) of digits that stand still.

    Every digit is in a separate square, and is slightly displaced in every scene.
    """
    side = task.size / PLACES
    squares = np.stack(np.divmod(rng.permutation(PLACES**2)[:count], PLACES), axis=1) * side + (side - task.target) / 2
    positions = squares + rng.uniform(-JITTER, JITTER, (len(_scenes(task)), count, 2))
    return list(np.repeat(positions, _scenes(task), axis=0).swapaxes(0, 1))
