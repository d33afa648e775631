"""Plan the storage, the hours and the cost of large data sets: docs/scale.md explains the tables.

    python -m benchmarks.scale                                            # about a minute on two cores
    python -m benchmarks.scale --gpus 32 --gpu-gmacs 12000 --price 2.5    # your hardware

The costs of decoding and of writing records are measured on this machine, on demo videos of 256 × 256 pixels. The sizes of features and the
multiply-adds follow from the shapes of the networks. The speed of a GPU and its price are assumptions, which the arguments set.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from adafocus_env.clips.shards import SHARD_SIZE as CLIPS_PER_SHARD
from adafocus_env.features.disk_bank import SHARD_SIZE as CLIPS_PER_BANK_FILE
from adafocus_env.videos.windows import decode_windows
from agents.evaluation.inference import policy_flops
from agents.prediction.clips import request_for
from agents.prediction.output import OutputFolder
from agents.prediction.predictor import Predictor
from agents.prediction.result import Prediction
from benchmarks import workload
from benchmarks.command import Settings
from classifiers.classifier import ClipFormat
from classifiers.flops import classifier_flops, video_flops

DATA_SETS = {"ActivityNet": 14_950, "Kinetics-400": 260_000, "a million videos": 1_000_000}
"""Number of labelled videos (rounded): all splits with public labels."""
FRAMES = 16
SIZE = 256, 341  # stored frames in pixels, of videos with an aspect ratio of 4:3
VIDEOS = 8  # that are measured


@dataclass(frozen=True)
class Measured:
    """What was measured on this machine, per video.

    Attributes:
        decode: Processor seconds to decode `FRAMES` frames.
        networks: Processor seconds of the networks on the CPU, in float32.
        record: Size of a record in bytes.
        write: Seconds to write a record to the disk.
    """

    decode: float
    networks: float
    record: float
    write: float


@dataclass(frozen=True)
class Costs:
    """What follows from the networks, per video: multiply-adds, and sizes in bytes.

    Attributes:
        predict: Multiply-adds of a prediction.
        fill: Multiply-adds to store all glances and the focus vectors of all cells.
        clip: Size of a stored clip.
        bank: Size of the stored features in float16.
    """

    predict: int
    fill: int
    clip: int
    bank: int


@dataclass(frozen=True)
class Assumed:
    """What the user assumes.

    Attributes:
        gpus: Number of GPUs.
        gpu_gmacs: Sustained speed of one GPU, in 10⁹ multiply-adds per second.
        cores: Number of cores per GPU.
        price: Price of one GPU, with its cores, per hour.
        hours: Length of one job of an array, in hours.
    """

    gpus: int
    gpu_gmacs: float
    cores: int
    price: float
    hours: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs (8)")
    parser.add_argument("--gpu-gmacs", type=float, default=5000, help="sustained 10^9 multiply-adds per second of a GPU (5000)")
    parser.add_argument("--cores", type=int, default=16, help="cores per GPU (16)")
    parser.add_argument("--price", type=float, default=2.0, help="price of a GPU with its cores per hour (2)")
    parser.add_argument("--hours", type=float, default=1.0, help="hours of one job of an array (1)")
    parser.add_argument("--quick", action="store_true", help="tiny networks and videos, so that the figures mean nothing")
    parsed = vars(parser.parse_args(arguments))
    settings = Settings(parsed.pop("quick"), 1, 0, "cpu", "float32", False, "tuned")
    for name, value in parsed.items():
        if value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value}")
    print("\n\n".join(tables(measure(settings), costs(settings), Assumed(**parsed))))  # noqa: T201


def measure(settings: Settings) -> Measured:
    """Measure the costs of a prediction on this machine."""
    workload.prepare(settings)
    classifier = workload.classifier(settings)
    classifier.clip_format = ClipFormat(FRAMES)
    predictor = Predictor(classifier, workload.policy(settings))
    videos = [video.path for video in workload.make_videos(settings, VIDEOS)]
    requests = [request_for(classifier, video) for video in videos]
    found = [each for each in predictor.predict_all(videos) if isinstance(each, Prediction)]  # the first calls are slower
    decode = _per_call(lambda: [decode_windows(request) for request in requests], time.process_time)
    predict = _per_call(lambda: [*predictor.predict_all(videos)], time.process_time)  # workers decode, whose time does not count
    with TemporaryDirectory(dir=Path.cwd()) as folder, OutputFolder(Path(folder), {}, force=False) as output:
        write = _per_call(lambda: deque(map(output.add, found), maxlen=0), time.perf_counter)
    return Measured(decode, predict, sum(len(json.dumps(each.to_dict())) for each in found) / len(found), write)


def _per_call(act: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the time per video of an act on all measured videos."""
    began = clock()
    act()
    return (clock() - began) / VIDEOS


def costs(settings: Settings) -> Costs:
    """Return what the shapes of the networks determine."""
    classifier, policy = workload.classifier(settings), workload.policy(settings)
    each = classifier_flops(classifier)
    predict = video_flops(classifier, FRAMES, FRAMES, policy_step=policy_flops(policy)).total()
    cells = workload.GRID**2
    features = math.prod(policy.architecture.map_shape) + classifier.glancer.vector_size + cells * classifier.focuser.vector_size
    return Costs(predict, FRAMES * (each.glance + cells * each.focus), FRAMES * 3 * math.prod(SIZE), FRAMES * features * 2)


def tables(measured: Measured, costs: Costs, assumed: Assumed) -> list[str]:
    """Return the tables as Markdown."""
    networks, fill_rate = (assumed.gpu_gmacs * 1e9 / macs for macs in (costs.predict, costs.fill))
    limits = {"the networks": networks, "decoding": assumed.cores / measured.decode, "writing of records": 1 / measured.write}
    rate = min(limits.values())
    per_video = [
        ("decode 16 frames", "measured", f"{measured.decode * 1e3:.3g} ms of one core"),
        ("networks on the CPU, float32", "measured", f"{measured.networks:.3g} s of one core"),
        ("record of a prediction", "measured", f"{measured.record / 1e3:.3g} kB, written in {measured.write * 1e3:.2g} ms"),
        ("networks of a prediction", "computed", f"{costs.predict / 1e9:.3g} · 10⁹ multiply-adds"),
        ("bank: glances, and all cells of every frame", "computed", f"{costs.fill / 1e9:.4g} · 10⁹ multiply-adds"),
        ("stored clip, 16 × 256 × 341 pixels", "computed", f"{costs.clip / 1e6:.3g} MB"),
        ("stored features, float16", "computed", f"{costs.bank / 1e6:.3g} MB"),
        ("speed of a GPU", "assumed", f"{assumed.gpu_gmacs:,.0f} · 10⁹ multiply-adds per second"),
        *((f"limit by {name}, per GPU with {assumed.cores} cores", "computed", f"{limit:.3g} videos/s") for name, limit in limits.items()),
        ("cores per GPU with which decoding would not limit", "computed", f"{networks * measured.decode:.2g}"),
    ]
    storage, hours = [], []
    for name, count in DATA_SETS.items():
        bank_files, shards = -(-count // CLIPS_PER_BANK_FILE), -(-count // CLIPS_PER_SHARD)
        sizes = (count * size for size in (costs.clip, costs.bank, measured.record))
        storage.append((name, f"{count:,}", *map(_bytes, sizes), f"{shards:,}", f"{bank_files:,}"))
        predict, fill = (count / each / 3600 for each in (rate, fill_rate))
        jobs = math.ceil(predict / assumed.hours)
        on_gpus = (f"{value:,.3g} ({value / assumed.gpus:,.2g})" for value in (predict, fill))
        price = f"{(predict + fill) * assumed.price:,.0f}"
        hours.append((name, f"{count * measured.decode / 3600:,.3g}", *on_gpus, price, f"{jobs:,}", f"{-(-count // jobs):,}"))
    return [
        _table(("per video", "", "figure"), per_video),
        _table(("data set", "videos", "clips", "bank, float16", "predictions", "folders of clips", "files of the bank"), storage),
        _table(
            ("data set", "decode, core hours", "predict, GPU hours", "fill a bank, GPU hours", "price of both", "jobs", "videos per job"),
            hours,
        ),
        f"In brackets: hours on {assumed.gpus} GPUs. The price is {assumed.price:g} per GPU hour. A job predicts on one GPU for "
        f"{assumed.hours:g} h, at {rate:.3g} videos/s; use as many shards.",
    ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


def _bytes(count: float) -> str:
    return f"{count / 1e12:,.3g} TB" if count >= 1e12 else f"{count / 1e9:,.3g} GB"


if __name__ == "__main__":
    main()
