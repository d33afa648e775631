"""From videos to the store of clips, against the decoder alone reading the same frames in as many processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from adafocus_env.clips.store import ClipSpec, ClipStore
from benchmarks import workload
from benchmarks.clock import Time, Times, timed
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_least
from classifiers.model_zoo import ARCHITECTURES

WORKERS = 2

_DECODER = """
import sys
import decord
side, out, *videos = sys.argv[1:]
file = open(out, "ab") if out else None
for video in videos:
    path, _, numbers = video.rpartition(":")
    height, width = decord.VideoReader(path, num_threads=1)[0].shape[:2]
    scale = int(side) / min(height, width)
    reader = decord.VideoReader(path, width=round(width * scale), height=round(height * scale), num_threads=1)
    frames = reader.get_batch([int(number) for number in numbers.split(",")]).asnumpy()
    if file:
        file.write(frames.data)
"""


def measure(settings: Settings) -> Iterator[Section]:
    """Processes start in both; the children's time is not in the processor time."""
    count, frames = (4, 4) if settings.quick else (64, 16)
    size = ARCHITECTURES["small" if settings.quick else "paper"].size
    videos = workload.make_videos(settings, count)
    wanted = ClipSpec(frames, size, round(size * 256 / 224), train=False)
    with tempfile.TemporaryDirectory() as place:
        store = ClipStore(videos, wanted, folder=Path(place) / "first", num_workers=WORKERS)
        asked = [f"{video.path}:{','.join(map(str, store.indices(number)))}" for number, video in enumerate(videos)]
        times: Times = {"store": [], "decord": [], "decord and a file": [], "crop from the store": [], "copy": []}
        for number in range(1 if settings.quick else settings.rounds):
            folder = Path(place) / str(number)
            times["store"].append(timed(partial(ClipStore, videos, wanted, folder=folder, num_workers=WORKERS)))
            shutil.rmtree(folder)
            times["decord"].append(timed(partial(_decord, wanted, asked)))
            times["decord and a file"].append(timed(partial(_decord, wanted, asked, Path(place))))
            for worker in range(WORKERS):
                (Path(place) / f"{worker}.raw").unlink()
        whole = np.zeros((count, frames, 3, size, size), np.uint8)
        for _ in times["store"]:
            times["crop from the store"].append(timed(lambda: [store.frames(clip) for clip in range(count)]))
            times["copy"].append(timed(whole.copy))
    section = Section(f"Decode {count} videos, {frames} frames of each, {WORKERS} workers", measure.__doc__ or "", _wall_only(times))
    section.ratio("decord", "store", name="videos/s to the store over decord alone", aim=at_least(0.9))
    section.ratio("decord and a file", "store", name="videos/s to the store over decord that writes the bytes to a file")
    yield section.ratio("crop from the store", "copy", name="reading all clips back, cropped, over a copy of as many bytes")


def _decord(wanted: ClipSpec, asked: list[str], folder: Path | None = None) -> None:
    """Reads the frames asked for in `WORKERS` processes; with a folder each writes them to a file there."""
    files = ["" if folder is None else str(folder / f"{worker}.raw") for worker in range(WORKERS)]
    start = [sys.executable, "-c", _DECODER, str(wanted.short_side)]
    running = [subprocess.Popen([*start, file, *asked[worker::WORKERS]]) for worker, file in enumerate(files)]
    assert [process.wait() for process in running] == [0] * len(asked[:WORKERS])


def _wall_only(times: Times) -> Times:
    return {name: [Time(time.wall, time.wall) for time in some] for name, some in times.items()}


if __name__ == "__main__":
    main(["decode"])
