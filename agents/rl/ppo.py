"""Stage 2: the policy alone, by PPO; glancer, focuser and head are frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import EnvConfig, NetworkConfig, PPOConfig
from agents.evaluation.budgets import threshold_for
from agents.evaluation.evaluate import evaluate_policy, flops_of
from agents.evaluation.inference import policy_flops
from agents.policies.checkpoint import load_policy, save_policy
from agents.policies.sb3 import ClipPolicy, ClipReferenceExtractor, GlancePolicy, PolicyArchitecture, extractor_of, kind_of
from agents.rl.lagrangian import SKIPPING, PIDLagrangian, check_cost_weight, pid_lagrangian
from agents.rl.rollout_buffer import ClipRolloutBuffer, NormalisedReturnsBuffer
from agents.rl.training_state import START_OVER, load_training_state, save_training_state, why_not_resumable
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import Display, figures
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

STAGE = 2
LOGGED = ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "learning_rate")


def train_policy(
    features: Features,
    val: Features | None,
    run: RunDir,
    display: Display,
    *,
    env: EnvConfig,
    ppo: PPOConfig,
    network: NetworkConfig,
    seed: int,
    start: GlancePolicy | None = None,
    kind: type[PPO] = PPO,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> GlancePolicy:
    """Trains a policy, or goes on where the run was stopped; returns the one that did best on the validation part.

    Args:
        features: what the frozen networks see in the training clips.
        val: the same of the validation clips; None: the last policy is taken.
        run: where metrics, checkpoints and TensorBoard logs go.
        display: where progress is shown.
        env: the environment.
        ppo: the algorithm.
        network: a new policy's; one that is there keeps its own.
        seed: of everything random.
        start: a policy to start from.
        kind: PPO, or a class that is made from it.
        further: arguments of that class which ``ppo`` does not know.

    Raises:
        InputError: a setting does not fit (says which).
        Stopped: the user asked to stop; the next call goes on.
    """
    ppo = in_steps(ppo, features)
    check_cost_weight(env)
    fingerprint = features.classifier.fingerprint()
    policy_network, std = (start.network, start.std) if start else (new_network(features.map_shape, network), network.std)
    environment = make_environment(features, env)
    cost_weight = _pid_lagrangian(env, environment, features, policy_network)  # before random states are set or restored: it draws weights
    model = new_ppo(environment, features, ppo, policy_network, seed, std, kind=kind, further=further)
    before = sum(line["stage"] < STAGE for line in run.metrics())
    resumed = load_training_state(model, run.checkpoints)
    if resumed is None and len(run.metrics()) > before and (problem := why_not_resumable(model)):
        raise InputError(f"{problem}; {START_OVER}")
    progress = resumed or {"best": None, "lines": before}
    run.truncate(progress["lines"])
    extractor_of(model.policy).bind(features)
    if resumed is None and start is not None:
        start.write_to(model.policy)
    dynamics: Dynamics = environment.get_attr("dynamics", 0)[0]
    if cost_weight is not None and "cost_weight" in progress:
        cost_weight.summed = progress["cost_weight"]["summed"]
        dynamics.set_cost_weight(progress["cost_weight"]["now"])
    if resumed is None and start is not None and val is not None:
        progress["best"] = _keep_start(start, val, run, fingerprint, dynamics)
    recorder = Recorder(run, display, ppo, features, val, progress["best"], dynamics, cost_weight)
    model.set_logger(configure(None, []))  # the run folder keeps what is measured
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


def _keep_start(start: GlancePolicy, val: Features, run: RunDir, fingerprint: str, dynamics: Dynamics) -> list[float]:
    """Saves the policy to start from as the best so far: learning on may turn out not to help."""
    score, measured = _valued(start, val, dynamics)
    save_policy(start, run.checkpoints / "best", {"classifier": fingerprint, "metrics": measured, "steps": 0})
    return score


def _valued(policy: GlancePolicy, val: Features, dynamics: Dynamics) -> tuple[list[float], dict[str, float]]:
    """What a policy is worth on the validation part, higher being better, and its figures. One that skips pays the price of its steps."""
    played = evaluate_policy(val, policy, skipped=dynamics.skipped)
    measured = {"val_top1": float(played.correct.mean()), "val_confidence": float(played.confidence.mean())}
    if not policy.skips:
        return list(measured.values()), measured
    paid = dynamics.cost_weight * played.macs / dynamics.step_cost
    return [measured["val_confidence"] - paid, measured["val_top1"]], {**measured, "val_kept": float(played.patch_mask.mean())}


def in_steps(config: PPOConfig, features: Features) -> PPOConfig:
    """The same with the length of training in steps, where it is told in epochs."""
    if config.epochs is None:
        return config
    return replace(config, total_steps=config.epochs * features.clips.epoch_size * features.num_steps, epochs=None)


def _pid_lagrangian(env: EnvConfig, environment: VecEnv, features: Features, network: PolicyArchitecture) -> PIDLagrangian | None:
    """The price that a target asks for; None where there is none."""
    if env.target_keep is None and env.target_gflops is None:
        return None
    grid, skips = kind_of(environment.action_space)
    return pid_lagrangian(env, flops_of(features, env.skipped, policy_flops(GlancePolicy(network, grid, skips=skips))))


def make_environment(features: Features, config: EnvConfig, observation: str | None = None) -> VecEnv:
    """The training environment: every clip once an epoch, by default with observations by reference."""
    observation = observation or ("reference_looks" if config.action in SKIPPING else "reference")
    vector = AdaFocusVectorEnv(
        config.num_envs, features.classifier, features.clips,
        observation=observation, reward=config.reward, baseline=samples(config.baseline), action=config.action, grid=config.grid,
        cost_weight=config.cost_weight, skipped=config.skipped, video_div=config.video_div, bank=features,
        autoreset_mode="SAME_STEP", clip_order="epoch",
    )  # fmt: skip
    return VecMonitor(AdaFocusVecEnv(vector))


def samples(value: int | str) -> Any:
    """`env.baseline` from the command line: a number or "all"."""
    return value if value == "all" or isinstance(value, int) else int(value) if value.isdigit() else value


def new_network(map_shape: tuple[int, int, int], config: NetworkConfig) -> PolicyArchitecture:
    """The network of a new policy, for glance maps of that shape.

    Raises:
        InputError: a size is less than 1.
    """
    return PolicyArchitecture(map_shape, config.channels, config.features, config.hidden, config.batch_norm, config.memory)


def new_ppo(
    env: VecEnv,
    features: Features,
    config: PPOConfig,
    network: PolicyArchitecture,
    seed: int,
    std: float = 0.25,
    *,
    kind: type[PPO] = PPO,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> PPO:
    """Stable-Baselines3's PPO on whole clips, its policy recurrent over glances.

    Args:
        env: on whose clips it learns.
        features: what the frozen networks see in them; the caller binds the policy to them.
        config: the algorithm.
        network: of the policy.
        seed: of everything random.
        std: of the policy, where places are continuous.
        kind: PPO, or a class that is made from it.
        further: arguments of that class which the config does not know.

    Raises:
        InputError: see `check_ppo`, and `ClipPolicy`.
    """
    check_ppo(config, env, features.num_steps, network)
    if network.batch_norm and features.clips.epoch_size * features.num_steps < 2:
        raise InputError("network.batch_norm=true needs more than a single glance to learn from; give more videos")
    return kind(
        ClipPolicy,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.n_steps or features.num_steps,
        batch_size=config.batch_size or (config.n_steps or features.num_steps) * env.num_envs,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        normalize_advantage=config.normalize_advantage,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=math.inf if config.max_grad_norm is None else config.max_grad_norm,
        rollout_buffer_class=NormalisedReturnsBuffer if config.normalize_returns else ClipRolloutBuffer,
        rollout_buffer_kwargs={"clip_length": features.num_steps},
        policy_kwargs={
            "features_extractor_class": ClipReferenceExtractor,
            "features_extractor_kwargs": {"network": network, "batch_statistics": config.batch_statistics},
            "std": std,
            "ortho_init": config.ortho_init,
            "optimizer_kwargs": {"eps": config.adam_eps, "fused": True},  # a tenth of an iteration on a CPU otherwise
        },
        seed=seed,
        device=str(features.classifier.device),
        **further,
    )


def check_ppo(config: PPOConfig, env: EnvConfig | VecEnv, steps: int, network: NetworkConfig | PolicyArchitecture) -> None:
    """Checks settings; nothing else has to be there for that.

    Args:
        config: the algorithm.
        env: tells how many environments there are.
        steps: D, steps of an episode.
        network: of the policy.

    Raises:
        InputError: `n_steps` or `batch_size` is not a multiple of D, or two settings exclude each other.
    """
    if isinstance(env, EnvConfig):
        check_cost_weight(env)
    for key in ("n_steps", "batch_size"):
        if (value := getattr(config, key)) is not None and value % steps:
            raise InputError(f"ppo.{key}={value} is not a multiple of the {steps} steps of an episode; choose one that is")
    if (config.n_steps or steps) * env.num_envs < 2:
        raise InputError("ppo.n_steps=1 with env.num_envs=1 is an update of a single step, which PPO cannot learn from; raise one of them")
    if config.normalize_returns and config.gae_lambda != 1:
        raise InputError(f"ppo.normalize_returns=true needs returns without values in them: set ppo.gae_lambda={config.gae_lambda} to 1")
    _check_batch_norm(config, env.num_envs, steps, batch_norm=network.batch_norm)


def _check_batch_norm(config: PPOConfig, num_envs: int, steps: int, *, batch_norm: bool) -> None:
    if config.batch_statistics and not batch_norm:
        raise InputError("ppo.batch_statistics=true is for policies with batch norm; set network.batch_norm=true, or leave it out")
    if config.batch_statistics and (config.n_steps not in (None, steps) or config.batch_size not in (None, steps * num_envs)):
        raise InputError(
            "ppo.batch_statistics=true means those of the clips that are played together: set ppo.n_steps=null and ppo.batch_size=null"
        )
    if batch_norm and steps == 1 and num_envs < 3:  # two may play the same clip
        raise InputError(f"env.num_envs={num_envs} is too small for network.batch_norm=true and one decision a clip; choose 3 or more")


class Recorder(BaseCallback):
    """Logs a line an update, keeps the best policy, saves checkpoints, and stops between updates when asked to.

    Args:
        run: where it all goes.
        display: where progress is shown.
        config: when to validate and save.
        features: of the training clips.
        val: of the validation clips.
        best: (top-1, confidence) of the best policy so far; where it skips (confidence less what its looks cost, top-1).
        dynamics: of the environment; it knows the price of a look.
        cost_weight: what drives that price, if anything.
    """

    def __init__(
        self,
        run: RunDir,
        display: Display,
        config: PPOConfig,
        features: Features,
        val: Features | None,
        best: list[float] | None,
        dynamics: Dynamics,
        cost_weight: PIDLagrangian | None,
    ) -> None:
        super().__init__()
        self.stop: StopRequest | None = None
        self.stopped = False
        self._run, self._display, self._config = run, display, config
        self._val, self._best, self._dynamics, self._price = val, best, dynamics, cost_weight
        self._fingerprint, self._steps = features.classifier.fingerprint(), features.num_steps
        self._skipping: dict[str, float] = {}
        self._resumable = True
        self._returns: list[float] = []
        self._correct: list[bool] = []

    def _on_training_start(self) -> None:
        self._bar = self._display.bar(
            "stage 2: policy", self._config.total_steps, self.num_timesteps, unit="step", clips=1 / self._steps
        )
        assert isinstance(self.model, PPO) and self.model.env is not None
        self._steps_per_update = self.model.n_steps * self.model.env.num_envs
        self._fresh = True
        self._check_resumable()

    def _check_resumable(self) -> bool:
        """Return whether the model can be saved; say why not when that turns out."""
        if self._resumable and (problem := why_not_resumable(self.model)):
            self._display.say(problem)
            self._resumable = False
        return self._resumable

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

    def _on_rollout_end(self) -> None:
        """What the rollout kept, and what it paid for a look; the next one pays another price, where it is driven."""
        dynamics = self._dynamics
        if dynamics.action.patch_action is dynamics.action:
            return
        assert isinstance(self.model, PPO)
        buffer = self.model.rollout_buffer
        actions = buffer.actions.reshape(*buffer.rewards.shape, *(dynamics.action.space.shape or ()))
        self._skipping = {"kept": float(dynamics.action.patch_mask(actions).mean()), "cost_weight": dynamics.cost_weight}
        if self._price is not None:
            dynamics.set_cost_weight(self._price.after(self._skipping["kept"]))

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._update_ended(last=True)

    def _update_ended(self, *, last: bool) -> None:
        update = self.num_timesteps // self._steps_per_update
        line = {"stage": STAGE, "update": update, "steps": self.num_timesteps, **self._measured(), **self._skipping}
        if last or update % self._config.validate_every == 0:
            line |= self._validate()
        self._run.log(line)
        self._bar.at(min(self.num_timesteps, self._config.total_steps), figures(line))
        asked = self.stop is not None and self.stop.requested
        if (last or asked or update % self._config.save_every == 0) and self._check_resumable():
            save_training_state(self.model, self._run.checkpoints, self._progress())
        self.stopped = asked

    def _progress(self) -> dict[str, Any]:
        """What the next start needs to know, as plain values."""
        progress = {"best": self._best, "lines": len(self._run.metrics())}
        if self._price is None:
            return progress
        return {**progress, "cost_weight": {"summed": self._price.summed, "now": self._dynamics.cost_weight}}

    def _measured(self) -> dict[str, float]:
        """Of the rollout that has been learned from: mean return and share of right answers, and PPO's own figures."""
        values = self.logger.name_to_value
        measured = {"return": float(np.mean(self._returns)), "accuracy": float(np.mean(self._correct))}
        self._returns, self._correct = [], []
        found = {name: float(values[f"train/{name}"]) for name in LOGGED}
        return {**measured, "entropy": -found.pop("entropy_loss"), **found}

    def _validate(self) -> dict[str, float]:
        """Measures the policy on the validation part and keeps it if none was better."""
        policy = self.policy_now()
        if self._val is None:
            self._keep(policy, {})
            return {}
        if self._price is not None:
            policy.keep_threshold = threshold_for(policy, self._val, self._price.target)
        score, measured = _valued(policy, self._val, self._dynamics)
        if self._best is None or self._price is not None or score >= self._best:  # where the price is driven, the last is the one wanted
            self._best = score
            self._keep(policy, measured)
        return measured

    def policy_now(self) -> GlancePolicy:
        """The policy as it is, without Stable-Baselines3."""
        return GlancePolicy.of(self.model.policy)  # type: ignore[arg-type]

    def _keep(self, policy: GlancePolicy, metrics: dict[str, float]) -> None:
        folder: Path = self._run.checkpoints / "best"
        save_policy(policy, folder, {"classifier": self._fingerprint, "metrics": metrics, "steps": self.num_timesteps})


