"""The report on a conditional exit: a row in the table of policies, and accuracy against cost for all p, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Column, Table

from adafocus_env.terminal import plain
from agents.evaluation.conditional_exit import ExitFit
from agents.evaluation.exit_curve import exit_curve, stop
from agents.evaluation.metrics import ACCURACIES, PolicyEvaluation, summarize
from agents.runs.plots import COLOURS, OTHER_COLOUR
from classifiers.atomic_files import replacing
from classifiers.flops import VideoFlops

EXIT = "exit"
"""Name of the learned policy with an exit, in results and tables."""
EVERY = 5  # only every fifth point of the curve has a row in the table
BESIDE = ("learned", "random", "oracle")


@dataclass(frozen=True)
class ExitChoice:
    """The conditional exit that the user requested.

    Attributes:
        fit: Confidences on training clips, from which the thresholds are computed.
        p: Parameter of the exit: the share of clips that exit after step k is proportional to p^k.
        confidence: A name in `agents.evaluation.conditional_exit.CONFIDENCES`.
    """

    fit: ExitFit
    p: float
    confidence: str

    def measure(self, evaluation: PolicyEvaluation, flops: VideoFlops) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metrics of the policy with this exit (see `agents.evaluation.metrics.summarize`), and the entry ``exit`` for a result.

        Args:
            evaluation: The evaluation without an exit.
            flops: Multiply-adds of a clip, including the policy.
        """
        thresholds = self.fit.thresholds(self.p, self.confidence)
        steps = thresholds.steps(evaluation.scores)
        about = {
            "p": self.p, "confidence": self.confidence, "thresholds": thresholds.values[:-1], "steps": float(steps.mean() + 1),
            "train_clips": len(self.fit.confidences[self.confidence]),
            "curve": exit_curve(evaluation, self.fit, self.confidence, flops),
        }  # fmt: skip
        return summarize(stop(evaluation, steps, flops)), about


def exit_table(curve: Sequence[Mapping[str, float]], title: str, metric: str) -> Table:
    """Return a table of some points of a curve, with p, the accuracy, the GFLOPs per video and the steps before the exit."""
    shown = Table(*(Column(name, justify="right") for name in ("p", ACCURACIES[metric], "GFLOPs", "steps")), title=plain(title))
    for point in curve[::EVERY]:
        shown.add_row(f"{point['p']:.1f}", f"{point[metric]:.1%}", f"{point['gflops']:.4f}", f"{point['steps']:.2f}")
    return shown


def save_exit_curve(
    curve: Sequence[Mapping[str, float]], measures: Mapping[str, Mapping[str, Any]], title: str, path: Path, *, metric: str
) -> None:
    """Draw accuracy against cost, for the learned policy with an exit and for all policies without an exit.

    Args:
        curve: The points of the curve.
        measures: Metrics of every policy, as `agents.evaluation.evaluate.evaluate` returns them.
        title: Title of the plot.
        path: The PNG file.
        metric: The accuracy to draw, a name in `agents.evaluation.metrics.ACCURACIES`.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [point["gflops"] for point in curve], [100 * point[metric] for point in curve], marker="o", markersize=3,
        color=COLOURS["learned"], label="learned, conditional exit",
    )  # fmt: skip
    for name in [name for name in BESIDE if name in measures]:
        at, colour = (measures[name]["gflops"], 100 * measures[name][metric]), COLOURS.get(name, OTHER_COLOUR)
        axes.plot(*at, marker="s", linestyle="none", color=colour, label=f"{name}, every frame")
    axes.set(xlabel="GFLOPs per video (a multiply-add as one)", ylabel=f"{ACCURACIES[metric]}, %", title=title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
