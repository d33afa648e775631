"""Where moving pictures go: a window, a GIF or an MP4 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adafocus_env.drawing import Picture
from agents.prediction.video import encode
from classifiers.atomic_files import replacing
from classifiers.errors import refuse_if

SUFFIXES = (".gif", ".mp4")
COLOURS = 160  # of a GIF; it may have 256, and fewer make smaller files
SAMPLED = 8  # pictures that these colours are chosen from


def check_suffix(out: Path) -> None:
    """Check that the format of a file is known.

    Raises:
        InputError: It is not.
    """
    refuse_if(out.suffix.lower() not in SUFFIXES, f"out must end in {' or '.join(SUFFIXES)}, got {out}")


def write(pictures: Sequence[Picture], seconds: Sequence[float], out: Path) -> None:
    """Write a GIF that loops, or an MP4 file, by the suffix.

    Args:
        pictures: All of the same size (H, W, 3), H and W even.
        seconds: How long each is shown.
        out: The file, replaced in one step.

    Raises:
        InputError: The file cannot be written, or PyAV has no encoder.
    """
    if out.suffix.lower() == ".mp4":
        starts = np.cumsum([0.0, *seconds])
        encode(zip(starts.tolist(), [*pictures, pictures[-1]], strict=True), out, "use out=FILE.gif")  # the last one again, at its end
        return
    sampled = [pictures[number] for number in np.unique(np.linspace(0, len(pictures) - 1, SAMPLED).astype(int))]
    palette = Image.fromarray(np.concatenate(sampled)).quantize(COLOURS, dither=Image.Dither.NONE)
    first, *others = (Image.fromarray(each).quantize(palette=palette, dither=Image.Dither.NONE) for each in pictures)
    with replacing(out) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=[round(1000 * each) for each in seconds], loop=0)


def has_display() -> bool:
    """Return whether Matplotlib can open a window."""
    from matplotlib import pyplot

    try:
        figure = pyplot.figure()
    except (ImportError, RuntimeError):  # a backend that was asked for by MPLBACKEND and cannot be used here
        return False
    framework = figure.canvas.required_interactive_framework  # before the figure is closed, which gives it another canvas
    pyplot.close(figure)
    return framework is not None


def show(pictures: Sequence[Picture], seconds: Sequence[float], title: str) -> None:
    """Play the pictures in a window, again and again, until it is closed."""
    from matplotlib import pyplot
    from matplotlib.animation import FuncAnimation
    from matplotlib.artist import Artist

    height, width = pictures[0].shape[:2]
    figure = pyplot.figure(title, figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    image, tick = axes.imshow(pictures[0]), min(seconds)

    def draw(number: int) -> tuple[Artist]:
        image.set_data(pictures[number])
        return (image,)

    order = [number for number, each in enumerate(seconds) for _ in range(max(1, round(each / tick)))]
    playing = FuncAnimation(figure, draw, order, interval=1000 * tick, cache_frame_data=False)
    pyplot.show()
    del playing  # Matplotlib stops an animation that nobody refers to
