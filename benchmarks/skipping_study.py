"""Compare the accuracy and the cost of the learned policy with those of other methods of skipping frames, on demo tasks. Write a table and
a plot.

    python -m benchmarks.skipping_study                                       normal, hard and sparse, seeds 0, 1 and 2
    python -m benchmarks.skipping_study tasks=[sparse] seeds=[0] keeps=[0.25]

Every policy is trained by `agents.train_ppo` with ppo=skip, in a separate run directory. Finished runs are not repeated, so the same
command resumes the study. All thresholds are computed on the validation split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console

from adafocus_env.build import choose_device
from adafocus_env.clips.store import Unreadable
from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import TaskName
from adafocus_env.settings import setting, settings
from agents import train_ppo
from agents.config.command import run_command
from agents.config.settings import DataConfig, EnvConfig, TrainPPO
from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import policy_flops
from agents.pipeline.builders import build_split, features_of
from agents.policies.networks import load_policy
from agents.runs.confidence import mean_text
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from benchmarks.skipping_methods import METHODS, PolicyOutputs, Problem, every_frame
from benchmarks.study import Curve, Panel, Study, check_lists, markdown, runs_of, save_panels, save_tables, train_missing
from classifiers import checkpoint
from classifiers.errors import InputError

EVERY_FRAME = "every frame"

Results = dict[str, NDArray[np.float64]]
"""Results by method (seeds, budgets, 3). The last axis has top-1 on the test clips, GFLOPs per video, and the share of focused frames."""


@settings
class SkippingStudy(Study):
    """`python -m benchmarks.skipping_study`."""

    tasks: list[TaskName] = setting(lambda: ["track", "mover", "sparse"], "tasks of the demo videos; see docs/tasks.md")
    keeps: list[Annotated[float, Field(gt=0, le=1)]] = setting(lambda: [0.25, 0.47, 0.67, 0.89], "shares of frames with a patch")


def main(config: SkippingStudy) -> None:
    """Train the missing runs, then write table.md, table.json and curve.png."""
    root, console = Path(config.run or "runs/skip_curve"), Console()
    runs = check_runs(config, root)
    train_missing(runs, train_ppo.main, console)
    results: dict[str, Results] = {}
    for task, configs in runs.items():
        seeds = [measure(RunDir(each.run), config) for each in configs]
        results[task] = {name: np.array([seed[name] for seed in seeds]) for name in seeds[0]}
    labels = {task: DataConfig(task=cast(TaskName, task)).label for task in results}
    text = "\n".join(f"**{labels[task]}, test split**\n\n{table(each, config.keeps)}" for task, each in results.items())
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    save_tables(root, text, {task: _summary(each, config.keeps) for task, each in results.items()})
    curves = {
        task: {name: Curve(values[..., 1].mean(0), values[..., 0]) for name, values in each.items()} for task, each in results.items()
    }
    panels = [Panel(task, "GFLOPs per video (a multiply-add as one)", each) for task, each in curves.items()]
    title = f"frames skipped, seeds {', '.join(map(str, config.seeds))}"
    save_panels(panels, title, "top-1 on the test clips, %", root / "curve.png")
    console.print(f"saved to {root}: table.md, table.json, curve.png", highlight=False, soft_wrap=True)


def check_runs(config: SkippingStudy, root: Path) -> dict[str, list[TrainPPO]]:
    """Return a dictionary from each task to the configs of its runs. All configs are checked before the first run is trained.

    Raises:
        InputError: If a list is empty or has a value twice, or if a share of the frames of a clip is less than one frame. The same error is
            raised if ``overrides`` sets a key that has no effect or that the command itself sets.
    """
    check_lists(tasks=config.tasks, keeps=config.keeps)
    groups: dict[str, list[str]] = {task: ["ppo=skip", f"data.task={task}"] for task in config.tasks}
    runs = runs_of(config, root, TrainPPO, "train_ppo", groups, ["data", "data.name", "data.task", "seed", "run", "device"])
    least = 1 / runs[config.tasks[0]][0].data.num_frames
    for keep in config.keeps:
        if keep < least:
            raise InputError(f"keeps must be at least {least}, got {keep}; an exit needs one frame of every clip")
    return runs


def measure(run: RunDir, config: SkippingStudy) -> dict[str, list[tuple[float, float, float]]]:
    """Return the results of every method on the test clips of a finished run, with one result per budget; see `Results`.

    Raises:
        InputError: If the run has no validation split.
    """
    run_settings, device = run.config(), choose_device(config.device)
    data, env = DataConfig(**run_settings["data"]), EnvConfig(**run_settings["env"])
    if not data.val:
        raise InputError(f"run={run.root} has no validation split to solve budgets on: set data.val to a share of the training videos")
    classifier = checkpoint.load(run.checkpoints / "classifier", device)
    policy = load_policy(run.checkpoints / "best", device)
    videos = build_data(data)
    with Display() as display, Unreadable() as unreadable:
        display.say(videos.summary)
        clips = [build_split(videos, split, data, classifier.architecture.size, display, unreadable) for split in ("val", "test")]
        val, test = (PolicyOutputs.of(features_of(classifier, each, env), policy, env.skipped) for each in clips)
        flops = flops_of(test.features, env.skipped, policy_flops(policy))
        results: dict[str, list[tuple[float, float, float]]] = {}
        for name, method in (*METHODS.items(), (EVERY_FRAME, lambda problem: every_frame(problem.test))):
            results[name] = []
            for keep in config.keeps if name != EVERY_FRAME else [1.0]:
                result = method(Problem(val, test, keep, flops, run_settings["seed"]))
                top1 = (result.scores.argmax(-1) == test.features.clips.labels).mean()
                gflops = flops.total(result.num_patches, result.num_steps).mean() / 1e9
                results[name].append((float(top1), float(gflops), float(result.num_patches.mean()) / test.size[1]))
    return results


def table(results: Results, keeps: Sequence[float]) -> str:
    """Return the Markdown table of a task: top-1 with its interval, millions of multiply-adds per video, and share of focused frames."""
    rows = []
    for name, values in results.items():
        columns = values.transpose(1, 2, 0)  # (budgets, 3, seeds)
        cells = [f"{mean_text(100 * top1, '.1f')} % @ {1000 * gflops.mean():.1f} M, {share.mean():.1%}" for top1, gflops, share in columns]
        rows.append([name, *cells, *[""] * (len(keeps) - len(cells))])
    return markdown(["", *(f"{keep:.0%} kept" for keep in keeps)], rows)


def _summary(results: Results, keeps: Sequence[float]) -> dict[str, list[dict[str, object]]]:
    """Return the content of ``table.json`` for a task."""
    return {
        name: [
            {"keep": keep, "top1": values[:, budget, 0], "gflops": values[:, budget, 1], "kept": values[:, budget, 2]}
            for budget, keep in enumerate(keeps if name != EVERY_FRAME else [1.0])
        ]
        for name, values in results.items()
    }


if __name__ == "__main__":
    run_command(main, SkippingStudy, "skipping_study", config_package="benchmarks.configs")
