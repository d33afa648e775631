"""Compare the accuracy and the training cost of reinforcement learning with those of end-to-end training. Both start from the same
classifier.

    python -m benchmarks.training_comparison                            PPO, expected_pg and end to end, classifier frozen and trained too
    python -m benchmarks.training_comparison tasks=[track] methods=[ppo,end_to_end] seeds=[0]
    python -m benchmarks.training_comparison network=published          the ablation: the networks that flatten the glance map

Every run has a separate run directory, as with its training command. Finished runs are not repeated, so the same command resumes the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import TaskName
from adafocus_env.settings import setting, settings
from agents import train, train_end_to_end, train_stages
from agents.config.classifier import is_trained
from agents.config.command import run_command
from agents.config.effect import Reasons
from agents.config.settings import Train, TrainEndToEnd, Training, TrainStages
from agents.pipeline.builders import Clips, build_clips, choose_classifier, in_order_of
from agents.pipeline.driver import BEST
from agents.rl.algorithms import without_effect
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from benchmarks.study import CYCLE, Study, check_lists, markdown, runs_of, save_tables, train_missing
from benchmarks.training_cost import training_multiply_adds
from classifiers.atomic_files import replacing
from classifiers.classifier import Classifier
from classifiers.errors import lookup, refuse_if


@dataclass(frozen=True)
class Command:
    """A training command.

    Attributes:
        schema: Class of the settings.
        main: Function that runs the command.
        without_effect: Function that yields the settings that the command does not read, if any.
    """

    schema: type[Any]
    main: Callable[[Any], None]
    without_effect: Callable[[Any], Reasons] | None = None


COMMANDS = {
    "train": Command(Train, train.main, without_effect),
    "train_stages": Command(TrainStages, train_stages.main, without_effect),
    "train_end_to_end": Command(TrainEndToEnd, train_end_to_end.main),
}
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ppo": ("train", ("algo=ppo",)),
    "expected_pg": ("train", ("algo=expected_pg",)),
    "end_to_end": ("train_end_to_end", ("freeze=true",)),
    "ppo_joint": ("train_stages", ("algo=ppo", "first=2", "rounds=1")),
    "expected_pg_joint": ("train_stages", ("algo=expected_pg", "first=2", "rounds=1")),
    "end_to_end_joint": ("train_end_to_end", ("freeze=false", "learning.learning_rate=3e-4", "learning.epochs=10")),
    "ppo_continuous": ("train", ("algo=ppo", "env.action=interpolated", "env.baseline=1")),
}
"""Command and arguments of each method.

Methods whose name ends with `JOINT` also train the classifier. PPO and expected_pg then train policy and classifier in alternating rounds.
"""
JOINT = "_joint"
STARTS_FROM = {"end_to_end_joint": "end_to_end"}
"""Methods that start from the policies of another method. Their costs include those of the other method.

With a new policy, whose patches miss the target, the published loss would first make the classifier forget the classes."""
FURTHER = ("ppo_continuous",)
"""Methods that run only if the user names them. Here, PPO selects the locations of end-to-end training instead of cells."""
SET_HERE = (
    "classifier", "policy", "network", "network.name", "data", "data.name", "data.task", "algo", "algo.name", "env.action", "env.bank",
    "freeze", "first", "seed", "run", "device", "force",
)  # fmt: skip
ACCURACIES = {"hit_rate": "hits", "top1_anytime": "anytime", "top1": "top-1", "gap_anytime": "gap, anytime", "gap_top1": "gap, top-1"}
BOUNDS = ("random", "oracle")
HEADINGS = ("method", *ACCURACIES.values(), *(f"{name}: anytime, top-1" for name in BOUNDS), "10⁹ multiply-adds", "CPU seconds")
COSTS = {"multiply_adds": "multiply-adds of training", "seconds": "CPU seconds of training"}
Measured = dict[str, dict[str, list[dict[str, float]]]]
"""The measurements of each seed, by task and method."""


@settings
class TrainingComparison(Study):
    """`python -m benchmarks.training_comparison`."""

    tasks: list[TaskName] = setting(lambda: ["track", "mover"], "tasks of the demo videos; see docs/tasks.md")
    methods: list[str] = setting(list, "names in `METHODS`; empty: all except for ppo_continuous")
    network: Literal["spatial", "published", "published_v2"] = setting("spatial", "network of all policies")
    classifier: str = setting("auto", "where all trainings start: a bundled classifier or the folder of a checkpoint", path=True)
    of_method: dict[str, list[str]] = setting(dict, "further arguments of a method: {ppo: ['ppo.total_steps=100000']}")


def main(config: TrainingComparison) -> None:
    """Train the missing runs, then write table.md, table.json and cost.png."""
    root, console = Path(config.run or f"runs/training-comparison-{config.network}"), Console()
    runs = check_runs(config, root)
    measured: Measured = {}
    for task in config.tasks:
        clips = clips_of(next(iter(runs[task].values()))[0])  # before the first run, whose seconds would include rendering
        for method, configs in runs[task].items():
            train_missing({method: configs}, COMMANDS[METHODS[method][0]].main, console)
            found = measured.setdefault(task, {})[method] = [measure(each, clips) for each in configs]
            for run, other in zip(found, measured[task].get(STARTS_FROM.get(method, ""), ()), strict=False):
                run.update({cost: run[cost] + other[cost] for cost in COSTS})
    text = "\n".join(f"**{task}**\n\n{markdown(HEADINGS, map(row, by_method, by_method.values()))}" for task, by_method in measured.items())
    seeds = ", ".join(map(str, config.seeds))
    console.print(f"mean (worst) over seeds {seeds}, test clips, network={config.network}\n\n{text}", highlight=False, soft_wrap=True)
    save_tables(root, text, measured)
    save_picture(measured, root / "cost.png")
    console.print(f"saved to {root}: table.md, table.json, cost.png", highlight=False, soft_wrap=True)


def check_runs(config: TrainingComparison, root: Path) -> dict[str, dict[str, list[Training]]]:
    """Return the configs of all runs, grouped by task and then by method. All configs are checked before the first run is trained.

    Raises:
        InputError: If a method is unknown or lacks the method from whose policies it starts, if a list is empty or has a value twice, or
            if the classifier is not trained yet. The same error is raised if ``overrides`` or ``of_method`` sets a key that has no effect
            or that the command itself sets.
    """
    methods = config.methods or [name for name in METHODS if name not in FURTHER]
    check_lists(tasks=config.tasks, methods=methods)
    refuse_if(
        others := [name for name in config.of_method if name not in methods],
        f"of_method must name methods that are run, got {', '.join(others)}; choose from {', '.join(methods)}",
    )
    runs: dict[str, dict[str, list[Training]]] = {task: {} for task in config.tasks}
    for method in methods:
        start = STARTS_FROM.get(method)
        refuse_if(
            start is not None and start not in methods[: methods.index(method)],
            f"methods must name {start} before {method}, which starts from its policies, got {', '.join(methods)}",
        )
        name, arguments = lookup("methods", method, METHODS)
        command, shared = COMMANDS[name], (*arguments, f"classifier={config.classifier}", f"network={config.network}")
        groups = {f"{task}-{method}": (*shared, f"data.task={task}") for task in config.tasks}
        study = replace(config, overrides=[*config.overrides, *config.of_method.get(method, ())])
        found = runs_of(study, root, command.schema, name, groups, SET_HERE, command.without_effect)
        for task in config.tasks:
            runs[task][method] = found[f"{task}-{method}"]
            if start is not None:
                runs[task][method] = _with_policies_of(runs[task][start], runs[task][method])
            refuse_if(
                not is_trained(runs[task][method][0]),
                f"classifier must be a trained one, from which all methods start, got {config.classifier} with the task {task}; give the "
                "folder of a checkpoint",
            )
    return runs


def _with_policies_of(others: Sequence[Training], configs: Sequence[Training]) -> list[Training]:
    """Return the configs with the best policies of other runs, one per seed, as their first policies."""
    return [
        replace(config, policy=str(RunDir(other.run).checkpoints / BEST)) for config, other in zip(configs, others, strict=True)
    ]


def clips_of(config: Training) -> Clips:
    """Return the clips of a run."""
    data = build_data(config.data)
    classifier = choose_classifier(config.classifier, data, torch.device("cpu"))
    assert isinstance(classifier, Classifier)
    with Display() as display:
        return build_clips(data, in_order_of(config.data, classifier.clip_format), classifier.architecture.size, display, seed=config.seed)


def measure(config: Training, clips: Clips) -> dict[str, float]:
    """Return the metrics of a finished run on the test clips, and the cost of its training.

    Random patches and the oracle are measured too, with the classifier of the run.

    ``seconds`` is the CPU time of the process from its start to the end of training, without the final evaluation.
    """
    run = RunDir(config.run)
    policies = run.result()["policies"]
    return {
        **{key: policies["learned"][key] for key in ACCURACIES if key in policies["learned"]},
        **{f"{name}_{key}": policies[name][key] for name in BOUNDS for key in ("top1_anytime", "top1")},
        "multiply_adds": training_multiply_adds(config, clips),
        "seconds": sum(line["cpu_seconds"] for line in run.timing()),
    }


def row(method: str, runs: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Return the cells of a table row: for every metric, the mean over the seeds, followed by the worst seed in parentheses."""

    def values(key: str) -> list[float]:
        return [100 * run[key] for run in runs if key in run]

    cells = [f"{np.mean(found):.1f} ({min(found):.1f})" if (found := values(key)) else "–" for key in ACCURACIES]
    bounds = [f"{np.mean(values(f'{name}_top1_anytime')):.1f}, {np.mean(values(f'{name}_top1')):.1f}" for name in BOUNDS]
    giga, seconds = (float(np.mean([run[key] for run in runs])) for key in COSTS)
    return method, *cells, *bounds, f"{giga / 1e9:,.0f}", f"{seconds:,.0f}"


def save_picture(measured: Measured, path: Path) -> None:
    """Draw anytime accuracy against the cost of training, with a row of charts for each task.

    A marker is filled if the classifier is frozen.
    """
    figure = Figure(figsize=(11, 4 * len(measured)), layout="constrained")
    charts = figure.subplots(len(measured), len(COSTS), squeeze=False, sharex="col")
    for axes_of_task, (task, by_method) in zip(charts, measured.items(), strict=True):
        for axes, cost in zip(axes_of_task, COSTS, strict=True):
            _draw(axes, by_method, cost)
            axes.set(title=task, xscale="log", xlabel=COSTS[cost], ylabel="anytime top-1 on the test clips, %")
    figure.legend(*charts[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Axes, by_method: Mapping[str, Sequence[Mapping[str, float]]], cost: str) -> None:
    """Draw, for each method, a point for the mean over the seeds and a bar for their range."""
    colours = dict(zip(dict.fromkeys(method.removesuffix(JOINT) for method in METHODS), CYCLE, strict=False))
    for method, runs in by_method.items():
        accuracy = 100 * np.array([run["top1_anytime"] for run in runs])
        spread = [[accuracy.mean() - accuracy.min()], [accuracy.max() - accuracy.mean()]]
        colour = colours[method.removesuffix(JOINT)]
        axes.errorbar(
            np.mean([run[cost] for run in runs]), accuracy.mean(), yerr=spread, fmt="o", color=colour,
            markerfacecolor="none" if method.endswith(JOINT) else colour, capsize=4, label=method,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    run_command(main, TrainingComparison, "training_comparison", config_package="benchmarks.configs")
