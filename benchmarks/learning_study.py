"""Study why a policy misses the target. Every variant of the training changes one setting, and is trained with several seeds.

    python -m benchmarks.learning_study                                 all variants on the task normal, seeds 0, 1, 2
    python -m benchmarks.learning_study variants=[ppo,expected_pg] task=hard@v0 seeds=[0]

The study also measures, for each step, by how much the reward of a patch on the target is higher than that of other patches. Every run has
a separate run directory, as with `agents.train`. Finished runs are not repeated, so the same command resumes the study. All runs share the
features in ``RUN/bank``.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console

from adafocus_env.action import boxes_of
from adafocus_env.build import choose_device
from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import TaskName
from adafocus_env.features.live import Features
from adafocus_env.settings import setting, settings
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents import train
from agents.config.command import run_command
from agents.config.settings import DataConfig, EnvConfig, Train
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.metrics import covers, ratios
from agents.pipeline.builders import build_split, choose_classifier, features_of
from agents.policies.baselines import Oracle
from agents.policies.networks import load_policy
from agents.rl.algorithms import without_effect
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from benchmarks.study import Study, check_lists, markdown, runs_of, save_tables, train_missing
from classifiers.classifier import Classifier
from classifiers.errors import lookup

FLAT = ("network=published", "env.reward=random", "ppo.learning_rate=1e-3", "ppo.gamma=0.7", "ppo.total_steps=100_000")
SPATIAL = ("env.reward=random", "ppo.gamma=0.7")
EXACT = ("algo=expected_pg", "ppo.learning_rate=1e-3")
VARIANTS: dict[str, tuple[str, ...]] = {
    "flat": FLAT,
    "flat-1m-steps": (*FLAT, "ppo.total_steps=1_000_000"),
    "flat-gamma-0": (*FLAT, "ppo.gamma=0"),
    "flat-log_confidence": (*FLAT, "env.reward=log_confidence"),
    "flat-step-normalized": ("algo=benchmarks.ppo_variants.StepNormalizedPPO", *FLAT),
    "flat-entropy-annealed": ("algo=benchmarks.ppo_variants.AnnealedEntropyPPO", *FLAT),
    "flat-10-views": (*FLAT, "data.views=10"),
    "flat-exact-gradient": (*EXACT, "network=published", "env.reward=random"),
    "flat-standalone": (*FLAT, "env.reward=standalone"),
    "flat-imitation": ("algo=imitation", "network=published"),
    "spatial": SPATIAL,
    "spatial-gamma-0": (*SPATIAL, "ppo.gamma=0"),
    "spatial-log_confidence": (*SPATIAL, "env.reward=log_confidence"),
    "spatial-exact-gradient": (*EXACT, "env.reward=random"),
    "ppo": (),
    "expected_pg": EXACT,
    "imitation": ("algo=imitation",),
    "ppo-gamma-0.7": ("ppo.gamma=0.7",),
    "ppo-learning-rate-1e-3": ("ppo.learning_rate=1e-3",),
    "ppo-entropy-0": ("ppo.ent_coef=0",),
    "ppo-width-16": ("network.width=16",),
}
"""Arguments of `agents.train` by variant.

``ppo`` has the default settings. ``flat`` has the settings from before the spatial network and the reward `standalone` were introduced.
Default settings are chosen by the results on the validation clips.
"""
HEADINGS = ("variant", "validation", "hits, training clips", "hits", "hits, first frame", "first look", "anytime", "top-1", "CPU seconds")


@settings
class LearningStudy(Study):
    """`python -m benchmarks.learning_study`."""

    task: TaskName = setting("normal@v0", "the task of the demo videos; see docs/tasks.md")
    variants: list[str] = setting(list, "names in `VARIANTS`; empty: all")


def main(config: LearningStudy) -> None:
    """Train the missing runs, then write table.md and table.json."""
    root, console = Path(config.run or f"runs/learning-{config.task}"), Console()
    names = config.variants or list(VARIANTS)
    check_lists(variants=names)
    task = (f"data.task={config.task}", f"env.bank={root / 'bank'}")
    groups = {name: (*lookup("variants", name, VARIANTS), *task) for name in names}
    set_here = ("data", "data.name", "data.task", "env.bank", "seed", "run", "device", "force")
    runs = runs_of(config, root, Train, "train", groups, set_here, without_effect)
    train_missing(runs, lambda each: train.main(each), console)
    measured = {name: [measure(each) for each in configs] for name, configs in runs.items()}
    rows = [(name, *(_cell([run[key] for run in of_runs], key) for key in of_runs[0])) for name, of_runs in measured.items()]
    features = _training_features(config.task, str(root / "bank"), config.device)
    worth = {reward: list(worth_of_patches(features, reward)) for reward in ("random", "log_confidence", "standalone")}
    steps = ["reward", *(f"step {step}" for step in range(1, 1 + features.num_steps))]
    gains = [(reward, *(f"{gain:+.3f} ({share:.0%})" for gain, share in by_step)) for reward, by_step in worth.items()]
    text = f"{markdown(HEADINGS, rows)}\n{markdown(steps, gains)}"
    console.print(f"mean (worst) over seeds {config.seeds}, 500 test clips of {config.task}\n\n{text}", highlight=False, soft_wrap=True)
    save_tables(root, text, {"variants": measured, "worth": worth})


def _cell(values: list[float], key: str) -> str:
    """Return the mean over the seeds, followed by the worst seed, as text."""
    if key == "seconds":
        return f"{np.mean(values):.0f}"
    return f"{100 * np.mean(values):.1f} ({100 * min(values):.1f})"


def measure(config: Train) -> dict[str, float]:
    """Return the metrics of a finished run, and the hit rate of its policy on the training clips."""
    run = RunDir(config.run)
    result, learned = run.result(), run.result()["policies"]["learned"]
    features = _training_features(config.data.task, str(config.env.bank), config.device)
    return {
        "validation": result["best"]["val_confidence_anytime"],
        "training": ratios(evaluate_policy(features, load_policy(run.checkpoints / "best", features.classifier.device)))["hit_rate"],
        "hits": learned["hit_rate"],
        "first_frame": next(rate for rate in learned["steps"]["hit_rate"] if rate is not None),  # memory tasks begin with a cue
        **{key: learned[key] for key in ("top1_first", "top1_anytime", "top1")},
        "seconds": sum(line["cpu_seconds"] for line in run.timing()),
    }


@cache
def _training_features(task: TaskName, bank: str, device: str) -> Features:
    """Return the features of the training clips. All runs share them."""
    data_config, env = DataConfig(task=task), EnvConfig(bank=bank)
    data, chosen = build_data(data_config), choose_device(device)
    classifier = choose_classifier("auto", data, chosen)
    assert isinstance(classifier, Classifier)
    with Display(Console(quiet=True)) as display:
        clips = build_split(data, "train", data_config, classifier.architecture.size, display)
    return features_of(classifier, clips, env)


def worth_of_patches(features: Features, reward: str, count: int = 256) -> Iterator[tuple[float, float]]:
    """For each step, yield two numbers that show how much a patch on the target is worth. The oracle selects the patches of the earlier
    steps.

    Args:
        features: a bank with the features of clips that have tracks.
        reward: a name in `adafocus_env.reward.REWARDS`.
        count: number of clips.

    Yields:
        Two numbers. The first number is the mean reward of the cells that hit the target, minus that of all other cells. The second
        number is the share of clips in which the cell with the highest reward hits the target. Clips in which no cell hits the target are
        left out.
    """
    env = AdaFocusVectorEnv(
        count, features.classifier, features.clips, observation="reference", reward=reward, baseline="all", full_information=True,
        bank=features, autoreset_mode="Disabled", clip_order="epoch",
    )  # fmt: skip
    oracle, observation = Oracle(features), env.reset(seed=0)[0]
    targets = [features.clips.targets(int(clip)) for clip in observation[:, 0]]
    boxes, visible = (np.stack([getattr(each, name) for each in targets]) for name in ("boxes", "visible"))
    hits = covers(boxes_of(features.action, features.action.candidates), boxes[:, :, None]) & visible[:, :, None]
    for step in range(features.num_steps):
        observation, _, _, _, info = env.step(oracle.predict(observation)[0])
        seen = hits[:, step].any(1)
        hit, rewards = hits[seen, step], info["action_rewards"][seen]
        gains = np.nanmean(np.where(hit, rewards, np.nan), axis=1) - np.nanmean(np.where(hit, np.nan, rewards), axis=1)
        yield float(gains.mean()), float(hit[np.arange(len(hit)), rewards.argmax(1)].mean())


if __name__ == "__main__":
    run_command(main, LearningStudy, "learning_study", config_package="benchmarks.configs")
