"""Accuracy against cost where frames are skipped: the learned way and its competitors, on demo tasks, one table and one picture.

    python -m benchmarks.skipping_study                                       normal, hard and sparse, seeds 0, 1 and 2
    python -m benchmarks.skipping_study tasks=[sparse] seeds=[0] keeps=[0.25]

Every policy is a run of `agents.train_ppo` with ppo=skip, in a folder of its own. Runs that are finished are not repeated: the same
command goes on. All thresholds are solved on the validation part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from adafocus_env.datasets import TaskName
from agents.config.command import compose_config, run_command
from agents.config.compose import typed_keys
from agents.config.effect import check_effect, check_overrides
from agents.config.settings import DataConfig, EnvConfig, SkipCurve, TrainPPO
from agents.runs.jsonl import to_json
from agents.runs.plots import Tradeoff, save_tradeoffs
from agents.runs.run_dir import RunDir
from classifiers.atomic_files import write_text
from classifiers.errors import InputError

EVERY = "every frame"


@dataclass(frozen=True)
class Point:
    """What one way to skip did for one budget, over the seeds.

    Attributes:
        keep: the share of the frames that was asked for.
        top1: (seeds,), on the test clips.
        gflops: (seeds,), of a video.
        patch_mask: (seeds,), share of the frames that was looked at.
    """

    keep: float
    top1: NDArray[np.float64]
    gflops: NDArray[np.float64]
    patch_mask: NDArray[np.float64]


Points = dict[str, list[Point]]  # of every way by its name, for every share
Single = tuple[float, float, float, float]  # the same of one seed


def main(config: SkipCurve) -> None:
    """Makes the runs that are missing, and then table.md, table.json and curve.png."""
    root, console = Path(config.run), Console()
    runs = check_runs(config, root)
    for train in (each for task in runs.values() for each in task):
        if not RunDir(train.run).finished:
            console.rule(train.run)
            _train(train)
    measured = {task: _over_seeds([measure(RunDir(each.run), config) for each in trains]) for task, trains in runs.items()}
    sections = (f"**{DataConfig(task=task).label}, test split**\n\n{markdown(each, config.keeps)}" for task, each in measured.items())
    text = "\n".join(sections)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    write_text(root / "table.md", text)
    write_text(root / "table.json", to_json({task: _plain(points) for task, points in measured.items()}, indent=2) + "\n")
    curves: dict[str, dict[str, Tradeoff]] = {
        task: {name: _tradeoff(each) for name, each in points.items()} for task, points in measured.items()
    }
    save_tradeoffs(curves, f"frames skipped, seeds {', '.join(map(str, config.seeds))}", root / "curve.png")
    console.print(f"saved to {root}: table.md, table.json, curve.png", highlight=False, soft_wrap=True)


def check_runs(config: SkipCurve, root: Path) -> dict[TaskName, list[TrainPPO]]:
    """The config of every run, by task; all are checked before any begins.

    Raises:
        InputError: a list names something twice or nothing, a share cannot be kept, or ``overrides`` sets what the command does
            or what has no effect.
    """
    from agents.evaluation.budgets import check_keep

    for key, values in (("tasks", config.tasks), ("seeds", config.seeds), ("keeps", config.keeps)):
        if len(set(values)) != len(values) or not values:  # type: ignore[arg-type]
            raise InputError(f"{key}={values}: give each once, and one at least")
    check_overrides(typed_keys(config.overrides, TrainPPO), ["data", "data.name", "data.task", "seed", "run", "device"])
    runs: dict[TaskName, list[TrainPPO]] = {}
    for task in config.tasks:
        train = _run(config, task)
        runs[task] = [replace(train, seed=seed, run=str(root / f"{task}-{seed}")) for seed in config.seeds]
    least = 1 / runs[config.tasks[0]][0].data.num_frames
    for keep in config.keeps:
        if check_keep(keep) < least:
            raise InputError(f"keeps={keep} is less than one frame of a clip, which an exit cannot do without; choose {least} or more")
    return runs


def _run(config: SkipCurve, task: str) -> TrainPPO:
    train = compose_config(TrainPPO, "train_ppo", ["ppo=skip", f"data.task={task}", f"device={config.device}", *config.overrides])
    check_effect(train, typed_keys(config.overrides, TrainPPO))
    return train


def _train(config: TrainPPO) -> None:
    from agents import train_ppo

    train_ppo.main(config)


def measure(run: RunDir, config: SkipCurve) -> dict[str, list[Single]]:
    """Every way on the test clips of a finished run, for every share; see `Point`.

    Raises:
        InputError: the run has no validation part.
    """
    from adafocus_env.build import choose_device
    from adafocus_env.datasets import build_data
    from adafocus_env.videos.unreadable import Unreadable
    from agents.evaluation.budgets import cost_of
    from agents.pipeline.builders import features_of, part
    from agents.policies.checkpoint import load_policy
    from agents.runs.progress import Display
    from benchmarks.skip_competitors import WAYS, Part, Task, every_frame
    from classifiers import checkpoint

    patch_mask, device = run.config(), choose_device(config.device)
    data, env = DataConfig(**patch_mask["data"]), EnvConfig(**patch_mask["env"])
    if not data.val:
        raise InputError(f"run={run.root} has no validation part to solve budgets on: set data.val to a share of the training videos")
    classifier = checkpoint.load(run.checkpoints / "classifier", device)
    policy = load_policy(run.checkpoints / "best", device)
    videos = build_data(data)
    with Display() as display, Unreadable() as unreadable:
        display.say(videos.summary)
        clips = {split: part(videos, split, data, classifier.architecture.size, display, unreadable) for split in ("val", "test")}
        val, test = (Part.of(features_of(classifier, clips[each], env), policy, env.skipped) for each in ("val", "test"))
        cost, steps = cost_of(test.features, policy, env.skipped), test.size[1]
        found: dict[str, list[Single]] = {}
        for name, way in (*WAYS.items(), (EVERY, lambda task: every_frame(task.test))):
            found[name] = []
            for keep in config.keeps if name != EVERY else [1.0]:
                each = way(Task(val, test, keep, cost, patch_mask["seed"]))
                top1, gflops = (each.scores.argmax(-1) == test.labels).mean(), cost.of(each.num_patches, each.seen).mean() / 1e9
                found[name].append((keep, float(top1), float(gflops), float(each.num_patches.mean()) / steps))
    return found


def _over_seeds(runs: list[dict[str, list[Single]]]) -> Points:
    """The same with the seeds in arrays."""
    points: Points = {}
    for name, first in runs[0].items():
        values = np.array([run[name] for run in runs])  # (seeds, shares, 4)
        points[name] = [Point(single[0], *values[:, place, 1:].T) for place, single in enumerate(first)]
    return points


def _tradeoff(points: list[Point]) -> Tradeoff:
    from benchmarks.compare_algorithms import interval

    values = np.stack([each.top1 for each in points], axis=1)
    low, high = interval(values)
    gflops = np.array([each.gflops.mean() for each in points])
    return Tradeoff(gflops, values.mean(0), np.clip(low, 0, 1), np.clip(high, 0, 1))


def markdown(points: Points, keeps: list[float]) -> str:
    """The table of a task: top-1, its interval, GFLOPs a video and the share of the frames that was looked at."""
    lines = [("", *(f"{keep:.0%} kept" for keep in keeps)), ("---",) * (len(keeps) + 1)]
    for name, each in points.items():
        lines.append((name, *map(_cell, each), *[""] * (len(keeps) - len(each))))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(point: Point) -> str:
    from benchmarks.compare_algorithms import interval

    low, high = interval(point.top1)
    spread = f" ± {50 * (high - low):.1f}" if len(point.top1) > 1 else ""
    return f"{100 * point.top1.mean():.1f}{spread} % @ {1000 * point.gflops.mean():.1f} M, {point.patch_mask.mean():.1%}"


def _plain(points: Points) -> dict[str, object]:
    """For JSON."""
    return {name: [vars(point) for point in each] for name, each in points.items()}


if __name__ == "__main__":
    run_command(main, SkipCurve, "skip_curve")
