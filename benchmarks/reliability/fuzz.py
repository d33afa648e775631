"""Damage videos of nine codecs in nine ways, and predict and check them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from numpy.typing import NDArray

from adafocus_env.demo.videos import DemoTask, demo
from adafocus_env.videos.readers import open_reader
from agents.prediction.output import PREDICTIONS
from benchmarks.results import Aim, Section

SIDE, LENGTH = 64, 6  # pixels and frames of the videos
DECODE_LIMIT = 20.0  # seconds after which a decoder is stopped
COMMAND_LIMIT = 3.0  # seconds per video after which a command counts as hanging; a decoder that hangs takes `DECODE_LIMIT`


@dataclass(frozen=True)
class Codec:
    """An encoder of PyAV with its options, the suffix of its files and its pixel format."""

    encoder: str
    suffix: str
    options: Mapping[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"


CODECS = {
    "H.264": Codec("libx264", ".mp4", {"preset": "ultrafast"}),
    "HEVC": Codec("libx265", ".mov", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}),
    "MPEG-4": Codec("mpeg4", ".avi"),
    "VP8": Codec("libvpx", ".webm", {"deadline": "realtime"}),
    "VP9": Codec("libvpx-vp9", ".mkv", {"deadline": "realtime"}),
    "AV1": Codec("libsvtav1", ".mp4", {"preset": "12"}),
    "MJPEG": Codec("mjpeg", ".avi", pixels="yuvj420p"),
    "FFV1": Codec("ffv1", ".mkv"),
    "MPEG-2": Codec("mpeg2video", ".mpg"),
}
"""The codecs by name."""

Rng = np.random.Generator
Damage = Callable[[bytes, bytes, Rng], bytes]
"""A function of the bytes of a file, the bytes of another file, and a generator. It returns the bytes of the damaged file."""


def truncated(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Return the first bytes, as of an interrupted download."""
    return data[: int(rng.integers(1, len(data)))]


def flipped(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Flip 1 to 255 bits anywhere in the file or, in a quarter of the cases, in the first kilobyte."""
    changed = np.frombuffer(data, np.uint8).copy()
    end = min(1024, len(data)) if rng.random() < 0.25 else len(data)
    for position in rng.integers(end, size=_length(256, rng)):
        changed[position] ^= 1 << rng.integers(8)
    return changed.tobytes()


def spliced(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Return the first bytes of one file and the last bytes of another one, in half of the cases both files as a whole."""
    if rng.random() < 0.5:
        return data + other
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def zeroed(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Replace a range by zeros, as a file system does after a crash."""
    start, length = int(rng.integers(len(data))), _length(len(data), rng)
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def swapped(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Exchange two neighbouring blocks of the same length."""
    start, length = int(rng.integers(len(data))), _length(len(data) // 2, rng)
    blocks = data[start : start + length], data[start + length : start + 2 * length]
    return data[:start] + blocks[1] + blocks[0] + data[start + 2 * length :]


def appended(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Append random bytes."""
    return data + rng.bytes(int(rng.integers(1, 4096)))


def empty(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Return no bytes."""
    return b""


def text(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Return a page of text, as a server sends instead of a missing video."""
    return b"<html><body>404 not found</body></html>\n" * int(rng.integers(1, 100))


def unchanged(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Return the bytes themselves, for a file with a wrong suffix."""
    return data


DAMAGES: Mapping[str, Damage] = {
    "truncated": truncated, "bit flips": flipped, "spliced": spliced, "zeroed": zeroed, "swapped": swapped, "appended": appended,
    "wrong suffix": unchanged, "empty": empty, "text": text,
}  # fmt: skip
"""The kinds of damage by name."""


def _length(limit: int, rng: Rng) -> int:
    """Return a number from 1 to ``limit`` − 1. Each order of magnitude is equally likely."""
    return int(2 ** rng.uniform(0, np.log2(limit)))


def measure(count: int, seed: int, folder: Path) -> list[Section]:
    """Return the sections of `agents.predict` and `agents.check_dataset` on damaged videos."""
    root = folder / "fuzzed"
    files = write_videos(root, count, seed)
    return [_predicted(root, folder / "predictions", files, seed), _checked(root, folder / "report.json", files, seed)]


def write_videos(root: Path, count: int, seed: int) -> dict[Path, str]:
    """Write ``count`` damaged videos as a data set with two classes; return the kind of damage of every file.

    Kinds of damage and codecs take turns, so that every pair of them appears once in 81 files.
    """
    rng, sound = np.random.default_rng(seed), _encoded()
    kinds, codecs = list(DAMAGES), list(CODECS)
    suffixes = sorted({codec.suffix for codec in CODECS.values()})
    files: dict[Path, str] = {}
    for number in range(count):
        kind = kinds[number % len(kinds)]
        name = codecs[number // len(kinds) % len(codecs)]
        variants = sound[name]
        other = sound[codecs[rng.integers(len(codecs))]]
        data = DAMAGES[kind](variants[rng.integers(len(variants))], other[rng.integers(len(other))], rng)
        suffix = CODECS[name].suffix
        if kind == "wrong suffix":
            suffix = str(rng.choice([each for each in suffixes if each != suffix]))
        path = root / ("train", "test")[number // 2 % 4 == 3] / ("even", "odd")[number % 2] / f"{number:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        files[path] = kind
    return files


def _encoded() -> dict[str, list[bytes]]:
    """Return the bytes of two demo videos in every codec."""
    data = demo(DemoTask(train_videos=2, test_videos=1, length=LENGTH), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    os.environ.setdefault("SVT_LOG", "1")  # otherwise, the encoder of AV1 prints its settings
    clips = [open_reader(video.path).get_frames(range(LENGTH), SIDE) for video in data.train]
    with TemporaryDirectory() as folder:
        return {name: [encode(clip, codec, Path(folder, f"video{codec.suffix}")) for clip in clips] for name, codec in CODECS.items()}


def encode(frames: NDArray[np.uint8], codec: Codec, path: Path) -> bytes:
    """Write frames (T, H, W, 3) to a video file, and return its bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec.encoder, rate=25, options=dict(codec.options))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], codec.pixels
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _predicted(root: Path, out: Path, files: Mapping[Path, str], seed: int) -> Section:
    """`python -m agents.predict` on the folder. Every video must have a prediction, or be listed with the reason why it has none."""
    arguments = ["classifier=demo", f"source={root}", f"out={out}", "device=cpu", f"time_limit={DECODE_LIMIT:g}"]
    status, printed, seconds = _run("predict", arguments, len(files))
    lines = (out / PREDICTIONS).read_text(encoding="utf-8").splitlines() if (out / PREDICTIONS).exists() else []
    predicted = {json.loads(line, parse_constant=_not_json)["file"] for line in lines}
    named = {str(path): line for path in files for line in printed.splitlines() if line.startswith("  ") and str(path) in line}
    return _section("agents.predict", _predicted.__doc__, files, seed, {*map(Path, predicted)}, _by_path(named), status, seconds)


def _checked(root: Path, out: Path, files: Mapping[Path, str], seed: int) -> Section:
    """`python -m agents.check_dataset` on the folder. Every video must be counted, and unreadable ones listed with the reason."""
    arguments = ["data=folder", f"data.root={root}", f"out={out}", "data.num_frames=4", "data.val=0", "workers=2"]
    status, _, seconds = _run("check_dataset", arguments, len(files))
    report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"findings": [], "videos": {}}
    named = {finding["video"]: finding["reason"] for finding in report["findings"] if finding["kind"] == "unreadable"}
    reasons = {path: named[key] for path in files if (key := path.relative_to(root).as_posix()) in named}
    counted = sum(report["videos"].values()) == len(files) and len(reasons) == len(named)
    read = {path for path in files if path not in reasons} if counted else set()
    return _section("agents.check_dataset", _checked.__doc__, files, seed, read, reasons, status, seconds)


def _section(
    command: str,
    note: str | None,
    files: Mapping[Path, str],
    seed: int,
    read: set[Path],
    named: dict[Path, str],
    status: object,
    seconds: float,
) -> Section:
    """Return the section of a command: which videos it read, and which it named with a reason."""
    count = len(files)
    section = Section(f"{count:,} damaged videos: {command}", f"{note} Seed {seed}, {seconds:.0f} s. Codecs: {', '.join(CODECS)}.")
    section.figure("videos that are read, or named with the reason", len({*read, *named}), f"of {count}", aim=Aim("≥", count))
    section.figure("videos that are both", len(read & {*named}), f"of {count}", aim=Aim("≤", 0))
    section.figure("commands that hang", float(status == "hung"), "", aim=Aim("≤", 0))
    section.figure("commands that crash", float(status not in ("hung", 0, 1)), "", aim=Aim("≤", 0))
    section.figure("videos whose decoder hung and was stopped", sum("was stopped" in reason for reason in named.values()), f"of {count}")
    section.figure("videos whose decoder crashed", sum("died (" in reason for reason in named.values()), f"of {count}")
    tried, failed = Counter(files.values()), Counter(files[path] for path in named)
    for kind in DAMAGES:
        section.figure(f"{kind}: read", tried[kind] - failed[kind], f"of {tried[kind]}")
    return section


def _run(command: str, arguments: list[str], count: int) -> tuple[int | str, str, float]:
    """Run a command; return its exit status (or "hung"), what it printed, and its seconds."""
    began = time.monotonic()
    try:
        limit = 60 + COMMAND_LIMIT * count
        done = subprocess.run(  # noqa: S603  # a command of this benchmark
            [sys.executable, "-m", f"agents.{command}", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return "hung", "", time.monotonic() - began
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout.decode(errors="replace"))
    return done.returncode, printed, time.monotonic() - began


def _by_path(named: Mapping[str, str]) -> dict[Path, str]:
    return {Path(name): reason for name, reason in named.items()}


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
