"""Measures random patches and the oracle on every benchmark id: ``python -m benchmarks.task_scores`` writes docs/task_scores.json."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np

from adafocus_env import ARGUMENTS
from adafocus_env.demo.videos import TASKS
from adafocus_env.settings import setting, settings
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.command import run_command
from agents.policies.baselines import Oracle, Predictor, RandomPatch
from agents.runs.progress import Display
from classifiers.atomic_files import write_text
from classifiers.errors import lookup

IDS = {name: arguments for name, arguments in ARGUMENTS.items() if "task" in arguments}
SEEDS = 5  # of the random policy
PATCHES = 16  # random patches that estimate the baseline of the reward where actions are continuous


@settings
class TaskScores:
    """`python -m benchmarks.task_scores`."""

    out: str = setting("docs/task_scores.json", "the JSON file; scores of other ids stay in it", path=True)
    ids: list[str] = setting(lambda: list(IDS), "registered ids to measure")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def main(config: TaskScores) -> None:
    """Measure the ids on their test clips and write the scores."""
    for name in config.ids:
        lookup("ids", name, IDS)
    out = Path(config.out)
    scores = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    with Display() as display:
        for name in config.ids:
            scores[name] = measure(name, config.device)
            display.say(f"{name}: {scores[name]}")
            write_text(out, json.dumps(scores, indent=2) + "\n")


def measure(name: str, device: str = "auto") -> dict[str, dict[str, float]]:
    """Return top-1 and mean return of random patches and of the oracle on the test clips of an id.

    Args:
        name: The id of a benchmark task.
        device: The device of the networks.
    """
    arguments = IDS[name]
    env: AdaFocusVectorEnv = gym.make_vec(  # type: ignore[assignment]
        name, num_envs=TASKS[arguments["task"]].test_videos, vectorization_mode="vector_entry_point", clips="test",
        observation="reference", baseline="all" if arguments["action"] == "grid" else PATCHES, autoreset_mode="DISABLED", device=device,
    )  # fmt: skip
    features = env.dynamics.features
    random = [_run(env, RandomPatch(features.action, seed), seed) for seed in range(SEEDS)]
    measured = {"random": np.mean(random, axis=0), "oracle": _run(env, Oracle(features), 0)}
    return {policy: {"top1": round(float(top1), 4), "return": round(float(total), 3)} for policy, (top1, total) in measured.items()}


def _run(env: AdaFocusVectorEnv, policy: Predictor, seed: int) -> tuple[float, float]:
    """Return top-1 and mean return of one episode per environment, environment i on clip i."""
    observation, info = env.reset(seed=seed, options={"clips": range(env.num_envs)})
    total = np.zeros(env.num_envs)
    for _ in range(env.dynamics.num_steps):
        observation, reward, _, _, info = env.step(policy.predict(observation)[0])
        total += reward
    return float(info["correct"].mean()), float(total.mean())


if __name__ == "__main__":
    run_command(main, TaskScores, "task_scores", config_package="benchmarks.configs")
