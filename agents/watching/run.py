"""The implementation of `python -m agents.watch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from adafocus_env import ARGUMENTS
from adafocus_env.build import choose_device
from adafocus_env.clips.shards import SHARD_SIZE
from adafocus_env.clips.store import Unreadable
from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import DEFAULT_TASK, data_name
from adafocus_env.features.live import Features
from adafocus_env.videos.dataset import with_classes
from agents.config.settings import DataConfig, EnvConfig, Watch
from agents.pipeline.builders import build_split, check_classes, features_of, inference_classifier
from agents.policies.baselines import RULES, Predictor
from agents.policies.networks import CARD as POLICY_CARD
from agents.policies.networks import PolicyNetwork
from agents.prediction.checkpoints import BEST, CLASSIFIER, check_finished, check_plugin
from agents.rl.saved_model import CARD as MODEL_CARD
from agents.rl.saved_model import TrainedModel, load_trained
from agents.runs.progress import Display
from agents.runs.run_dir import CONFIG, WATCHED, RunDir
from agents.watching.episodes import play
from agents.watching.output import check_suffix, has_display, show, write
from agents.watching.pictures import moments
from classifiers import checkpoint
from classifiers.errors import count_of, lookup, refuse_if, suggestion
from classifiers.model_zoo import BUNDLED

BASELINES = ("random", "centre", "gaussian", *RULES, "oracle", "greedy_oracle")
HOLD = 4  # factor by which the last picture of an episode is shown longer than the other pictures


@dataclass(frozen=True)
class Stage:
    """The clips and settings with which episodes are played.

    Attributes:
        features: Features of the clips.
        pool: Number of clips from which the episodes are sampled.
        data: Name of the data set.
        trained: Folder of the trained policy; None: there is no trained policy.
        skipped: Input of the head for skipped frames.
    """

    features: Features
    pool: int
    data: str
    trained: Path | None
    skipped: str


def watch(config: Watch) -> None:
    """Play episodes and show them in a window, or write them to a file.

    Raises:
        InputError: If the run, the id, the policy or the file cannot be used.
    """
    refuse_if(bool(config.run) == bool(config.id), "give run=DIR or id=NAME, such as id=AdaFocus-v1")
    out = Path(config.out or (Path(config.run, WATCHED) if config.run else f"{config.id}.gif"))
    check_suffix(out)
    with Display() as display:
        windowed = not config.out and has_display()
        replaces = not config.force and not windowed and out.exists()
        refuse_if(replaces, f"out={out} exists; force=true replaces it, or choose another file")
        stage = _of_run(config, display) if config.run else _of_id(config)
        policy, name = _policy(config, stage)
        episodes = list(play(stage.features, policy, _clips(config, stage), seed=config.seed, skipped=stage.skipped))
        right = sum(each.predictions[-1] == each.label for each in episodes)
        hits = [hit for each in episodes for hit in each.hits if hit is not None]
        shown = f", {sum(hits)} of {count_of(len(hits), 'frame')} with the target hit" if hits else ""
        display.say(f"{name}: {right} of {count_of(len(episodes), 'clip')} right{shown}")
        drawn = list(moments(episodes, f"{config.id or stage.data}: {name}", at_once=config.at_once, side=config.side))
        pictures, seconds = [picture for picture, _ in drawn], [(HOLD if last else 1) / config.fps for _, last in drawn]
        if windowed:
            return show(pictures, seconds, f"{config.id or config.run}: {name}")
        if not config.out:
            display.say(f"no display, or no GUI toolkit for Matplotlib (pip install PyQt6): {out} is written in place of a window")
        write(pictures, seconds, out)
        display.say(f"saved to {out}: {count_of(len(pictures), 'picture')}, {out.stat().st_size / 1e6:.2f} MB")
        return None


def _of_id(config: Watch) -> Stage:
    """Return the `Stage` of an environment id. Episodes are sampled from the first test clips, which are rendered together."""
    lookup("id", config.id, ARGUMENTS)
    env: Any = gym.make(config.id, clips="test", device=config.device).unwrapped
    features: Features = env.dynamics.features
    data = data_name(ARGUMENTS[config.id].get("task", DEFAULT_TASK))
    return Stage(features, min(SHARD_SIZE, len(features.clips)), data, None, env.dynamics.skipped)


def _of_run(config: Watch, display: Display) -> Stage:
    """Return the `Stage` of a finished run, with the features of its test clips."""
    check_plugin(config.run, config.plugin)
    run = RunDir(config.run)
    refuse_if(
        not run.path(CONFIG).is_file(), f"run={config.run} is not the folder of a run (python -m agents.list_runs lists them); give another"
    )
    check_finished(run)
    of_run, classifier = run.config(), checkpoint.load(run.checkpoints / CLASSIFIER, choose_device(config.device))
    settings, env = DataConfig(**of_run["data"]), EnvConfig(**of_run["env"])
    with Unreadable() as unreadable:
        data = with_classes(build_data(settings), classifier.classes)
        check_classes(classifier, data, str(run.checkpoints / CLASSIFIER))
        clips = build_split(data, "test", settings, classifier.architecture.size, display, unreadable)
    features = features_of(inference_classifier(classifier, env), clips, env)
    return Stage(features, len(clips), settings.title, run.checkpoints / BEST, env.skipped)


def _clips(config: Watch, stage: Stage) -> list[int]:
    """Return the indices of the clips to play."""
    if config.clips is None:
        refuse_if(config.episodes > stage.pool, f"episodes must be at most {stage.pool}, the clips to choose from, got {config.episodes}")
        return np.random.default_rng(config.seed).choice(stage.pool, config.episodes, replace=False).tolist()  # type: ignore[no-any-return]
    count = len(stage.features.clips)
    refuse_if(
        not config.clips or not all(0 <= clip < count for clip in config.clips),
        f"clips must be numbers of test clips from 0 to {count - 1}, got {config.clips}",
    )
    return config.clips


def _policy(config: Watch, stage: Stage) -> tuple[PolicyNetwork | Predictor | str, str]:
    """Return the policy, or its name if it is a baseline, and the name to display.

    Raises:
        InputError: If the name is unknown, if the folder has no policy, or if the policy does not match the clips.
    """
    name = config.policy or ("learned" if stage.trained else "bundled")
    if name in BASELINES:
        return name, name.replace("_", " ")
    folder = stage.trained if name == "learned" else BUNDLED.get(stage.data) if name == "bundled" else Path(name)
    known = [*BASELINES, "bundled", *(["learned"] if stage.trained else [])]
    choose = f"choose one of {', '.join(known)} or the folder of a policy"
    refuse_if(
        folder is None or not any((folder / card).is_file() for card in (POLICY_CARD, MODEL_CARD)),
        f"policy={name}: none is bundled for {stage.data}; {choose}"
        if name == "bundled"
        else f"policy={name} is not known and not the folder of a policy; {suggestion(name, known)}{choose}",
    )
    assert folder is not None
    policy = load_trained(folder, stage.features.classifier.device)
    return policy.on(stage.features) if isinstance(policy, TrainedModel) else policy, f"{name} policy"
