"""Make a data set of handwritten digits that move over real footage, from any long videos. On these videos, the choice of patches matters.

    python examples/film_digits.py film1.mp4 film2.avi … --out digits
    python -m agents.train_ppo data=folder data.root=digits data.flip=false

The script writes ``OUT/train/DIGIT/*.mp4`` and ``OUT/test/DIGIT/*.mp4``. Next to each video, there is a file with the track of its digit.
The films that ``--test-films`` lists are used only for testing. By default, the last quarter of the films is used for testing. If there is
only one film, it is split by time, with a gap between the splits. No digit image occurs in both splits.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from adafocus_env.videos.readers import open_reader

RATE = 10  # frames per second that are read from a film, so that there is visible motion between frames
ONE_FILM = {"train": (0.0, 0.7), "test": (0.75, 1.0)}  # start and end of each split of a single film, as shares of its length
MARGIN = 0.1  # share of the side that stays empty at each border, because the crop of test frames may cut it off
INK, OUTLINE = (215.0, 255.0), (0.0, 30.0)  # grey levels of a digit and of its outline; on any background, one of them has contrast
LINE = 2  # width of the outline in pixels

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Footage:
    """The part of a film between two positions, given as shares of the film's length."""

    film: Path
    begin: float = 0.0
    end: float = 1.0

    def __str__(self) -> str:
        return self.film.name + ("" if (self.begin, self.end) == (0, 1) else f" ({self.begin:.0%} to {self.end:.0%})")

    def spread(self, length: int) -> Starts:
        """Return the frames at which a window of ``length`` frames can start, at `RATE` frames per second."""
        reader = open_reader(self.film)
        step = max(1, round((reader.fps or RATE) / RATE))
        first, last = (int(share * (len(reader) // step)) for share in (self.begin, self.end))
        if last - first < length:
            raise SystemExit(
                f"{self} has {last - first} frames, {RATE} per second: too few for videos of {length} frames; lower --frames"
            )
        return Starts(self.film, step, first, last - length)


@dataclass(frozen=True)
class Starts:
    """The frames of a film at which a video can start, from ``first`` to ``last``. Only every ``step``-th frame is used."""

    film: Path
    step: int
    first: int
    last: int


@dataclass(frozen=True)
class Style:
    """The appearance of the videos. Lengths are in pixels.

    Attributes:
        side: height and width of a video.
        digit: side of the box of a digit.
        length: frames of a video.
        shapes: number of shapes that move like the digit but have no class.
    """

    side: int
    digit: int
    length: int
    shapes: int

    @property
    def border(self) -> int:
        """Minimum distance of the digit and the shapes, including their outlines, from the borders."""
        return max(LINE, round(MARGIN * self.side))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set."""
    parsed = _parser().parse_args(arguments)
    style = Style(parsed.side, parsed.digit, parsed.frames, parsed.shapes)
    _check(parsed.out, style)
    films = split_films(parsed.films, parsed.test_films)
    footage = {split: [each.spread(style.length) for each in parts] for split, parts in films.items()}  # checks all films first
    for stream, split in enumerate(films):
        count, (images, labels) = getattr(parsed, split), digits(split)
        rng = np.random.default_rng([parsed.seed, stream])
        for number, (film, frames) in enumerate(backgrounds(footage[split], count, style, rng)):
            label = number % 10
            image = images[rng.choice(np.flatnonzero(labels == label))]
            write(parsed.out / split / str(label) / f"{film.stem}-{number:05d}.mp4", *compose(frames, image, style, rng), style.digit)
        print(f"{split}: {count} videos from {', '.join(map(str, films[split]))}")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--test-films", type=Path, nargs="+", default=[], help="films for testing; all others are for training")
    parser.add_argument("--train", type=int, default=1500, help="training videos")
    parser.add_argument("--test", type=int, default=300, help="test videos")
    parser.add_argument("--side", type=int, default=112, help="height and width of a video in pixels")
    parser.add_argument("--digit", type=int, default=18, help="height and width of a digit in pixels")
    parser.add_argument("--frames", type=int, default=24, help="frames of a video")
    parser.add_argument("--shapes", type=int, default=5, help="shapes without a class that move like the digit")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _check(out: Path, style: Style) -> None:
    if any((out / split).exists() for split in ONE_FILM):
        raise SystemExit(f"--out must be a folder without train/ and test/, got {out}; remove them or choose another one")
    if style.side % 2:
        raise SystemExit(f"--side must be even for H.264, got {style.side}")
    largest = style.side - 2 * style.border - 1
    if not 8 <= style.digit <= largest:
        raise SystemExit(f"--digit must be from 8 to {largest} pixels with --side {style.side}, got {style.digit}")


def split_films(films: Sequence[Path], test_films: Sequence[Path] = ()) -> dict[str, list[Footage]]:
    """Return the footage of each split. The splits share no frames."""
    if test_films:
        if both := {film.resolve() for film in films} & {film.resolve() for film in test_films}:
            raise SystemExit(f"a film must be for training or for testing, got {min(both).name} for both; name it once")
        return {"train": [Footage(film) for film in films], "test": [Footage(film) for film in test_films]}
    if len(films) == 1:
        return {split: [Footage(films[0], *shares)] for split, shares in ONE_FILM.items()}
    first = len(films) - max(1, len(films) // 4)
    return split_films(films[:first], films[first:])


def digits(split: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return the digit images (n, 8, 8), with values from 0 to 1, and the labels (n,) of a split.

    Three quarters of scikit-learn's digit images are for training.
    """
    images, labels = load_digits(return_X_y=True)
    chosen = (np.random.default_rng(0).permutation(len(images)) % 4 != 0) == (split == "train")
    return images[chosen].reshape(-1, 8, 8) / 16, labels[chosen]


def backgrounds(footage: Sequence[Starts], count: int, style: Style, rng: np.random.Generator) -> Iterator[tuple[Path, Frames]]:
    """Yield the film and the frames (T, side, side, 3) of ``count`` backgrounds. Every film gives the same number of backgrounds. Each film
    is decoded once."""
    for each, share in zip(footage, np.array_split(np.arange(count), len(footage)), strict=True):
        starts = np.sort(rng.integers(each.first, each.last + 1, size=len(share))).tolist()
        for window in windows(each.film, starts, style.length, each.step, 2 * style.side):
            yield each.film, pan(window, style.side, rng)


def windows(film: Path, starts: Sequence[int], length: int, step: int, short_side: int) -> Iterator[Frames]:
    """Decode a film once, using every ``step``-th frame. For each of the sorted ``starts``, yield frames (length, H, W, 3)."""
    recent: deque[Frames] = deque(maxlen=length)
    ends = deque(start + length - 1 for start in starts)
    with av.open(str(film)) as container:
        for number, frame in enumerate(islice(container.decode(video=0), 0, None, step)):
            scale = short_side / min(frame.width, frame.height)
            small = frame.reformat(round(frame.width * scale), round(frame.height * scale), "rgb24")
            recent.append(small.to_ndarray())
            while ends and ends[0] == number:
                ends.popleft()
                yield np.stack(recent)
            if not ends:
                return
    raise SystemExit(f"{film} ends before its last frame; is it truncated?")


def pan(window: Frames, side: int, rng: np.random.Generator) -> Frames:
    """Crop squares (T, side, side, 3) that move over the frames as if the camera panned, so that not only the digit moves."""
    zoom = rng.uniform(side, min(window.shape[1:3]))
    path = walk(len(window), np.array(window.shape[1:3]) - zoom, rng.uniform(0.5, 3.0), rng)
    cut = [
        Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + zoom, top + zoom))
        for frame, (top, left) in zip(window, path, strict=True)
    ]
    return np.stack([np.asarray(image) for image in cut])


def walk(length: int, span: Floats, speed: float, rng: np.random.Generator) -> Floats:
    """Return a path (length, 2) that changes direction slowly and is reflected at 0 and ``span``. ``speed`` is in pixels per frame."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, length))
    free = rng.uniform(0, 1, 2) * span + np.cumsum(speed * np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0)
    return span - np.abs(np.mod(free, 2 * span) - span)


def compose(frames: Frames, image: Floats, style: Style, rng: np.random.Generator) -> tuple[Frames, Floats]:
    """Draw the shapes, and the digit on top of them; return the frames and the digit's centres (T, 2) as (y, x) in pixels."""
    pasted, span = frames.astype(np.float64), np.full(2, style.side - 2.0 * style.border - style.digit)
    for mark in [*(shape(style.digit, rng) for _ in range(style.shapes)), sprite(image, style.digit, rng)]:
        corners = style.border + walk(len(frames), span, rng.uniform(1.0, 4.0), rng).round().astype(int)
        ink, outline = rng.uniform(*INK), rng.uniform(*OUTLINE)
        mark = np.pad(mark, LINE)
        around = ndimage.grey_dilation(mark, 2 * LINE + 1)[..., None]
        grey = outline + mark[..., None] * (ink - outline)
        for frame, (top, left) in zip(pasted, corners - LINE, strict=True):
            under = frame[top : top + len(around), left : left + len(around)]
            under += around * (grey - under)
    return pasted.round().astype(np.uint8), corners + (style.digit - 1) / 2


def sprite(image: Floats, side: int, rng: np.random.Generator) -> Floats:
    """Return the opacity (side, side) of a digit image (8, 8), rotated by up to 15 degrees."""
    large = ndimage.zoom(image, side / len(image), order=3, mode="grid-constant", grid_mode=True)
    turned = ndimage.rotate(large, rng.uniform(-15, 15), reshape=False, order=1)
    return (1.6 * turned - 0.3).clip(0, 1)  # sharpen, since enlarged strokes are blurred


def shape(side: int, rng: np.random.Generator) -> Floats:
    """Return the opacity (side, side) of a filled shape without a class, which has about the area of a digit and a random rotation."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    solid = SHAPES[rng.integers(len(SHAPES))](y, x, rng.uniform(0.22, 0.32) * side)
    return ndimage.rotate(solid.astype(np.float64), rng.uniform(0, 360), reshape=False, order=1).clip(0, 1)


SHAPES: tuple[Callable[[Floats, Floats, float], NDArray[np.bool_]], ...] = (
    lambda y, x, size: np.hypot(y, x) < size,  # a disc
    lambda y, x, size: np.maximum(np.abs(y), np.abs(x)) < size,  # a square
    lambda y, x, size: (y < size) & (y > 2 * np.abs(x) - size),  # a triangle
)


def write(path: Path, frames: Frames, centres: Floats, digit: int) -> None:
    """Write an H.264 video and a file with the track of its digit: the centres, the side of the box, and the visibility in every frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    track = {"centre": centres.tolist(), "side": digit, "visible": [True] * len(frames)}
    path.with_suffix(".track.json").write_text(json.dumps(track), encoding="utf-8")
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}  # with mbtree, the file would differ each time
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
