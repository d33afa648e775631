"""Measure `python -m agents.predict`: killing and restarting it, its memory, and its time compared with that of its networks alone."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from adafocus_env.demo.videos import DemoTask, demo
from agents.prediction.clips import decode, request_for
from agents.prediction.output import PREDICTIONS
from agents.prediction.predictor import Predictor
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.inference import recurrent
from benchmarks.results import Act, Aim, Section, interleaved
from benchmarks.usage import Usage, memory_growth, usage_of
from classifiers.classifier import ClipFormat
from classifiers.optimize import with_execution

KILLS = 3
DISTINCT = 20  # videos; the others are copies
WARM = 0.2  # after this share of the videos, memory should not grow any more
FRAMES = 16  # frames of a clip at full size


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    with TemporaryDirectory() as folder:
        yield _killed(settings, Path(folder))
    yield _cost(settings)


def _killed(settings: Settings, folder: Path) -> Section:
    """The demo classifier and its policy predict a folder. The command is killed after 1/4, 1/2 and 3/4 of the videos, and started again.

    Memory is the memory that the process allocates (see `benchmarks.usage.Usage`).
    """
    count = 8 if settings.quick else 1000
    command = [*command_on(copied_videos(folder / "videos", count)), f"device={settings.device}"]
    section = Section(f"{count} short videos, killed {KILLS} times and started again", _killed.__doc__ or "")
    began = time.perf_counter()
    for kill in range(1, KILLS + 1):
        watch([*command, f"out={folder / 'killed'}"], folder / "killed", count * kill // (KILLS + 1))
    watch([*command, f"out={folder / 'killed'}"], folder / "killed")
    seconds = time.perf_counter() - began
    files = [json.loads(line)["file"] for line in (folder / "killed" / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
    section.figure("predictions that are there twice", len(files) - len({*files}), "", aim=Aim("≤", 0))
    section.figure("videos without a prediction", count - len({*files}), "", aim=Aim("≤", 0))
    section.figure("all starts together", seconds, "s")
    used = watch([*command, f"out={folder / 'whole'}"], folder / "whole")
    section.figure("memory at its peak", max(usage.memory for usage in used), "MB", over="one start without a kill")
    growth = memory_growth(used, WARM)
    return section.figure(f"memory growth after the first {WARM:.0%}", growth, "MB", over="the same", aim=Aim("≤", 50))


def copied_videos(folder: Path, count: int) -> Path:
    """Write ``count`` demo videos to a new folder, at most `DISTINCT` of which differ, and return the folder."""
    data = demo(DemoTask(train_videos=min(count, DISTINCT), test_videos=1), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    folder.mkdir()
    for number in range(count):
        shutil.copyfile(data.train[number % DISTINCT].path, folder / f"{number:05d}.mp4")
    return folder


def command_on(videos: Path) -> list[str]:
    """Return the command that predicts a folder of videos with the demo classifier and its policy."""
    return [sys.executable, "-m", "agents.predict", "classifier=demo", f"source={videos}"]


def watch(command: list[str], out: Path, kill_after: int | None = None) -> list[Usage]:
    """Run a command to its end, or kill it when it has written ``kill_after`` predictions. Return what it used, in the order of time.

    Raises:
        RuntimeError: If the command fails.
    """
    used: list[Usage] = []
    lines = _counter(out / PREDICTIONS)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603  # a command of this benchmark
        while process.poll() is None:
            done = lines()
            if kill_after is not None and done >= kill_after:
                process.send_signal(signal.SIGKILL)
                return used
            used += filter(None, [usage_of(process.pid, done)])
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return used


def _counter(path: Path) -> Callable[[], int]:
    """Return a function that counts the lines of a file."""
    return lambda: path.read_bytes().count(b"\n") if path.exists() else 0


def _cost(settings: Settings) -> Section:
    """The time from files to JSON lines, compared with decoding the same frames and then running the bare networks on tensors."""
    count, length = (2, 4) if settings.quick else (8, FRAMES)
    plain, policy = workload.classifier(settings), workload.policy(settings)
    plain.clip_format = ClipFormat(length)
    how, execution = list(workload.executions(settings, plain).items())[-1]
    network = with_execution(plain, execution)
    videos = [video.path for video in workload.make_videos(settings, count)]
    predictor, requests = Predictor(network, policy), [request_for(network, video) for video in videos]
    glancer, focuser = (workload.bare_backbone(network, which, count * length) for which in ("glancer", "focuser"))
    rest = recurrent(plain, policy, count, length)
    acts: dict[str, Act] = {
        "predict": lambda: [json.dumps(found.to_dict()) for found in predictor.predict_all(videos)],  # type: ignore[union-attr]
        "decode": lambda: deque(decode(requests, num_workers=2), maxlen=0),
        "networks": lambda: [act() for act in (glancer, focuser, rest)],
    }
    title = f"Prediction, {count} videos, {length} frames of each, {how}"
    section = Section(title, _cost.__doc__ or "", interleaved(acts, settings.rounds))
    apart = zip(section.times["decode"], section.times["networks"], strict=True)
    section.times["decode, networks"] = [one + other for one, other in apart]
    aim = None if network.device.type == "cuda" else Aim("≤", 1.15)
    return section.ratio("predict", "decode, networks", over="decoding, then the bare networks", aim=aim).rate("predict", count, "videos/s")


if __name__ == "__main__":
    main("prediction")
