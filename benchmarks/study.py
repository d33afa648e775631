"""Functions that all studies share: they train runs with several seeds, each run only once, and write tables and plots."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from adafocus_env.settings import setting, settings
from agents.config.command import compose_config
from agents.config.compose import typed_keys
from agents.config.effect import Reasons, check_effect, check_overrides
from agents.config.settings import DEVICE, Training
from agents.runs.confidence import half_width
from agents.runs.plots import COLOURS
from agents.runs.run_dir import RunDir, to_json
from classifiers.atomic_files import replacing, write_text
from classifiers.errors import InputError

CYCLE = tuple(f"C{number}" for number in (0, 1, 2, 4, 5, 6, 7, 8, 9))  # C3 is red, the colour of "learned"

C = TypeVar("C", bound=Training)


@settings
class Study:
    """Settings that all studies share."""

    seeds: list[int] = setting(lambda: [0, 1, 2], "seeds of the runs of each group")
    overrides: list[str] = setting(list, "further arguments of the training command, for all runs")
    run: str = setting("", "the folder of runs, table and plot; empty: a folder named after the study", path=True)
    device: str = setting("auto", DEVICE)


@dataclass(frozen=True)
class Curve:
    """A curve of accuracy.

    Attributes:
        x: positions on the x axis (points,). A curve with a single point is drawn as a horizontal line.
        accuracy: accuracy of every run (runs, points), from 0 to 1.
    """

    x: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One chart of a plot: its title, the label of its x axis, and curves by name."""

    title: str
    label: str
    curves: Mapping[str, Curve]


def check_lists(**lists: Sequence[object]) -> None:
    """Check the lists that define a grid of runs.

    Raises:
        InputError: If a list is empty or has a value twice.
    """
    for key, values in lists.items():
        if len(set(values)) != len(values) or not values:
            raise InputError(f"{key} must hold at least one value and none twice, got {values}")


def runs_of(
    study: Study,
    root: Path,
    schema: type[C],
    command: str,
    groups: Mapping[str, Sequence[str]],
    set_here: Collection[str],
    without_effect: Callable[[C], Reasons] | None = None,
) -> dict[str, list[C]]:
    """Return the configs of the runs. There is one run per group and seed, with the run directory ``root/GROUP-SEED``.

    Args:
        study: The study with its seeds, overrides and device.
        root: The folder of the runs.
        schema: Settings class of the training command.
        command: Name of the training command.
        groups: The arguments of each group of runs.
        set_here: Keys that the study sets and the overrides must not set.
        without_effect: The argument ``more`` of `check_effect`.

    Raises:
        InputError: If ``seeds`` is empty or has a value twice, or if ``overrides`` sets a key that the study sets or that has no effect.
    """
    check_lists(seeds=study.seeds)
    typed, runs = typed_keys(study.overrides, schema), dict[str, list[C]]()
    check_overrides(typed, set_here)
    for name, arguments in groups.items():
        config = compose_config(schema, command, [*arguments, *study.overrides, f"device={study.device}"])
        check_effect(config, typed, without_effect)
        runs[name] = [replace(config, seed=seed, run=str(root / f"{name}-{seed}")) for seed in study.seeds]
    return runs


def train_missing(runs: Mapping[str, Sequence[C]], train: Callable[[C], None], console: Console) -> None:
    """Train all runs that are not finished yet, one after the other."""
    configs = [config for group in runs.values() for config in group]
    for number, config in enumerate(configs, start=1):
        if not RunDir(config.run).finished:
            console.rule(f"run {number} of {len(configs)}: {config.run}")
            train(config)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (headings, ["---"] * len(headings), *rows))


def save_tables(root: Path, text: str, values: object) -> None:
    """Write ``table.md`` and ``table.json``."""
    write_text(root / "table.md", text)
    write_text(root / "table.json", to_json(values, indent=2) + "\n")


def save_panels(panels: Sequence[Panel], title: str, accuracy: str, path: Path) -> None:
    """Draw charts side by side. A curve shows the mean over runs, with a 95 % confidence interval. All charts have curves with the same
    names.

    Args:
        panels: The charts, from left to right.
        title: Title above all charts.
        accuracy: Label of the y axis.
        path: The PNG file.
    """
    figure = Figure(figsize=(5 * len(panels) + 2, 5), layout="constrained")
    charts = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(charts, panels, strict=True):
        for number, (name, curve) in enumerate(panel.curves.items()):
            _draw(axes, name, curve, number)
        axes.set(title=panel.title, xlabel=panel.label, xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    charts[0].set_ylabel(accuracy)
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Axes, name: str, curve: Curve, number: int) -> None:
    mean, half = 100 * curve.accuracy.mean(0), 100 * half_width(curve.accuracy)
    if len(mean) == 1:
        axes.axhline(mean[0], color="#7f8c8d", linestyle=(":", "-.")[number % 2], linewidth=1, label=name)
        return
    colour, style = COLOURS.get(name, CYCLE[number % len(CYCLE)]), ("-", "--")[number // len(CYCLE) % 2]
    axes.plot(curve.x, mean, linestyle=style, marker="o", markersize=3, color=colour, label=name, linewidth=1 + (name == "learned"))
    axes.fill_between(curve.x, (mean - half).clip(0, 100), (mean + half).clip(0, 100), color=colour, alpha=0.12, linewidth=0)
