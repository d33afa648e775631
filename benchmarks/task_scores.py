"""Evaluate rules, references and learners on every benchmark task of version 1, on 2,000 test clips per task.

    python -m benchmarks.task_scores                                     trains the missing runs, seeds 0, 1, 2
    python -m benchmarks.task_scores tasks=[track] learners=[ppo]
    python -m benchmarks.task_scores learners=[]                         only rules, references and the scores of the ids

The command writes docs/leaderboard.json and, to the same folder, the page of the leaderboard and contact sheets with the patches of the
oracle. The command also writes adafocus_env/scores.json, from which normalized scores are computed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from adafocus_env import FORMS
from adafocus_env.demo.videos import DEFAULT_TASK, TaskName
from adafocus_env.features.live import Features
from adafocus_env.scores import SCORES
from adafocus_env.settings import setting, settings
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents import train
from agents.config.command import run_command
from agents.config.settings import Train
from agents.evaluation.evaluate import evaluate
from agents.evaluation.metrics import PolicyEvaluation
from agents.policies.baselines import GaussianPatch, Oracle, Predictor, RandomPatch
from agents.rl.algorithms import without_effect
from agents.runs.contact_sheet import save_contact_sheet
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from benchmarks.leaderboard import CLIPS, Row, features_of_task, measure, policy_of, rows_of, save
from benchmarks.study import Study, check_lists, runs_of, train_missing
from classifiers.atomic_files import write_text
from classifiers.errors import lookup

VERSION_1: list[TaskName] = ["track", "mover", "sparse"]
LEARNERS: dict[str, tuple[str, ...]] = {
    "ppo": (),
    "expected_pg": ("algo=expected_pg",),
    "memoryless expected_pg": ("algo=expected_pg", "network.memory=false"),
    "imitation": ("algo=imitation",),
}
"""Arguments of `agents.train`."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "mover": ("ppo.total_steps=150_000", "data.views=4", "network.width=32"),
    "sparse": ("ppo.total_steps=150_000", "data.views=4"),
}
"""Settings for tasks on which more steps, clips or channels than the defaults still increase the validation accuracy."""
SEEDS = 5  # number of random policies
PATCHES = 4  # random patches for the baseline of the reward


@settings
class TaskScores(Study):
    """`python -m benchmarks.task_scores`."""

    tasks: list[TaskName] = setting(lambda: list(VERSION_1), "which tasks")
    learners: list[str] = setting(lambda: list(LEARNERS), "names in `LEARNERS`")
    out: str = setting("docs/leaderboard.json", "the JSON file of the leaderboard; the page is written to the same folder", path=True)
    scores: str = setting(str(SCORES), "the JSON file of the scores of ids", path=True)


def main(config: TaskScores) -> None:
    """Train the missing runs, evaluate everything and write the files."""
    root, out, scores = Path(config.run or "runs/task-scores"), Path(config.out), Path(config.scores)
    check_lists(tasks=config.tasks)
    groups = {
        f"{task}-{learner.replace(' ', '-')}": (
            *lookup("learners", learner, LEARNERS), f"data.task={task}", f"env.bank={root / 'bank'}", *SETTINGS.get(task, ())
        )
        for task in config.tasks
        for learner in config.learners
    }
    set_here = ("data", "data.name", "data.task", "env.bank", "seed", "run", "device", "force")
    runs = runs_of(config, root, Train, "train", groups, set_here, without_effect)
    train_missing(runs, lambda each: train.main(each), Console())
    with Display() as display:
        for task in config.tasks:
            features = features_of_task(task, config.device, display)
            rows, oracle = references(features)
            save(out, {task: rows})
            save_contact_sheet(features, oracle, out.with_name(f"task_{task}.jpg"), rows=3)
            for learner in config.learners:
                of_seeds = [RunDir(each.run) for each in runs[f"{task}-{learner.replace(' ', '-')}"]]
                save(out, {task: {learner: rows_of([measure(features, policy_of(run, features)) for run in of_seeds])}})
            display.say(f"{task}: rules, references and {', '.join(config.learners) or 'nothing else'} measured")
            known = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else {}
            for form in FORMS:
                measured = scores_of(form, features)
                names = [f"AdaFocus{task.title()}{form}-v1", *([f"AdaFocus{form}-v1"] if task == DEFAULT_TASK else [])]
                known |= dict.fromkeys(names, measured)
            write_text(scores, json.dumps(known, indent=1, sort_keys=True) + "\n")


def references(features: Features) -> tuple[dict[str, Row], PolicyEvaluation]:
    """Return the rows of all baselines, and the oracle's evaluation. Random policies are evaluated with several seeds."""
    measured, evaluations = evaluate(features, None, seed=0)
    rows = {name: rows_of([metrics]) for name, metrics in measured.items()}
    for name, policy in (("random", RandomPatch), ("gaussian", GaussianPatch)):
        rows[name] = rows_of([measure(features, policy(features.action, seed)) for seed in range(SEEDS)])
    return rows, evaluations["oracle"]


def scores_of(form: str, features: Features) -> dict[str, dict[str, float]]:
    """Return the scores of random actions and of the oracle on one form of a task, as a dictionary from policy and metric to score.

    Args:
        form: a name in `FORMS`.
        features: features of the task's test clips, on a grid.
    """
    arguments = FORMS[form]
    env = AdaFocusVectorEnv(
        CLIPS, features.classifier, features.clips, observation="reference", baseline=PATCHES,
        bank=True if arguments["action"] == "continuous" else features, autoreset_mode="Disabled", **arguments,
    )  # fmt: skip
    action = env.dynamics.action
    random = [_played(env, RandomPatch(action, seed)) for seed in range(SEEDS)]
    measured = {"random": np.mean(random, axis=0), "oracle": _played(env, Oracle(env.dynamics.features))}
    metrics = ("top1", "top1_anytime", "return")
    return {policy: dict(zip(metrics, values.round(4).tolist(), strict=True)) for policy, values in measured.items()}


def _played(env: AdaFocusVectorEnv, policy: Predictor) -> Any:
    """Play one episode per environment, with clip i in environment i; return top-1, anytime top-1 and the mean return."""
    observation, _ = env.reset(seed=0, options={"clips": range(env.num_envs)})
    total, right = np.zeros(env.num_envs), []
    for _ in range(env.dynamics.num_steps):
        observation, reward, _, _, info = env.step(policy.predict(observation)[0])
        total += reward
        right.append(info["correct"].mean())
    return np.array([right[-1], np.mean(right), total.mean()])


if __name__ == "__main__":
    run_command(main, TaskScores, "task_scores", config_package="benchmarks.configs")
