"""Compare `python -m agents.predict engine=ray` with the local engine, on the same cores. This needs `pip install '.[ray]'`."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av

from adafocus_env.demo.videos import DemoTask, demo
from agents.prediction.output import PREDICTIONS
from benchmarks.command import Settings, main
from benchmarks.results import Aim, Section, Spread, Time

CORES = 2
DISTINCT = 20  # videos, of which the others are copies
LENGTH = 250  # frames of a long video
ENGINES = {"local engine": 0, "Ray, 1 node": 1, "Ray, 2 nodes": 2}
"""Number of nodes by name; 0: without Ray."""


def measure(settings: Settings) -> Iterator[Section]:
    """Yield a section for short videos, which show the overhead per video, and a section for videos of ten seconds."""
    for what, make, count, aim in (("short videos", _short_videos, 600, None), ("videos of 10 seconds", _long_videos, 200, Aim("≤", 1.3))):
        with TemporaryDirectory() as folder:
            videos = Path(folder, "videos")
            distinct = make(Path(folder, "distinct"), 2 if settings.quick else DISTINCT)
            copied = _copies(distinct, videos, 8 if settings.quick else count)
            yield _compared(f"{copied} {what} on {CORES} cores, after the first output", videos, Path(folder), settings.rounds, aim)


def _compared(title: str, videos: Path, folder: Path, rounds: int, aim: Aim | None) -> Section:
    section = Section(title, inspect.getdoc(_seconds_per_video) or "")
    for number in range(rounds):
        for name, nodes in ENGINES.items():
            with _cluster(nodes) as env:
                seconds = _seconds_per_video(videos, folder / f"{name} {number}", env)
            section.times.setdefault(name, []).append(Time(seconds, 0.0))
    for name in [*ENGINES][1:]:
        pairs = zip(section.times[name], section.times["local engine"], strict=True)
        ratios = Spread.of([one.wall / other.wall for one, other in pairs])
        section.figure(name, ratios.median, "×", over="local engine", aim=aim)
        section.figure(f"{name}: largest difference of scores", _difference(folder, name), "", over="local engine")
    return section.figure("local engine", 1 / Spread.of([each.wall for each in section.times["local engine"]]).median, "videos/s")


def _short_videos(folder: Path, count: int) -> list[Path]:
    """Render demo videos: 16 frames of 128×128 pixels."""
    data = demo(DemoTask(train_videos=count, test_videos=1), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    return [video.path for video in data.train]


def _long_videos(folder: Path, count: int) -> list[Path]:
    """Encode videos of 250 frames of 320×240 pixels, 25 per second, in which demo videos are shown larger and slower."""
    folder.mkdir()
    for number, video in enumerate(_short_videos(folder, count)):
        with av.open(str(video)) as source, av.open(str(folder / f"{number:02d}.mp4"), "w") as target:
            stream = target.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            frames = [frame.to_ndarray(format="rgb24", width=320, height=240) for frame in source.decode(video=0)]
            for shown in range(LENGTH):
                image = av.VideoFrame.from_ndarray(frames[shown * len(frames) // LENGTH], format="rgb24")
                target.mux(stream.encode(image))
            target.mux(stream.encode())
    return sorted(folder.iterdir())


def _copies(distinct: Sequence[Path], folder: Path, count: int) -> int:
    folder.mkdir()
    for number in range(count):
        shutil.copyfile(distinct[number % len(distinct)], folder / f"{number:04d}.mp4")
    return count


@contextmanager
def _cluster(nodes: int) -> Iterator[dict[str, str]]:
    """Run a cluster with `CORES` CPUs, and yield the environment variables of a command that uses it. Without nodes, do nothing."""
    if not nodes:
        yield {}
        return
    from ray.cluster_utils import Cluster

    arguments: dict[str, Any] = {"num_cpus": CORES // nodes, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**arguments, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**arguments)
        cluster.wait_for_nodes()
        yield {"RAY_ADDRESS": cluster.address}
    finally:
        cluster.shutdown()


def _seconds_per_video(videos: Path, out: Path, env: dict[str, str]) -> float:
    """The seconds per video from the first records to the last record. The start of the command, and of Ray, does not count.

    Videos that are decoded while the networks are loaded are an advantage, for both engines.
    """
    engine = ["engine=ray"] if env else ["workers=2"]
    command = [sys.executable, "-m", "agents.predict", "classifier=demo", f"source={videos}", f"out={out}", *engine]
    file, first, began = out / PREDICTIONS, 0, 0.0
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL) as process:  # noqa: S603  # a command of this benchmark
        while process.poll() is None:
            lines = file.read_bytes().count(b"\n") if file.exists() else 0
            if lines and not first:
                first, began = lines, time.perf_counter()
            if lines == len([*videos.iterdir()]):
                break
            time.sleep(0.005)
        ended = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return (ended - began) / (len([*videos.iterdir()]) - first)


def _difference(folder: Path, name: str) -> float:
    """Return the largest difference between the scores of two engines.

    Raises:
        RuntimeError: If classes or boxes differ.
    """
    ours, theirs = (_sorted(folder / f"{each} 0" / PREDICTIONS) for each in (name, "local engine"))
    if [_without_scores(line) for line in ours] != [_without_scores(line) for line in theirs]:
        raise RuntimeError(f"{name}: classes or boxes differ from those of the local engine")
    return max(abs(one - other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*map(_scores, pair), strict=True))


def _sorted(file: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()), key=lambda line: line["file"])


def _scores(line: dict[str, Any]) -> list[float]:
    return [*(each["probability"] for each in line["top"]), *(frame["confidence"] for frame in line["frames"])]


def _without_scores(line: dict[str, Any]) -> object:
    return line["file"], line["top"][0]["class"], [(frame["frame"], frame["box"], frame["class"]) for frame in line["frames"]]


if __name__ == "__main__":
    main("prediction_on_ray")
