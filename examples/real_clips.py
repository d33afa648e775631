"""Make a small data set of real footage: cut short clips from a few long videos. The label of a clip is the video from which it is cut.

    python examples/real_clips.py clips video1.mp4 video2.avi …
    python -m agents.train_stages data=folder data.root=clips …

The script writes ``OUT/train/VIDEO/*.mp4`` from the first 60 % of each video, and ``OUT/test/VIDEO/*.mp4`` from the last 25 %. Therefore,
no test clip overlaps or directly follows a training clip. Clips of the same split may overlap.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SPLITS = {"train": (0.0, 0.6), "test": (0.75, 1.0)}


@dataclass(frozen=True)
class Clip:
    """A clip: the frames ``first`` to ``last`` of a video, and the path of the file to write."""

    first: int
    last: int
    path: Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut the clips of all videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=0.8, help="length of a clip")
    parser.add_argument("--train", type=int, default=10, help="training clips per video")
    parser.add_argument("--test", type=int, default=5, help="test clips per video")
    parser.add_argument("--side", type=int, default=256, help="shorter side of the clips in pixels")
    parsed = parser.parse_args(arguments)
    for video in parsed.videos:
        with av.open(str(video)) as source:
            stream = source.streams.video[0]
            rate, frames = float(stream.average_rate), stream.frames
            clips = list(plan(parsed.out, video.stem, frames, round(parsed.seconds * rate), {"train": parsed.train, "test": parsed.test}))
            cut(source, clips, round(rate), parsed.side)
        print(f"{video.name}: {len(clips)} clips of {parsed.seconds} s from {frames / rate:.0f} s")  # noqa: T201


def plan(out: Path, name: str, frames: int, length: int, counts: dict[str, int]) -> Iterator[Clip]:
    """Yield, for every split, evenly spaced clips of ``length`` frames from a video that has ``frames`` frames."""
    for split, (begin, end) in SPLITS.items():
        first, last = int(begin * frames), int(end * frames) - length
        if last < first:
            raise SystemExit(f"{name} has {frames} frames: too few for clips of {length} frames in its {split} split; lower --seconds")
        for number, start in enumerate(np.linspace(first, last, counts[split]).astype(int)):
            yield Clip(start, start + length - 1, out / split / name / f"{name}-{number:02d}.mp4")


def cut(source: av.container.InputContainer, clips: Sequence[Clip], rate: int, side: int) -> None:
    """Decode the video once and write its clips."""
    writers = {}
    with ExitStack() as files:
        for number, frame in enumerate(source.decode(video=0)):
            scale = side / min(frame.width, frame.height)
            small = frame.reformat(2 * round(frame.width * scale / 2), 2 * round(frame.height * scale / 2), "yuv420p")
            for clip in clips:
                if number == clip.first:
                    writers[clip] = start(clip.path, rate, small, files)
                if clip.first <= number <= clip.last:
                    output, stream = writers[clip]
                    small.pts, small.time_base = number - clip.first, Fraction(1, rate)
                    output.mux(stream.encode(small))
        for output, stream in writers.values():
            output.mux(stream.encode(None))


def start(path: Path, rate: int, frame: av.VideoFrame, files: ExitStack) -> tuple[av.container.OutputContainer, av.VideoStream]:
    """Open a video file for writing frames of the same size as ``frame``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    output = files.enter_context(av.open(str(path), "w"))
    stream = output.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
    return output, stream


if __name__ == "__main__":
    main()
