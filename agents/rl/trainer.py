"""Stage 2: train the policy with any algorithm while glancer, focuser and head are frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from adafocus_env import distributed
from adafocus_env.features.live import Features
from agents.config.settings import EnvConfig
from agents.evaluation.budgets import threshold_for
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.metrics import PolicyEvaluation, validation_metrics
from agents.policies.networks import PolicyNetwork
from agents.policies.sb3 import bind, cache_outputs, load_network
from agents.rl.distributed import share_policy, share_random_states
from agents.rl.environment import EpisodeStatsWrapper, make_environment
from agents.rl.saved_model import (
    START_OVER,
    Policy,
    TrainedModel,
    load_trained,
    load_training_state,
    save_training_state,
    why_not_resumable,
)
from agents.rl.settings import AlgorithmSettings
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import Display, figures
from agents.runs.run_dir import RunDir
from agents.runs.seeding import random_states
from classifiers.errors import InputError, count_of

STAGE = 2
FEW_CLIPS = 30  # with fewer validation clips, the standard error of accuracy can exceed 9 points
SATURATED = 0.99  # validation accuracy from which better policies can hardly be distinguished


def train_policy(
    features: Features,
    val: Features | None,
    run: RunDir,
    display: Display,
    settings: AlgorithmSettings,
    *,
    env: EnvConfig,
    seed: int,
) -> Policy:
    """Train a policy, or resume a stopped run; return the best policy on the validation split.

    If there are several processes, they share the work (see `agents.rl.distributed`), and only the main process validates and writes files.

    Args:
        features: features of the training clips from the frozen networks.
        val: features of the validation clips, which only the main process needs; None: return the last policy.
        run: the directory of metrics and checkpoints.
        display: shows progress.
        settings: settings of the algorithm; see `agents.rl.settings.algorithm_settings`.
        env: settings of the environment.
        seed: seed of all random numbers.

    Raises:
        InputError: if the algorithm does not support a setting, or the run cannot be resumed.
        Stopped: if the user asked to stop; the next call resumes.
    """
    fingerprint = features.classifier.fingerprint()
    distributed.check_equal("classifier", {"weights": fingerprint}, "start all of them with the same files")
    environment = make_environment(features, env, settings.observation)
    callback = TrainingCallback(run, display, settings, features, val, environment)
    model = settings.make_model(environment, seed)
    state = _restore(model, run)
    bind(model.policy, features, cache=False)
    if state is not None:
        callback.restore(state)
        display.say(f"resuming after {environment.steps} steps")
    elif settings.start is not None:
        load_network(model.policy, settings.start)  # type: ignore[arg-type]
        if val is not None:
            callback.select(settings.start)  # training may not improve on it
    if distributed.world_size() > 1:
        share_policy(model.policy)  # type: ignore[arg-type]
        share_random_states()
    model.set_logger(configure(None, []))  # the run directory has the metrics
    if environment.steps < settings.total_steps:
        total = settings.total_steps * (environment.num_envs if settings.algorithm.counts_rows else 1)
        with StopRequest(display.console) as callback.stop, _named_divergence(model, run):
            model.learn(total - model.num_timesteps, callback=callback, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    if features.classifier.fingerprint() != fingerprint:
        raise RuntimeError("the classifier changed while the policy was trained on it: it is not frozen")
    if val is not None and (best := callback.best) is not None:
        of = f"step {best.steps} of {settings.total_steps}"
        count = count_of(len(val.clips), "validation clip")
        display.say(f"best policy: {of}, anytime confidence {best.confidence_anytime:.3f} on {count}")
        for doubt in _doubts(best, len(val.clips)):
            display.say(f"warning: {doubt}")
    distributed.barrier()  # the main process has saved the best policy
    return load_trained(run.checkpoints / "best", model.device)


@dataclass(frozen=True)
class Best:
    """The selected policy: the number of steps before it was saved and, if it was validated, its score, anytime confidence and top-1."""

    steps: int
    score: float | None
    confidence_anytime: float | None
    top1: float | None = None  # states of earlier versions lack it


def _doubts(best: Best, count: int) -> Iterator[str]:
    """Yield the reasons why the selection on ``count`` validation clips may be unreliable."""
    if count < FEW_CLIPS:
        yield f"{count_of(count, 'validation clip')} cannot distinguish policies; set data.val to a larger share, or add videos"
    if best.top1 is not None and best.top1 >= SATURATED:
        yield f"the validation split is saturated, {best.top1:.1%} right: it says little about which policy is best; use harder videos"


@contextmanager
def _named_divergence(model: BaseAlgorithm, run: RunDir) -> Iterator[None]:
    """Run the body, and convert an error of PyTorch that follows from weights that are not finite."""
    try:
        yield
    except (ValueError, RuntimeError) as problem:
        if not isinstance(problem, InputError):
            check_finite(model, run, problem)
        raise


def check_finite(model: BaseAlgorithm, run: RunDir, cause: Exception | None = None) -> None:
    """Check that all weights of the policy are finite. (After a loss that is not finite, none of them is.)

    Raises:
        InputError: if they are not. Because nothing was saved since, the last checkpoint is good.
    """
    names, parameters = zip(*model.policy.named_parameters(), strict=True)
    finite = torch.stack([parameter.isfinite().all() for parameter in parameters]).tolist()  # a GPU is waited for once
    if not all(finite):
        raise InputError(
            f"the policy diverged: {names[finite.index(False)]} holds values that are not finite; choose a lower learning rate or clip the "
            f"gradient (the last good checkpoint, if there is one, is in {run.checkpoints})"
        ) from cause


def _restore(model: BaseAlgorithm, run: RunDir) -> dict[str, Any] | None:
    """Restore the last checkpoint in a new model, and remove later lines of metrics; return the callback's state.

    Return None if there is no checkpoint.

    Raises:
        InputError: if the checkpoint cannot be read, or if the run was stopped without a checkpoint because its model cannot be saved.
    """
    state = load_training_state(model, run.checkpoints)
    earlier = sum(line["stage"] < STAGE for line in run.metrics())
    if state is None and len(run.metrics()) > earlier and (problem := why_not_resumable(model)):
        raise InputError(f"{problem}; {START_OVER}")
    if distributed.is_main():
        run.truncate(earlier if state is None else state["lines"])
    return state


class TrainingCallback(BaseCallback):
    """A callback that logs metrics, selects the best policy on the validation split, saves checkpoints, and stops on request.

    Args:
        run: the directory of metrics and checkpoints.
        display: shows progress.
        settings: settings of the algorithm.
        features: features of the training clips.
        val: features of the validation clips; None: the last policy is the best.
        env: the training environment.

    Attributes:
        stop: the user's request to stop.
        best: the selected policy, if any.
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
        self.best: Best | None = None
        self._rollout_metrics: dict[str, float] = {}
        self._random_states: dict[str, Any] | None = None
        self._resumable = True

    def state(self) -> dict[str, Any]:
        """Return plain values for `restore`."""
        best = None if self.best is None else asdict(self.best)
        state = {"selected": best, "lines": len(self._run.metrics()), "episodes": self._env.state()}
        if (lagrangian := self._settings.lagrangian) is not None:
            state["cost_weight"] = {"integral": lagrangian.integral, "value": self._env.dynamics.cost_weight}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.best = None if (best := state.get("selected")) is None else Best(**best)  # earlier versions ranked by other scores
        self._env.restore(state["episodes"])
        if (lagrangian := self._settings.lagrangian) is not None:
            lagrangian.integral = state["cost_weight"]["integral"]
            self._env.dynamics.set_cost_weight(state["cost_weight"]["value"])

    def _on_training_start(self) -> None:
        settings, steps = self._settings, self._env.steps
        self._bar = self._display.bar("stage 2: policy", settings.total_steps, steps, unit="step", clips=1 / self._features.num_steps)
        self._learned = False
        self._next_line = _next(steps, settings.log_every)
        self._next_validation = _next(steps, settings.validate_every)
        self._next_save = _next(steps, settings.save_every)
        self._check_resumable()

    def _check_resumable(self) -> bool:
        """Return whether the state of the model can be saved. If the state cannot be saved, print the reason once."""
        if self._resumable and (problem := why_not_resumable(self.model)):
            self._display.say(problem)
            self._resumable = False
        return self._resumable

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Process the last update: log, validate, save and stop as necessary."""
        if self._learned:
            self._after_update(last=False)
        self._learned = True
        cache_outputs(self.model.policy, True)

    def _on_rollout_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._random_states = random_states() if self._settings.algorithm.samples_ahead else None
        self._rollout_metrics = self._settings.rollout_metrics(self.model, self._env.dynamics)
        if (lagrangian := self._settings.lagrangian) is not None:
            self._env.dynamics.set_cost_weight(lagrangian.update(self._rollout_metrics["kept"]))

    def _on_training_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._after_update(last=True)

    def _after_update(self, *, last: bool) -> None:
        check_finite(self.model, self._run)  # before anything is logged, selected or saved
        settings, steps = self._settings, self._env.steps
        if last or steps >= self._next_line:
            self._log(validate=last or steps >= self._next_validation)
        stop = distributed.any_process(self.stop is not None and self.stop.requested)
        due = self._env.at_episode_start() and (last or stop or steps >= self._next_save)
        if due and self._check_resumable():
            if distributed.is_main():  # the state is the same in all processes
                save_training_state(self.model, self._run.checkpoints, self.state(), self._random_states)
            self._next_save = _next(steps, settings.save_every)
        if stop and (due or not (last or self._resumable)):
            raise Stopped  # some algorithms ignore the return value of `_on_step`

    def _log(self, *, validate: bool) -> None:
        settings, steps = self._settings, self._env.steps
        line: dict[str, Any] = {"stage": STAGE}
        if settings.counts_updates:
            line["update"] = steps // settings.log_every
        line |= {"steps": steps, **self._env.take_means(settings.return_dtype)}
        line |= {**settings.update_metrics(self.logger.name_to_value), **self._rollout_metrics}
        self._next_line = _next(steps, settings.log_every)
        if validate:
            line |= self._validate() if distributed.is_main() else {}
            share_random_states()
            self._next_validation = _next(steps, settings.validate_every)
        if distributed.is_main():
            self._run.log(line)
        self._bar.at(min(steps, settings.total_steps), figures(line))
        self.logger.dump(steps)  # clears the logged values

    def _validate(self) -> dict[str, float]:
        """Evaluate the current policy on the validation split, and save it if it is the best so far."""
        policy, lagrangian = self._settings.to_policy(self.model), self._settings.lagrangian
        if self._val is not None and lagrangian is not None:
            assert isinstance(policy, PolicyNetwork)
            policy.keep_threshold = threshold_for(policy, self._val, lagrangian.target)
        metrics = self.select(policy)
        bind(self.model.policy, self._features, cache=False)
        return metrics

    def select(self, policy: Policy) -> dict[str, float]:
        """Return a policy's validation metrics, and save the policy unless an earlier policy was strictly better.

        If λ is adjusted to reach a target, scores of different updates are not comparable, so the last policy counts as the best.
        """
        score, metrics = (None, {}) if self._val is None else self._score(policy, self._val)
        best = None if self.best is None else self.best.score
        if score is None or best is None or self._settings.lagrangian is not None or score >= best:
            self.best = Best(self._env.steps, score, metrics.get("val_confidence_anytime"), metrics.get("val_top1"))
            about = {"classifier": self._fingerprint, "metrics": metrics, "steps": self._env.steps}
            self._settings.save(policy, self._env, self._run.checkpoints / "best", about)
        return metrics

    def _score(self, policy: Policy, val: Features) -> tuple[float, dict[str, float]]:
        """Return the score for ranking and the metrics; see `validation_metrics`.

        If the policy is a `PolicyNetwork` that skips frames, the cost of its patches is subtracted from the score.
        """
        dynamics = self._env.dynamics
        played = evaluate_trained(policy, val, dynamics.skipped)
        metrics = validation_metrics(played)
        score = metrics["val_confidence_anytime"]
        if isinstance(policy, TrainedModel) or not policy.skips:
            return score, metrics
        cost = dynamics.cost_weight * played.macs / dynamics.step_cost
        return score - cost, {**metrics, "val_kept": float(played.patch_mask.mean())}


def evaluate_trained(policy: Policy, features: Features, skipped: str) -> PolicyEvaluation:
    """Evaluate a policy once on every clip, in order."""
    return evaluate_policy(features, policy if isinstance(policy, PolicyNetwork) else policy.on(features), skipped=skipped)


def _next(steps: int, every: int) -> int:
    return (steps // every + 1) * every
