"""Add a policy to the leaderboard of a benchmark task (docs/leaderboard.md). The policy comes from runs of `agents.train` or from a
user-defined agent.

    python -m benchmarks.leaderboard name="PPO, wider" runs=[runs/wide-0,runs/wide-1,runs/wide-2]
    python -m benchmarks.leaderboard name=mine task=track agent=my_agents.Greedy
"""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np

from adafocus_env.build import build_features, choose_device
from adafocus_env.demo.videos import DEFAULT_TASK, TASKS, TaskName, data_name, demo
from adafocus_env.features.live import Features
from adafocus_env.settings import setting, settings
from agents.config.command import run_command
from agents.config.settings import DEVICE, DataConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.metrics import CLIP_METRICS, ratios, share_of_gap
from agents.pipeline.builders import build_split
from agents.policies.baselines import Predictor
from agents.policies.networks import PolicyNetwork
from agents.rl.saved_model import TrainedModel, load_trained
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir, to_json
from benchmarks.study import markdown
from classifiers import checkpoint
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, lookup, refuse_if

CLIPS = 2000
"""Number of test clips per task from which scores are computed. The first 500 of them are the test clips of a run."""
HEADINGS = ("policy", "seeds", "hits", "first look", "anytime", "top-1", "gap, anytime", "gap, top-1")
Row = dict[str, list[float]]
"""The values of each metric, one per seed."""
Board = dict[str, dict[str, Row]]
"""Rows by task and policy."""


@settings
class Leaderboard:
    """`python -m benchmarks.leaderboard`."""

    name: str = setting(..., "name of the policy in the table", min_length=1)
    runs: list[str] = setting(list, "finished run folders, one per seed")
    agent: str = setting("", "dotted path of a function of features that returns a policy with `predict`, instead of runs")
    task: TaskName = setting(DEFAULT_TASK, "task of the agent; runs determine theirs")
    out: str = setting("docs/leaderboard.json", "the JSON file; the page is written to the same folder", path=True)
    device: str = setting("auto", DEVICE)


def main(config: Leaderboard) -> None:
    """Evaluate the policy on the test clips of its task, add its row to the leaderboard, and write the page."""
    refuse_if(bool(config.runs) == bool(config.agent), "give either runs, a list of run folders, or agent, a dotted path")
    with Display() as display:
        task = config.task if config.agent else _task_of(config.runs)
        features = features_of_task(task, config.device, display)
        policies = [_agent(config.agent)(features)] if config.agent else [policy_of(RunDir(run), features) for run in config.runs]
        row = rows_of([measure(features, policy) for policy in policies])
        save(Path(config.out), {task: {config.name: row}})
        display.say(f"{config.name} on {task}: {', '.join(f'{key} {np.mean(values):.1%}' for key, values in row.items())}")


def _task_of(runs: Sequence[str]) -> TaskName:
    """Return the task of finished runs.

    Raises:
        InputError: If a run is not finished, if the runs have different tasks, or if a run used other data than the demo videos.
    """
    for run in runs:
        refuse_if(not RunDir(run).finished, f"runs: {run} is not finished; start its command again to finish it")
    data = {(config["data"]["name"], config["data"]["task"]) for config in (RunDir(run).config() for run in runs)}
    name, task = data.pop()
    refuse_if(bool(data) or name != "demo", "runs must be of one benchmark task, with data=demo")
    return cast(TaskName, task)


def _agent(path: str) -> Callable[[Features], Predictor]:
    """Import the object that a dotted path names.

    Raises:
        InputError: If the object cannot be imported.
    """
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as problem:
        raise InputError(f"agent={path} cannot be imported: {problem}; give module.attribute, with the module on PYTHONPATH") from problem


@cache
def features_of_task(task: TaskName, device: str, display: Display) -> Features:
    """Return the features of the first `CLIPS` test clips of a task, computed by the bundled classifier of the task."""
    classifier = checkpoint.load(data_name(task), choose_device(device))
    data = demo(replace(TASKS[task], test_videos=CLIPS))
    clips = build_split(data, "test", DataConfig(task=task), classifier.architecture.size, display)
    return build_features(classifier, clips, bank=True)


def policy_of(run: RunDir, features: Features) -> PolicyNetwork | Predictor:
    """Return the policy of a finished run.

    Raises:
        InputError: If the policy was not trained with the classifier of the task.
    """
    theirs, ours = run.result()["classifier"], features.classifier.fingerprint()
    refuse_if(theirs != ours, f"runs: {run.root} has another classifier than the task's ({theirs[:12]}, not {ours[:12]}): another problem")
    policy = load_trained(run.checkpoints / "best", features.classifier.device)
    return policy.on(features) if isinstance(policy, TrainedModel) else policy


def measure(features: Features, policy: PolicyNetwork | Predictor) -> dict[str, float]:
    """Return the metrics of a policy on the clips, without metrics that are undefined."""
    evaluation = evaluate_policy(features, policy)
    return {**ratios(evaluation), "top1": float(evaluation.correct.mean())}


def rows_of(measured: Sequence[Mapping[str, float]]) -> Row:
    """Return one row of the leaderboard for policies that were trained with several seeds."""
    return {key: [round(each[key], 4) for each in measured] for key in (*CLIP_METRICS, "top1") if key in measured[0]}


def save(path: Path, new: Board) -> Board:
    """Add rows to the leaderboard in a JSON file, and write the page to the same folder. Existing rows with the names of the new rows are
    replaced."""
    board: Board = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    board = {task: {**board.get(task, {}), **new.get(task, {})} for task in {**board, **new}}
    write_text(path, to_json(board, indent=1) + "\n")
    write_text(path.with_suffix(".md"), page(board))
    return board


def page(board: Board) -> str:
    """Return the page, with one table per task. Tables are sorted by anytime accuracy, the best first."""
    text = [
        "# Leaderboard\n",
        f"The first {CLIPS:,} test clips of each task, in percent: mean and, in parentheses, worst over seeds. *First look* is top-1",
        "after the first patch in a frame that shows the target, *anytime* the mean of top-1 over steps, *gap* the share of the way from",
        "random patches to the oracle. `python -m benchmarks.task_scores` measures the rows of this project,",
        "`python -m benchmarks.leaderboard` adds yours.\n",
    ]
    for task, rows in board.items():
        ordered = sorted(rows.items(), key=lambda item: -float(np.mean(item[1]["top1_anytime"])))
        text += [f"## {task}\n", markdown(HEADINGS, [_cells(name, row, rows) for name, row in ordered])]
    return "\n".join(text)


def _cells(name: str, row: Row, rows: Mapping[str, Row]) -> list[str]:
    gaps = {key: [_gap(value, key, rows) for value in row[key]] for key in ("top1_anytime", "top1")}
    return [
        name,
        str(len(row["top1"])),
        *(_cell(row.get(key, [])) for key in ("hit_rate", "top1_first", "top1_anytime", "top1")),
        *(_cell(gaps[key]) for key in ("top1_anytime", "top1")),
    ]


def _gap(value: float, key: str, rows: Mapping[str, Row]) -> float | None:
    random, oracle = (float(np.mean(lookup("policy", name, rows)[key])) for name in ("random", "oracle"))
    return share_of_gap(value, random, oracle)


def _cell(values: Iterable[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{_rounded(float(np.mean(known)))} ({_rounded(min(known))})" if len(known) > 1 else _rounded(known[0])


def _rounded(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # adding 0.0 turns -0.0 into 0.0


if __name__ == "__main__":
    run_command(main, Leaderboard, "leaderboard", config_package="benchmarks.configs")
