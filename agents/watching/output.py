"""Output of moving pictures: a window, a GIF or an MP4 file."""

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
COLOURS = 160  # in a GIF, which may have up to 256; fewer colours make smaller files
SAMPLED = 8  # number of pictures from which the colours are chosen


def check_suffix(out: Path) -> None:
    """Check that the suffix of a file is that of a known format.

    Raises:
        InputError: If the format is unknown.
    """
    refuse_if(out.suffix.lower() not in SUFFIXES, f"out must end in {' or '.join(SUFFIXES)}, got {out}")


def write(pictures: Sequence[Picture], seconds: Sequence[float], out: Path) -> None:
    """Write a looping GIF or an MP4 file, depending on the suffix.

    Args:
        pictures: Pictures of the same size (H, W, 3), with even H and W.
        seconds: Duration of each picture in seconds.
        out: The file, replaced atomically.

    Raises:
        InputError: If the file cannot be written, or PyAV has no encoder.
    """
    if out.suffix.lower() == ".mp4":
        starts = np.cumsum([0.0, *seconds])
        encode(zip(starts.tolist(), [*pictures, pictures[-1]], strict=True), out, "use out=FILE.gif")  # marks the end
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
    except (ImportError, RuntimeError):  # MPLBACKEND requests a backend that does not work here
        return False
    framework = figure.canvas.required_interactive_framework  # read before the figure is closed, which changes its canvas
    pyplot.close(figure)
    return framework is not None


def show(pictures: Sequence[Picture], seconds: Sequence[float], title: str) -> None:
    """Play the pictures in a loop in a window until it is closed; ``seconds`` are their durations."""
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
    del playing  # Matplotlib stops an animation without references
