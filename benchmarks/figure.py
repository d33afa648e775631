"""Draw the leaderboard for the README: the anytime accuracy of rules, learners and the oracle on each task.

    python -m benchmarks.figure                        docs/leaderboard.json → docs/leaderboard.png
    python -m benchmarks.figure out=mine.png policies=[random,ppo,oracle]
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adafocus_env.settings import setting, settings
from agents.config.command import run_command
from agents.policies.baselines import RULES
from benchmarks.leaderboard import CLIPS, Board, Row
from classifiers.atomic_files import replacing
from classifiers.errors import refuse_if

COLOURS = {"ppo": "#c0392b", "oracle": "#2c3e50"}
OTHER_COLOUR = "#95a5a6"


@settings
class FigureSettings:
    """`python -m benchmarks.figure`."""

    board: str = setting("docs/leaderboard.json", "the JSON file of the leaderboard", path=True)
    out: str = setting("docs/leaderboard.png", "the picture to write", path=True)
    policies: list[str] = setting(lambda: ["random", *RULES, "ppo", "oracle"], "rows of the figure, starting at the top")


def main(config: FigureSettings) -> None:
    """Draw the picture."""
    board: Board = json.loads(Path(config.board).read_text(encoding="utf-8"))
    for task, rows in board.items():
        refuse_if(
            missing := [name for name in config.policies if name not in rows],
            f"policies must be rows of {task}, got {', '.join(missing)}; choose from {', '.join(rows)}",
        )
    figure = Figure(figsize=(3.3 * len(board) + 1, 0.27 * len(config.policies) + 1.2), layout="constrained")
    for axes, (task, rows) in zip(figure.subplots(1, len(board), sharey=True, squeeze=False)[0], board.items(), strict=True):
        _draw(axes, rows, config.policies)
        axes.set_title(task)
    figure.supxlabel(f"anytime top-1 on {CLIPS:,} test clips, % (mean and range of the seeds)", fontsize="medium")
    with replacing(Path(config.out)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Axes, rows: Mapping[str, Row], names: Sequence[str]) -> None:
    """Draw one task. For each policy, show the mean and the range over its seeds."""
    for position, name in enumerate(names):
        values, colour = 100 * np.array(rows[name]["top1_anytime"]), COLOURS.get(name, OTHER_COLOUR)
        low, mean, high = values.min(), values.mean(), values.max()
        axes.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, markersize=4, capsize=4)
        text = f"{mean:.1f}" + (f" ({low:.1f}–{high:.1f})" if len(values) > 1 else "")
        axes.annotate(text, (high, position), (8, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set_yticks(range(len(names)), [{"ppo": "PPO"}.get(name, name.replace("_", " ")) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 118)  # leaves space for the labels, right of the marks
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    run_command(main, FigureSettings, "figure", config_package="benchmarks.configs")
