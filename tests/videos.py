"""Write small real videos for the tests. They show a bright square that moves over a plain background."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def square_frames(num_frames: int = 12, height: int = 48, width: int = 64, colour: tuple[int, int, int] = (220, 40, 40)) -> np.ndarray:
    """Return frames (n,H,W,3) with a background whose brightness identifies the frame, and a square that moves to the right."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:] = (np.arange(num_frames) * 8 % 200)[:, None, None, None]
    for t, (y, x) in enumerate(square_centres(num_frames, height, width)):
        frames[t, int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = colour
    return frames


def square_centres(num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Return the centres (n,2) of the square as (y,x) in pixels."""
    return np.stack([np.full(num_frames, height // 2), np.linspace(6, width - 7, num_frames).astype(int)], axis=1)


def write_video(
    path: Path,
    frames: np.ndarray | None = None,
    *,
    fps: int = 25,
    faststart: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    pixel_aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode ``frames`` (n,H,W,3), by default the moving square, and return ``path``; ``options`` are those of the codec.

    Args:
        times: display time of each frame in seconds; None: a constant rate.
        pixel_aspect: pixel aspect ratio (width / height); None: not stated.
    """
    frames = square_frames() if frames is None else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else pix_fmt
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Replace the identity display matrix in the track's header by a rotation."""
    data = path.read_bytes()
    start = data.index(struct.pack(">5i", 1 << 16, 0, 0, 0, 1 << 16), data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :])
    return path


def without_decoder(path: Path) -> Path:
    """Set the codec of the file to one without a decoder."""
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    return path


def cut_in_half(path: Path) -> Path:
    """Truncate the file to half of its length, like an interrupted download."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path
