"""Train several algorithms with several seeds on the environment of one registered id, and write a table and a plot of learning curves.

    python -m benchmarks.compare_algorithms id=AdaFocusTrack-v1                      all algorithms with discrete actions, seeds 0, 1, 2
    python -m benchmarks.compare_algorithms id=AdaFocusTrack-v1 algos=[ppo,dqn] seeds=[0]
    python -m benchmarks.compare_algorithms id=AdaFocusTrackContinuous-v1                 all algorithms with continuous actions

Runs are trained one after the other. Every run has a separate run directory, as with `agents.train`. Finished runs are not repeated, so the
same command resumes the study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import adafocus_env
from adafocus_env.action import ACTIONS
from adafocus_env.settings import setting, settings
from agents import train
from agents.config.command import run_command
from agents.config.settings import AlgoConfig, Train
from agents.pipeline.training_run import check_algo
from agents.rl.algorithms import CONTINUOUS, DISCRETE, check_fits, fitting, learns_as_ppo, without_effect
from agents.runs.confidence import mean_text
from agents.runs.run_dir import RunDir
from benchmarks.study import Curve, Panel, Study, check_lists, markdown, runs_of, save_panels, save_tables, train_missing
from classifiers.errors import lookup

SET_HERE = ("algo", "algo.name", "seed", "run", "device", "force", "env.action", "data", "data.name", "data.task")
"""Keys of `agents.train` whose values follow from the keys of this command."""
STEPS = ("ppo.total_steps", "ppo.epochs", "algo.total_steps")
"""Keys of `agents.train` whose values follow from ``total_steps``, if ``total_steps`` is set."""
ENTRY = f"{adafocus_env.__name__}."
HEADINGS = ("algorithm", "top-1", "gap closed", "half of it in all seeds", "steps", "CPU minutes")


@settings
class CompareAlgorithms(Study):
    """`python -m benchmarks.compare_algorithms`."""

    id: str = setting("AdaFocusTrack-v1", "a registered id")
    algos: list[str] = setting(list, "names in `agents.rl.algorithms.ALGORITHMS`, or dotted paths; empty: all that support the actions")
    total_steps: int | None = setting(None, "environment steps of each run; null: the preset of each algorithm", ge=1)


@dataclass(frozen=True)
class Measured:
    """Results of one algorithm over its seeds.

    Attributes:
        top1: (seeds,), top-1 on the test clips.
        closed: (seeds,), share of the gap between random patches and the oracle that the algorithm closes.
        random: (seeds,), top-1 of random patches.
        oracle: (seeds,), top-1 of the oracle.
        steps: (points,), environment steps of the learning curve.
        cpu_minutes: (points,), CPU minutes, averaged over the seeds.
        validation: (seeds, points), top-1 on the validation split.
    """

    top1: NDArray[np.float64]
    closed: NDArray[np.float64]
    random: NDArray[np.float64]
    oracle: NDArray[np.float64]
    steps: NDArray[np.float64]
    cpu_minutes: NDArray[np.float64]
    validation: NDArray[np.float64]

    @classmethod
    def of(cls, runs: Sequence[RunDir]) -> Measured:
        """Read finished runs. The learning curve has a point for every number of steps after which all runs measured their policy on the
        validation split."""
        results = [run.result()["policies"] for run in runs]
        top1, random, oracle = (np.array([each[name]["top1"] for each in results]) for name in ("learned", "random", "oracle"))
        curves = [{line["steps"]: line["val_top1"] for line in run.metrics() if "val_top1" in line} for run in runs]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        minutes, validation = (
            np.array([[by_step[step] for step in steps] for by_step in some]) for some in (list(map(_minutes, runs)), curves)
        )
        gap = oracle - random
        closed = np.divide(top1 - random, gap, out=np.full_like(gap, np.nan), where=gap != 0)
        return cls(top1, closed, random, oracle, np.array(steps, float), minutes.mean(0), validation)

    def row(self, name: str) -> tuple[str, ...]:
        """Return the cells of the table."""
        accuracies = mean_text(self.top1, ".1%"), mean_text(self.closed, ".1%"), "yes" if (self.closed >= 0.5).all() else "no"
        return name, *accuracies, f"{self.steps[-1]:,.0f}", f"{self.cpu_minutes[-1]:.1f}"

    def summary(self) -> dict[str, Any]:
        """Return the content of ``table.json``."""
        return {**vars(self), "steps": self.steps[-1], "cpu_minutes": self.cpu_minutes[-1]}


def main(config: CompareAlgorithms) -> None:
    """Train the missing runs, then write table.md, table.json and curves.png."""
    root, console = Path(config.run or f"runs/benchmark-{config.id}"), Console()
    runs = check_runs(config, root)
    train_missing(runs, lambda each: train.main(each), console)
    measured = {name: Measured.of([RunDir(each.run) for each in configs]) for name, configs in runs.items()}
    title = f"{config.id}, test split, seeds {', '.join(map(str, config.seeds))}"
    rows = [each.row(name) for name, each in sorted(measured.items(), key=lambda item: -item[1].top1.mean())]
    table = markdown(HEADINGS, rows)
    console.print(f"{title}; ±: 95 % confidence interval of the mean over seeds\n\n{table}", highlight=False, soft_wrap=True)
    save_tables(root, table, {name: each.summary() for name, each in measured.items()})
    save_panels(_panels(measured), title, "top-1 on the validation split, %", root / "curves.png")
    console.print(f"saved to {root}: table.md, table.json, curves.png", highlight=False, soft_wrap=True)


def check_runs(config: CompareAlgorithms, root: Path) -> dict[str, list[Train]]:
    """Return a dictionary from each algorithm to the configs of its runs. All configs are checked before the first run is trained.

    Raises:
        InputError: If the id or an algorithm is unknown, or if an algorithm does not support the actions. The same error is raised if
            ``overrides`` sets a key that the command itself sets or that an algorithm does not read, or if a list is empty or has a value
            twice.
    """
    groups = {algo: [f"algo={algo}", *overrides_of(config.id), *_steps(config, algo)] for algo in algorithms_of(config)}
    set_here = (*SET_HERE, *([] if config.total_steps is None else STEPS))
    runs = runs_of(config, root, Train, "train", groups, set_here, without_effect)
    for configs in runs.values():
        check_algo(configs[0], _space(config.id))
    return runs


def algorithms_of(config: CompareAlgorithms) -> list[str]:
    """Return the algorithms that the config names. If the config names no algorithm, return all algorithms that support the actions of the
    id.

    Raises:
        InputError: For the same reasons as `check_runs`.
    """
    overrides_of(config.id)
    space = _space(config.id)
    algos = config.algos or fitting(CONTINUOUS if space.shape else DISCRETE)
    check_lists(algos=algos)
    for algo in algos:
        check_fits(algo, f"id={config.id}", space)
    return algos


def overrides_of(name: str) -> list[str]:
    """Return the arguments with which `agents.train` trains on the environment of a registered id.

    Raises:
        InputError: If the id is unknown. The message suggests the nearest id.
    """
    known = {spec.id: spec for spec in gym.registry.values() if str(spec.entry_point).startswith(ENTRY)}
    kwargs = lookup("id", name, known).kwargs
    arguments = [f"env.action={_action(name)}"]
    if _action(name) == "continuous":
        arguments.append("env.baseline=1")  # the exact expectation needs a finite number of patches
    if "task" in kwargs:
        arguments.append(f"data.task={kwargs['task']}")
    return arguments


def _action(name: str) -> str:
    return str(gym.spec(name).kwargs.get("action", "grid"))


def _space(name: str) -> gym.Space[Any]:
    return ACTIONS[_action(name)](7, 96, 24).space


def _steps(config: CompareAlgorithms, algo: str) -> list[str]:
    group = "ppo" if learns_as_ppo(AlgoConfig(name=algo)) else "algo"
    return [] if config.total_steps is None else [f"{group}.total_steps={config.total_steps}"]


def _minutes(run: RunDir) -> dict[int, float]:
    """Return, for every logged number of steps, the CPU minutes since the start of the run."""
    minutes = np.cumsum([line["cpu_seconds"] for line in run.timing()]) / 60
    return {line["steps"]: float(passed) for line, passed in zip(run.metrics(), minutes, strict=True) if "steps" in line}


def _panels(measured: Mapping[str, Measured]) -> list[Panel]:
    """Return the learning curves against steps and against CPU minutes, with random patches and the oracle as horizontal lines."""
    levels = {
        f"{name} (test clips)": Curve(np.zeros(1), np.mean([getattr(each, name) for each in measured.values()], axis=0)[:, None])
        for name in ("random", "oracle")
    }
    by_steps = {name: Curve(each.steps, each.validation) for name, each in sorted(measured.items())}
    by_minutes = {name: Curve(each.cpu_minutes, each.validation) for name, each in sorted(measured.items())}
    return [Panel("", "environment steps", {**by_steps, **levels}), Panel("", "CPU minutes", {**by_minutes, **levels})]


if __name__ == "__main__":
    run_command(main, CompareAlgorithms, "compare_algorithms", config_package="benchmarks.configs")
