"""Stage 2: the policy alone, by PPO; glancer, focuser and head are frozen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from adafocus_env.features import Features
from adafocus_env.sb3 import AdaFocusVecEnv
from adafocus_env.vector import AdaFocusVectorEnv
from agents.config import EnvConfig, NetworkConfig, PPOConfig
from agents.evaluation import play_learned
from agents.interrupts import StopRequest
from agents.policies import GlancePolicy, GlancesByReference, PolicyNetwork
from agents.policy_files import load_policy, save_policy
from agents.ppo_checkpoint import load_checkpoint, save_checkpoint
from agents.progress import Display
from agents.rollout import ClipRolloutBuffer
from agents.run_folder import RunFolder
from classifiers.errors import InputError

STAGE = 2
LOGGED = ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance")


class Stopped(Exception):
    """The user asked to stop; everything is saved."""


def train_policy(
    features: Features,
    val: Features | None,
    run: RunFolder,
    display: Display,
    *,
    env: EnvConfig,
    ppo: PPOConfig,
    network: NetworkConfig,
    seed: int,
    start: GlancePolicy | None = None,
    trust: bool = False,
) -> GlancePolicy:
    """Trains a policy, or goes on where the run was stopped; returns the one that did best on the validation part.

    Args:
        features: what the frozen networks see in the training clips.
        val: the same of the validation clips; None: the last policy is taken.
        run: where metrics, checkpoints and TensorBoard logs go.
        display: where progress is shown.
        env: the environment.
        ppo: the algorithm.
        network: sizes of a new policy.
        seed: of everything random.
        start: a policy to start from.
        trust: unpickle a checkpoint that was not written on this machine.

    Raises:
        InputError: a setting does not fit (says which).
        Stopped: the user asked to stop; the next call goes on.
    """
    fingerprint = features.classifier.fingerprint()
    policy_network = start.network if start else PolicyNetwork(features.map_shape, network.channels, network.features, network.hidden)
    environment = make_environment(features, env)
    resumed = load_checkpoint(run.checkpoints, environment, device=str(features.classifier.device), trust=trust)
    before = sum(line["stage"] < STAGE for line in run.metrics())
    model, progress = resumed or (new_ppo(environment, features, ppo, policy_network, seed), {"best": None, "lines": before})
    run.truncate(progress["lines"])
    extractor = model.policy.features_extractor
    assert isinstance(extractor, GlancesByReference)
    extractor.bind(features)
    if resumed is None and start is not None:
        start.write_to(model.policy)
    recorder = Recorder(run, display, ppo, features, val, progress["best"])
    model.set_logger(configure(str(run.path("tensorboard")), ["tensorboard"]))
    if resumed is not None:
        display.say(f"going on after {model.num_timesteps} steps")
    if (left := ppo.total_steps - model.num_timesteps) > 0:
        with StopRequest(display.console) as recorder.stop:
            model.learn(left, callback=recorder, reset_num_timesteps=False)
        if recorder.stopped:
            raise Stopped
    if features.classifier.fingerprint() != fingerprint:
        raise RuntimeError("the classifier changed while the policy was trained on it: it is not frozen")
    return load_policy(run.checkpoints / "best", features.classifier.device)


def make_environment(features: Features, config: EnvConfig) -> VecEnv:
    """The training environment: observations by reference, every clip once an epoch."""
    vector = AdaFocusVectorEnv(
        config.num_envs, features.classifier, features.clips,
        observation="reference", reward=config.reward, baseline=samples(config.baseline), grid=config.grid, bank=features,
        autoreset_mode="SAME_STEP", clip_order="epoch",
    )  # fmt: skip
    return VecMonitor(AdaFocusVecEnv(vector))


def samples(value: int | str) -> Any:
    """`env.baseline` from the command line: a number or "all"."""
    return value if value == "all" or isinstance(value, int) else int(value) if value.isdigit() else value


def new_ppo(env: VecEnv, features: Features, config: PPOConfig, network: PolicyNetwork, seed: int) -> PPO:
    """Stable-Baselines3's PPO on whole clips, its policy recurrent over glances.

    Raises:
        InputError: a number is too small, or `n_steps` or `batch_size` is not a multiple of the steps of an episode.
    """
    length = features.clips.num_frames
    for key in ("total_steps", "n_steps", "batch_size", "n_epochs", "validate_every", "save_every"):
        least = 2 if key == "batch_size" else 1
        if getattr(config, key) < least:
            raise InputError(f"ppo.{key}={getattr(config, key)} is too small; choose {least} or more")
    for key in ("n_steps", "batch_size"):
        if getattr(config, key) % length:
            raise InputError(f"ppo.{key}={getattr(config, key)} is not a multiple of the {length} steps of an episode; choose one that is")
    if config.n_steps * env.num_envs < 2:
        raise InputError("ppo.n_steps=1 with env.num_envs=1 is an update of a single step, which PPO cannot learn from; raise one of them")
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        rollout_buffer_class=ClipRolloutBuffer,
        rollout_buffer_kwargs={"clip_length": length},
        policy_kwargs={
            "features_extractor_class": GlancesByReference,
            "features_extractor_kwargs": {"network": network},
            "net_arch": [],
        },
        seed=seed,
        device=str(features.classifier.device),
    )


class Recorder(BaseCallback):
    """Logs a line an update, keeps the best policy, saves checkpoints, and stops between updates when asked to.

    Args:
        run: where it all goes.
        display: where progress is shown.
        config: when to validate and save.
        features: of the training clips.
        val: of the validation clips.
        best: (top-1, confidence) of the best policy so far.
    """

    def __init__(
        self, run: RunFolder, display: Display, config: PPOConfig, features: Features, val: Features | None, best: list[float] | None
    ) -> None:
        super().__init__()
        self.stop: StopRequest | None = None
        self.stopped = False
        self._run, self._display, self._config = run, display, config
        self._grid, self._val, self._best = features.grid.grid, val, best
        self._fingerprint = features.classifier.fingerprint()
        self._returns: list[float] = []
        self._correct: list[bool] = []

    def _on_training_start(self) -> None:
        self._bar = self._display.bar("stage 2: policy", self._config.total_steps, self.num_timesteps)
        assert isinstance(self.model, PPO) and self.model.env is not None
        self._steps_per_update = self.model.n_steps * self.model.env.num_envs
        self._then = time.perf_counter()
        self._fresh = True

    def _on_step(self) -> bool:
        for row in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][row]
            self._returns.append(info["episode"]["r"])
            self._correct.append(info["correct"])
        return not self.stopped

    def _on_rollout_start(self) -> None:
        """Runs between updates: the weights are new and all episodes are at their beginning."""
        if not self._fresh:
            self._update_ended(last=False)
        self._fresh = False

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._update_ended(last=True)

    def _update_ended(self, *, last: bool) -> None:
        update = self.num_timesteps // self._steps_per_update
        line = {"stage": STAGE, "update": update, "steps": self.num_timesteps, **self._measured()}
        if last or update % self._config.validate_every == 0:
            line |= self._validate()
        self._run.log(line)
        now = time.perf_counter()
        rate = self._steps_per_update / (now - self._then)
        self._bar.at(
            min(self.num_timesteps, self._config.total_steps),
            f"return {line['return']:.2f} accuracy {line['accuracy']:.0%} entropy {line['entropy']:.1f} {rate:.0f}/s",
        )
        for key, value in line.items():
            self.logger.record(f"policy/{key}", value)
        self._then = now
        asked = self.stop is not None and self.stop.requested
        if last or asked or update % self._config.save_every == 0:
            save_checkpoint(self.model, self._run.checkpoints, {"best": self._best, "lines": len(self._run.metrics())})  # type: ignore[arg-type]
        self.stopped = asked and not last

    def _measured(self) -> dict[str, float]:
        """Of the rollout that has been learned from: mean return and share of right answers, and PPO's own figures."""
        values = self.logger.name_to_value
        measured = {"return": float(np.mean(self._returns)), "accuracy": float(np.mean(self._correct))}
        self._returns, self._correct = [], []
        figures = {name: float(values[f"train/{name}"]) for name in LOGGED}
        return {**measured, "entropy": -figures.pop("entropy_loss"), **figures}

    def _validate(self) -> dict[str, float]:
        """Measures the policy on the validation part and keeps it if none was better."""
        policy = self.policy_now()
        if self._val is None:
            self._keep(policy, {})
            return {}
        played = play_learned(self._val, policy)
        score = [float(played.correct.mean()), float(played.confidence.mean())]
        measured = {"val_top1": score[0], "val_confidence": score[1]}
        if self._best is None or score >= self._best:
            self._best = score
            self._keep(policy, measured)
        return measured

    def policy_now(self) -> GlancePolicy:
        """The policy as it is, without Stable-Baselines3."""
        extractor = self.model.policy.features_extractor
        assert isinstance(extractor, GlancesByReference)
        return GlancePolicy.of(self.model.policy, self._grid, extractor.network)  # type: ignore[arg-type]

    def _keep(self, policy: GlancePolicy, metrics: dict[str, float]) -> None:
        folder: Path = self._run.checkpoints / "best"
        save_policy(policy, folder, {"classifier": self._fingerprint, "metrics": metrics, "steps": self.num_timesteps})


