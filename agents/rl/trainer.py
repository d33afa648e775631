"""Stage 2: train the policy, with any algorithm, while glancer, focuser and head are frozen."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from adafocus_env.features.live import Features
from agents.config.settings import EnvConfig
from agents.evaluation.evaluate import Played, mean_cost, play, play_learned
from agents.policies.checkpoint import load_policy
from agents.policies.networks import PolicyNetwork
from agents.policies.sb3 import bind, cache_outputs, load_network
from agents.rl.environment import EpisodeStatsWrapper, make_environment
from agents.rl.lagrangian import threshold_for
from agents.rl.saved_model import CARD, TrainedModel, load_model
from agents.rl.settings import AlgorithmSettings
from agents.rl.training_state import load_checkpoint, save_checkpoint
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import Display, figures
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

STAGE = 2
Policy = PolicyNetwork | TrainedModel


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


class TrainingCallback(BaseCallback):
    """Logs metrics, selects the best policy on the validation split, saves checkpoints, and stops between updates on request.

    Args:
        run: where metrics and checkpoints go.
        display: shows the progress.
        settings: of the algorithm.
        features: of the training clips.
        val: of the validation clips; None: the last policy is the best.
        env: the training environment.

    Attributes:
        stop: the user's request to stop.
    """

    def __init__(
        self,
        run: RunDir,
        display: Display,
        settings: AlgorithmSettings,
        features: Features,
        val: Features | None,
        env: EpisodeStatsWrapper,
    ) -> None:
        super().__init__()
        self.stop: StopRequest | None = None
        self._run, self._display, self._settings, self._features, self._val, self._env = run, display, settings, features, val, env
        self._fingerprint = features.classifier.fingerprint()
        self._best: list[float] | None = None
        self._rollout_metrics: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Return plain values for `restore`."""
        state = {"best": self._best, "lines": len(self._run.metrics()), "episodes": self._env.state()}
        if (lagrangian := self._settings.lagrangian) is not None:
            state["cost_weight"] = {"integral": lagrangian.integral, "value": self._env.dynamics.cost_weight}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self._best = state["best"]
        self._env.restore(state["episodes"])
        if (lagrangian := self._settings.lagrangian) is not None:
            lagrangian.integral = state["cost_weight"]["integral"]
            self._env.dynamics.set_cost_weight(state["cost_weight"]["value"])

    def _on_training_start(self) -> None:
        settings, steps = self._settings, self._env.steps
        self._bar = self._display.bar(
            "stage 2: policy", settings.total_steps, steps, unit="step", clips=1 / self._features.num_steps
        )
        self._learned = False
        self._next_line = _next(steps, settings.log_every)
        self._next_validation = _next(steps, settings.validate_every)
        self._next_save = _next(steps, settings.save_every)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Called between updates: the weights are new."""
        if self._learned:
            self._after_update(last=False)
        self._learned = True
        cache_outputs(self.model.policy, True)

    def _on_rollout_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._rollout_metrics = self._settings.rollout_metrics(self.model, self._env.dynamics)
        if (lagrangian := self._settings.lagrangian) is not None:
            self._env.dynamics.set_cost_weight(lagrangian.update(self._rollout_metrics["kept"]))

    def _on_training_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._after_update(last=True)

    def _after_update(self, *, last: bool) -> None:
        settings, steps = self._settings, self._env.steps
        if last or steps >= self._next_line:
            self._log(validate=last or steps >= self._next_validation)
        stop = self.stop is not None and self.stop.requested
        can_save = settings.algorithm.resumes and self._env.at_episode_start()
        if can_save and (last or stop or steps >= self._next_save):
            save_checkpoint(self.model, self._run.checkpoints, self.state())
            self._next_save = _next(steps, settings.save_every)
        if stop and (can_save or not (last or settings.algorithm.resumes)):
            raise Stopped  # some algorithms ignore the result of `_on_step`

    def _log(self, *, validate: bool) -> None:
        settings, steps = self._settings, self._env.steps
        line: dict[str, Any] = {"stage": STAGE}
        if settings.counts_updates:
            line["update"] = steps // settings.log_every
        line |= {"steps": steps, **self._env.take_means(settings.return_dtype)}
        line |= {**settings.update_metrics(self.logger.name_to_value), **self._rollout_metrics}
        self._next_line = _next(steps, settings.log_every)
        if validate:
            line |= self._validate()
            self._next_validation = _next(steps, settings.validate_every)
        self._run.log(line)
        self._bar.at(min(steps, settings.total_steps), figures(line))
        self.logger.dump(steps)  # clears the values that are logged now

    def _validate(self) -> dict[str, float]:
        """Measure the current policy on the validation split, and save it if it is the best."""
        policy, lagrangian = self._settings.to_policy(self.model), self._settings.lagrangian
        if self._val is not None and lagrangian is not None:
            assert isinstance(policy, PolicyNetwork)
            policy.keep_threshold = threshold_for(policy, self._val, lagrangian.target)
        metrics = self.select(policy)
        bind(self.model.policy, self._features, cache=False)
        return metrics

    def select(self, policy: Policy) -> dict[str, float]:
        """Return a policy's validation metrics, and save it unless an earlier one was better.

        While λ follows a target, scores of different updates cannot be compared, and the last policy is the best.
        """
        score, metrics = (None, {}) if self._val is None else self._score(policy, self._val)
        if score is None or self._best is None or self._settings.lagrangian is not None or score >= self._best:
            self._best = score
            about = {"classifier": self._fingerprint, "metrics": metrics, "steps": self._env.steps}
            self._settings.save(policy, self._run.checkpoints / "best", about)
        return metrics

    def _score(self, policy: Policy, val: Features) -> tuple[list[float], dict[str, float]]:
        """Return what policies are ranked by, the higher the better, and the metrics. A `PolicyNetwork` that skips pays for its patches."""
        dynamics = self._env.dynamics
        played = play_policy(policy, val, dynamics.skipped)
        metrics = {"val_top1": float(played.correct.mean()), "val_confidence": float(played.confidence.mean())}
        if isinstance(policy, TrainedModel) or not policy.skips:
            return list(metrics.values()), metrics
        cost = dynamics.cost_weight * mean_cost(val, played.patch_mask, dynamics.skipped) / dynamics.step_cost
        return [metrics["val_confidence"] - cost, metrics["val_top1"]], {**metrics, "val_kept": float(played.patch_mask.mean())}


def play_policy(policy: Policy, features: Features, skipped: str) -> Played:
    """Play every clip once, in order."""
    if isinstance(policy, PolicyNetwork):
        return play_learned(features, policy, skipped)
    return play(features, policy.on(features), policy.observation, skipped)


def _next(steps: int, every: int) -> int:
    return (steps // every + 1) * every
