"""Compare `python -m agents.predict engine=ray` with the local engine, on the same cores. This needs `pip install '.[ray]'`."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adafocus_env.demo.videos import DemoTask, demo
from agents.prediction.output import PREDICTIONS
from benchmarks.command import Settings, main
from benchmarks.results import Aim, Section, Spread, Time

CORES = 2
ENGINES = {"local engine": 0, "Ray, 1 node": 1, "Ray, 2 nodes": 2}
"""Number of nodes by name; 0: without Ray."""


def measure(settings: Settings) -> Iterator[Section]:
    """Yield the only section."""
    count, distinct = (8, 4) if settings.quick else (600, 60)
    with TemporaryDirectory() as folder:
        videos = Path(folder, "videos")
        _make_videos(videos, count, distinct)
        section = Section(f"{count} short videos on {CORES} cores, after the first output", inspect.getdoc(_seconds_per_video) or "")
        for number in range(settings.rounds):
            for name, nodes in ENGINES.items():
                out = Path(folder, f"{name} {number}")
                with _cluster(nodes) as env:
                    seconds = _seconds_per_video(videos, out, env)
                section.times.setdefault(name, []).append(Time(seconds, 0.0))
        for name in [*ENGINES][1:]:
            pairs = zip(section.times[name], section.times["local engine"], strict=True)
            ratios = Spread.of([one.wall / other.wall for one, other in pairs])
            section.figure(name, ratios.median, "×", over="local engine", aim=Aim("≤", 1.3))
            section.figure(f"{name}: largest difference of scores", _difference(Path(folder), name), "", over="local engine")
    section.figure("local engine", 1 / Spread.of([each.wall for each in section.times["local engine"]]).median, "videos/s")
    yield section


def _make_videos(folder: Path, count: int, distinct: int) -> None:
    data = demo(DemoTask(train_videos=distinct, test_videos=1), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    folder.mkdir()
    for number in range(count):
        shutil.copyfile(data.train[number % distinct].path, folder / f"{number:04d}.mp4")


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
