"""Runs algorithms × seeds on one registered id, one after the other, and writes one table and one picture of learning curves.

    python -m benchmarks.compare_algorithms id=AdaFocusEasy-v0                           all that learn cells, seeds 0, 1 and 2
    python -m benchmarks.compare_algorithms id=AdaFocusEasy-v0 algos=[ppo,dqn] seeds=[0]
    python -m benchmarks.compare_algorithms id=AdaFocusEasyContinuous-v0                 all that learn places

Every run has a folder of its own, as `agents.train` makes it. Runs that are finished are not repeated: the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import adafocus_env
from adafocus_env.action import ACTIONS
from agents.config.command import compose_config, run_command, typed_keys
from agents.config.settings import BenchmarkAlgorithms, Train
from agents.runs.intervals import interval
from agents.runs.jsonl import to_json
from agents.runs.plots import Curve, save_learning_curves
from agents.runs.run_dir import RunDir
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, lookup

SET_HERE = ("algo", "algo.name", "seed", "run", "device", "force", "env.action", "data", "data.name", "data.task")
"""Keys of `agents.train` that follow from those of this command."""
STEPS = ("ppo.total_steps", "ppo.epochs", "algo.total_steps")
"""Those that follow from ``total_steps``, where it is given."""
ENTRY = f"{adafocus_env.__name__}."


@dataclass(frozen=True)
class Measured:
    """What one algorithm did, over its seeds.

    Attributes:
        top1: (seeds,), on the test clips.
        closed: (seeds,), shares of the gap from random to the oracle that it closed.
        random: (seeds,), top-1 of random patches.
        oracle: (seeds,), top-1 of the oracle.
        curve: how it learned.
    """

    top1: NDArray[np.float64]
    closed: NDArray[np.float64]
    random: NDArray[np.float64]
    oracle: NDArray[np.float64]
    curve: Curve


def main(config: BenchmarkAlgorithms) -> None:
    """Makes the runs that are missing, and then table.md, table.json and curves.png."""
    root, console = Path(config.run or f"runs/benchmark-{config.id}"), Console()
    runs = check_runs(config, root)
    for number, train in enumerate(each for configs in runs.values() for each in configs):
        if not RunDir(train.run).finished:
            console.rule(f"run {number + 1} of {sum(map(len, runs.values()))}: {train.run}")
            _train(train)
    measured = {name: _measured([RunDir(train.run) for train in configs]) for name, configs in runs.items()}
    title = f"{config.id}, test split, seeds {', '.join(map(str, config.seeds))}"
    console.print(_shown(measured, title))
    write_text(root / "table.md", _markdown(measured))
    write_text(root / "table.json", to_json({name: _plain(each) for name, each in measured.items()}, indent=2) + "\n")
    levels = {name: float(np.mean([getattr(each, name) for each in measured.values()])) for name in ("random", "oracle")}
    curves = {name: each.curve for name, each in measured.items()}
    save_learning_curves(curves, title, root / "curves.png", {f"{name} (test clips)": level for name, level in levels.items()})
    console.print(f"saved to {root}: table.md, table.json, curves.png", highlight=False, soft_wrap=True)


def check_runs(config: BenchmarkAlgorithms, root: Path) -> dict[str, list[Train]]:
    """The config of every run, by algorithm; all are checked before any begins.

    Raises:
        InputError: there is no such id or algorithm, one does not learn such actions or has no use for what ``overrides`` sets,
            ``overrides`` sets what the command does, or a list names something twice or nothing.
    """
    from agents.config.unread_keys import check_config, check_overrides
    from agents.pipeline.training_run import check_algo  # here, so that --help answers without PyTorch

    algos = algorithms_of(config)
    check_overrides(config.overrides, (*SET_HERE, *([] if config.total_steps is None else STEPS)))
    runs = {}
    for algo in algos:
        train = _run(config, algo)
        check_config(train, typed_keys(config.overrides))
        check_algo(train, _space(config.id))
        runs[algo] = [replace(train, seed=seed, run=str(root / f"{algo}-{seed}")) for seed in config.seeds]
    return runs


def algorithms_of(config: BenchmarkAlgorithms) -> list[str]:
    """The algorithms that the config names, or all that learn the actions of its id.

    Raises:
        InputError: as `check_runs`.
    """
    from agents.rl.algorithms import CONTINUOUS, DISCRETE, check_fits, fitting  # here, so that --help answers without PyTorch

    overrides_of(config.id)
    space = _space(config.id)
    algos = config.algos or fitting(CONTINUOUS if space.shape else DISCRETE)
    for key, values in (("algos", algos), ("seeds", config.seeds)):
        if len(set(values)) != len(values) or not values:
            raise InputError(f"{key}={values}: give each once, and one at least")
    for algo in algos:
        check_fits(algo, f"id={config.id}", space)
    return algos


def overrides_of(name: str) -> list[str]:
    """The arguments of `agents.train` that make the problem of a registered id.

    Raises:
        InputError: there is no such id (suggests the nearest).
    """
    known = {spec.id: spec for spec in gym.registry.values() if str(spec.entry_point).startswith(ENTRY)}
    given = lookup("id", name, known).kwargs
    arguments = [f"env.action={_action(name)}"]
    if _action(name) == "continuous":
        arguments.append("env.baseline=1")  # of places there is no end, and so no exact expectation
    if "task" in given:
        arguments.append(f"data.task={given['task']}")
    return arguments


def _action(name: str) -> str:
    return str(gym.spec(name).kwargs.get("action", "grid"))


def _space(name: str) -> gym.Space[Any]:
    return ACTIONS[_action(name)](7, 96, 24).space


def _run(config: BenchmarkAlgorithms, algo: str) -> Train:
    from agents.rl.algorithms import learns_as_ppo

    given = [f"algo={algo}", *overrides_of(config.id), *config.overrides, f"device={config.device}"]
    train = compose_config(Train, "train", given)
    if config.total_steps is not None:
        (train.ppo if learns_as_ppo(train.algo) else train.algo).total_steps = config.total_steps
    return train


def _train(config: Train) -> None:
    from agents import train
    from agents.rl.algorithms import algorithm_of, class_of

    name = config.algo.name
    config.force = not algorithm_of(class_of(name), name).resumes  # what cannot go on begins anew
    train.main(config)


def _measured(runs: Sequence[RunDir]) -> Measured:
    results = [run.result()["policies"] for run in runs]
    top1, random, oracle = (np.array([each[name]["top1"] for each in results]) for name in ("learned", "random", "oracle"))
    return Measured(top1, (top1 - random) / (oracle - random), random, oracle, _curve(runs))


def _curve(runs: Sequence[RunDir]) -> Curve:
    """The validation top-1 over all runs, at the steps that they have in common."""
    lines = [{line["steps"]: line["val_top1"] for line in run.metrics() if "val_top1" in line} for run in runs]
    minutes = [_minutes(run) for run in runs]
    steps = sorted(set.intersection(*(set(each) for each in lines)))
    values = np.array([[each[step] for step in steps] for each in lines])
    low, high = interval(values)
    worked = np.mean([[each[step] for step in steps] for each in minutes], axis=0)
    return Curve(np.array(steps, float), worked, values.mean(0), np.clip(low, 0, 1), np.clip(high, 0, 1))


def _minutes(run: RunDir) -> dict[int, float]:
    """CPU minutes of the run, from its start to the line of each number of steps."""
    worked = np.cumsum([each["cpu_seconds"] for each in run.timing()]) / 60
    return {line["steps"]: float(minutes) for line, minutes in zip(run.metrics(), worked, strict=True) if "steps" in line}


# The table


HEADINGS = ("algorithm", "top-1", "gap closed", "half of it in all seeds", "steps", "CPU minutes")


def _rows(measured: dict[str, Measured]) -> list[tuple[str, ...]]:
    """What the table says, the best first."""
    return [
        (
            name, _with_interval(each.top1), _with_interval(each.closed), "yes" if (each.closed >= 0.5).all() else "no",
            f"{each.curve.steps[-1]:,.0f}", f"{each.curve.minutes[-1]:.1f}",
        )
        for name, each in sorted(measured.items(), key=lambda item: -item[1].top1.mean())
    ]  # fmt: skip


def _with_interval(values: NDArray[np.float64]) -> str:
    low, high = interval(values)
    return f"{values.mean():.1%}" + (f" ± {(high - low) / 2:.1%}" if len(values) > 1 else "")


def _shown(measured: dict[str, Measured], title: str) -> Table:
    shown = Table(title=title, caption="± is half the width of a 95 % confidence interval of the mean over seeds")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == "algorithm" else "right")
    for row in _rows(measured):
        shown.add_row(*row)
    return shown


def _markdown(measured: dict[str, Measured]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *_rows(measured)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(measured: Measured) -> dict[str, Any]:
    """For JSON."""
    values = {name: getattr(measured, name) for name in ("top1", "closed", "random", "oracle")}
    return {**values, "steps": measured.curve.steps[-1], "cpu_minutes": measured.curve.minutes[-1]}


if __name__ == "__main__":
    run_command(main, BenchmarkAlgorithms, "benchmark_algorithms")
