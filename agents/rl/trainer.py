"""Stage 2 with any algorithm of `agents.rl.algorithms`: the policy alone; glancer, focuser and head are frozen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from adafocus_env.features.live import Features
from agents.config.settings import AlgoConfig, EnvConfig, NetworkConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.policies.sb3 import bind, cache_outputs
from agents.rl.algorithms import Interface, algorithm_of, class_of, new_model
from agents.rl.lagrangian import check_cost_weight
from agents.rl.ppo import STAGE, make_environment
from agents.rl.saved_model import ModelCard, TrainedModel, load_model, save_model
from agents.rl.training_state import START_OVER, load_training_state, save_training_state, why_not_resumable
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import Display, figures
from agents.runs.run_dir import RunDir
from agents.runs.seeding import random_states
from classifiers.errors import InputError


def train_model(
    features: Features,
    val: Features | None,
    run: RunDir,
    display: Display,
    *,
    env: EnvConfig,
    algo: AlgoConfig,
    network: NetworkConfig,
    seed: int,
) -> TrainedModel:
    """Trains a model, or goes on where the run was stopped; returns the one that did best on the validation part.

    Args:
        features: what the frozen networks see in the training clips.
        val: the same of the validation clips; None: the last model is taken.
        run: where metrics, checkpoints and TensorBoard logs go.
        display: where progress is shown.
        env: the environment.
        algo: the algorithm.
        network: of its policy, where that reads glances by reference.
        seed: of everything random.

    Raises:
        InputError: a setting does not fit, or the algorithm cannot go on where it was stopped.
        Stopped: the user asked to stop; the next call goes on.
    """
    check_cost_weight(env)
    for key in ("target_keep", "target_gflops"):
        if (target := getattr(env, key)) is not None:
            raise InputError(f"env.{key}={target} is for PPO alone; set env.cost_weight with algo={algo.name}")
    fingerprint = features.classifier.fingerprint()
    tally = Tally(make_environment(features, env, observation=algo.observation))
    model = new_model(tally, features, algo, network, seed)
    before = sum(line["stage"] < STAGE for line in run.metrics())
    resumed = load_training_state(model, run.checkpoints)
    if resumed is None and len(run.metrics()) > before and (problem := why_not_resumable(model)):
        raise InputError(f"{problem}; {START_OVER}")
    progress = resumed or {"best": None, "lines": before}
    run.truncate(progress.pop("lines"))
    tally.restore(progress.pop("tally", {"steps": 0, "ended": []}))
    bind(model.policy, features, remember=False)
    card = ModelCard(algo.name, algo.observation, fingerprint, Interface.of(tally, features), algo.settings, network)
    recorder = Recorder(run, display, algo, features, val, tally, progress["best"], env.skipped, card)
    model.set_logger(configure(None, []))  # the run folder keeps what is measured
    if resumed is not None:
        display.say(f"going on after {tally.steps} steps")
    _learn(model, algo, recorder, tally, display)
    if features.classifier.fingerprint() != fingerprint:
        raise RuntimeError("the classifier changed while the policy was trained on it: it is not frozen")
    return load_model(run.checkpoints / "best", features.classifier.device)


def _learn(model: BaseAlgorithm, algo: AlgoConfig, recorder: Recorder, tally: Tally, display: Display) -> None:
    if tally.steps >= algo.total_steps:
        return
    algorithm = algorithm_of(type(model), algo.name)
    total = algo.total_steps * tally.num_envs if algorithm.counts_rows else algo.total_steps
    with StopRequest(display.console) as recorder.stop:
        model.learn(total - model.num_timesteps, callback=recorder, reset_num_timesteps=False, log_interval=None, **algorithm.learn)  # type: ignore[arg-type]


class Tally(VecEnvWrapper):
    """Counts the steps, and the episodes that end: their returns, and whether the answer was right.

    Args:
        venv: the training environment.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps = 0
        self._ended: list[tuple[float, bool]] = []

    def reset(self) -> Any:
        """Begins an episode in every row."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all rows and counts what ends."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.steps += self.num_envs
        self._ended += [(float(infos[row]["episode"]["r"]), bool(infos[row]["correct"])) for row in np.flatnonzero(dones)]
        return observations, rewards, dones, infos

    def at_beginning(self) -> bool:
        """Whether all episodes are at their beginning, so that the environment can be saved."""
        steps: NDArray[np.int64] = self.venv.get_attr("dynamics", 0)[0].step_number
        return not steps.any()

    def restore(self, counted: dict[str, Any]) -> None:
        """Goes on with what `counted` told."""
        self.steps, self._ended = counted["steps"], [(value, right) for value, right in counted["ended"]]

    def counted(self) -> dict[str, Any]:
        """All steps, and return and rightness of the episodes since `take`: plain values."""
        return {"steps": self.steps, "ended": list(self._ended)}

    def take(self) -> dict[str, float]:
        """Mean return and share of right answers since the last call; nothing if no episode has ended."""
        ended, self._ended = self._ended, []
        if not ended:
            return {}
        returns, right = zip(*ended, strict=True)
        return {"return": float(np.mean(returns)), "accuracy": float(np.mean(right))}


class Recorder(BaseCallback):
    """Logs a line every so often, keeps the best model, saves checkpoints, and stops between updates when asked to.

    Args:
        run: where it all goes.
        display: where progress is shown.
        algo: when to validate and save.
        features: of the training clips.
        val: of the validation clips.
        tally: the training environment.
        best: (top-1, confidence) of the best model so far.
        skipped: what the head gets where the model skips.
        card: of the model, for its file.
    """

    def __init__(
        self,
        run: RunDir,
        display: Display,
        algo: AlgoConfig,
        features: Features,
        val: Features | None,
        tally: Tally,
        best: list[float] | None,
        skipped: str,
        card: ModelCard,
    ) -> None:
        super().__init__()
        self.stop: StopRequest | None = None
        self._run, self._display, self._algo, self._tally = run, display, algo, tally
        self._features, self._val, self._best, self._skipped = features, val, best, skipped
        self._card, self._resumable = card, True
        self._samples_ahead = algorithm_of(class_of(algo.name), algo.name).samples_ahead
        self._random: dict[str, Any] | None = None

    def _on_training_start(self) -> None:
        self._bar = self._display.bar(
            f"stage 2: {self._algo.name}", self._algo.total_steps, self._tally.steps, unit="step", clips=1 / self._features.num_steps
        )
        self._fresh = True
        self._next_line = _next(self._tally.steps, self._algo.validate_every)
        self._next_save = _next(self._tally.steps, self._algo.save_every)
        self._check_resumable()

    def _check_resumable(self) -> bool:
        """Return whether the model can be saved; say why not when that turns out."""
        if self._resumable and (problem := why_not_resumable(self.model)):
            self._display.say(problem)
            self._resumable = False
        return self._resumable

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Runs between updates: the weights are new."""
        if not self._fresh:
            self._update_ended(last=False)
        self._fresh = False
        cache_outputs(self.model.policy, True)

    def _on_rollout_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._random = random_states() if self._samples_ahead else None

    def _on_training_end(self) -> None:
        cache_outputs(self.model.policy, False)
        self._update_ended(last=True)

    def _update_ended(self, *, last: bool) -> None:
        if last or self._tally.steps >= self._next_line:
            self._log()
            self._next_line = _next(self._tally.steps, self._algo.validate_every)
        asked = self.stop is not None and self.stop.requested
        due = self._tally.at_beginning() and (last or asked or self._tally.steps >= self._next_save)
        if due and self._check_resumable():
            progress = {"best": self._best, "lines": len(self._run.metrics()), "tally": self._tally.counted()}
            save_training_state(self.model, self._run.checkpoints, progress, self._random)
            self._next_save = _next(self._tally.steps, self._algo.save_every)
        if asked and not last and (due or not self._resumable):
            raise Stopped  # not every algorithm heeds what `_on_step` answers

    def _log(self) -> None:
        line = {"stage": STAGE, "steps": self._tally.steps, **self._tally.take(), **self._figures(), **self._validate()}
        self._run.log(line)
        self._bar.at(min(self._tally.steps, self._algo.total_steps), figures(line))
        self.logger.dump(self._tally.steps)  # which forgets the figures that are logged now

    def _figures(self) -> dict[str, float]:
        """What the algorithm itself says of its last update: losses and the like."""
        values: dict[str, Any] = dict(sorted(self.logger.name_to_value.items()))
        figures = {key.removeprefix("train/"): value for key, value in values.items() if key.startswith("train/")}
        return {key: float(value) for key, value in figures.items() if isinstance(value, int | float | np.number) and math.isfinite(value)}

    def _validate(self) -> dict[str, float]:
        """Measures the model on the validation part and keeps it if none was better."""
        if self._val is None:
            self._keep({})
            return {}
        player = TrainedModel(self.model, self._algo.observation).on(self._val)
        played = evaluate_policy(self._val, player, player.observation, self._skipped)
        bind(self.model.policy, self._features, remember=False)
        score = [float(played.correct.mean()), float(played.confidence.mean())]
        measured = {"val_top1": score[0], "val_confidence": score[1]}
        if self._best is None or score >= self._best:
            self._best = score
            self._keep(measured)
        return measured

    def _keep(self, metrics: dict[str, float]) -> None:
        card = replace(self._card, metrics=metrics, steps=self._tally.steps)
        save_model(self.model, self._run.checkpoints / "best", card)


def _next(steps: int, every: int) -> int:
    return (steps // every + 1) * every
