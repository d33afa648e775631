"""Stage 2: train the policy, with any algorithm, while glancer, focuser and head are frozen."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from adafocus_env.features.live import Features
from agents.config.settings import EnvConfig
from agents.policies.checkpoint import load_policy
from agents.policies.sb3 import bind, load_network
from agents.rl.callback import STAGE, Policy, TrainingCallback
from agents.rl.environment import EpisodeStatsWrapper, make_environment
from agents.rl.saved_model import CARD, load_model
from agents.rl.settings import AlgorithmSettings
from agents.rl.training_state import load_checkpoint
from agents.runs.interrupts import StopRequest
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError


def train_policy(
    features: Features,
    val: Features | None,
    run: RunDir,
    display: Display,
    settings: AlgorithmSettings,
    *,
    env: EnvConfig,
    seed: int,
    trust: bool = False,
) -> Policy:
    """Train a policy, or resume a stopped run; return the best policy on the validation split.

    Args:
        features: of the training clips, from the frozen networks.
        val: of the validation clips; None: return the last policy.
        run: where metrics and checkpoints go.
        display: shows the progress.
        settings: of the algorithm; see `agents.rl.settings.algorithm_settings`.
        env: the environment's.
        seed: of all random numbers.
        trust: unpickle a checkpoint that was not written on this machine.

    Raises:
        InputError: if a setting does not suit the algorithm, or the run cannot be resumed.
        Stopped: if the user asked to stop; the next call resumes.
    """
    fingerprint = features.classifier.fingerprint()
    environment = make_environment(features, env, settings.observation)
    callback = TrainingCallback(run, display, settings, features, val, environment)
    model = settings.make_model(environment, seed)
    model, state = _restored(model, environment, run, settings, trust=trust)
    bind(model.policy, features, cache=False)
    if state is not None:
        callback.restore(state)
        display.say(f"resuming after {environment.steps} steps")
    elif settings.start is not None:
        load_network(model.policy, settings.start)  # type: ignore[arg-type]
        if val is not None:
            callback.select(settings.start)  # training may turn out not to help
    model.set_logger(configure(None, []))  # metrics go to the run directory
    if (left := settings.total_steps - environment.steps) > 0:
        with StopRequest(display.console) as callback.stop:
            counted = left * environment.num_envs if settings.algorithm.counts_rows else left
            model.learn(counted, callback=callback, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    if features.classifier.fingerprint() != fingerprint:
        raise RuntimeError("the classifier changed while the policy was trained on it: it is not frozen")
    best = run.checkpoints / "best"
    return load_model(best, model.device, trust=trust) if (best / CARD).is_file() else load_policy(best, model.device)


def _restored(
    model: BaseAlgorithm, environment: EpisodeStatsWrapper, run: RunDir, settings: AlgorithmSettings, *, trust: bool
) -> tuple[BaseAlgorithm, dict[str, Any] | None]:
    """Return the model and the callback's state as the last checkpoint has them, or the new model and None; truncate the metrics.

    Raises:
        InputError: if the run was stopped and the algorithm cannot resume.
    """
    resumed = load_checkpoint(run.checkpoints, environment, device=str(model.device), trust=trust, kind=type(model))
    model, state = resumed or (model, None)
    earlier = sum(line["stage"] < STAGE for line in run.metrics())
    if state is None and len(run.metrics()) > earlier and not settings.algorithm.resumes:
        raise InputError(f"algo={settings.name} cannot resume a stopped run: it has no state between updates; force=true starts over")
    run.truncate(earlier if state is None else state["lines"])
    return model, state
