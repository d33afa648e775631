"""What the training commands share: a run folder, a display, and the way from a config to a result."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from gymnasium import spaces
from rich.console import Console
from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from adafocus_env.action import ACTIONS
from adafocus_env.build import choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.datasets import build_data
from adafocus_env.features.live import Features
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.videos.dataset import check_train_split
from agents.config.settings import PPOConfig, Train, TrainPPO
from agents.pipeline.builders import Clips, build_clips, choose_classifier, features_of, run_as, trained_classifier
from agents.policies.baselines import check_policy
from agents.policies.checkpoint import load_policy
from agents.policies.networks import PolicyNetwork
from agents.rl.algorithms import check_fits, check_settings, learns_as_ppo
from agents.rl.ppo import check_ppo
from agents.rl.saved_model import TrainedModel
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import train_policy
from agents.runs.interrupts import Stopped
from agents.runs.loggers import Curves, check_log
from agents.runs.progress import Display
from agents.runs.report import report, split_title, table
from agents.runs.run_dir import RunDir
from agents.runs.threads import limit_threads
from classifiers import checkpoint
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError, lookup


class Session:
    """One start of a training command.

    Args:
        run: its folder, open for writing.
        config: what the user asked for.
        display: where progress is shown.
    """

    def __init__(self, run: RunDir, config: TrainPPO, display: Display) -> None:
        self.run, self.config, self.display = run, config, display
        self.device = choose_device(config.device)
        self.seconds: dict[str, float] = {}
        self._open = ExitStack()
        self.wanted: Classifier | Architecture | None = None
        self._running: tuple[Classifier, Classifier] | None = None
        self._features: dict[str, Features] = {}

    @classmethod
    def open(cls, folder: str | Path, config: TrainPPO) -> Session:
        """Opens the run folder and fixes the seeds. Of several processes the main one alone writes to it and shows what goes on.

        Raises:
            InputError: the folder belongs to another run, or device or log cannot be used.
        """
        check_log(config.log)
        deterministic()
        with distributed.main_first():  # the others only read
            run = RunDir.open(folder, asdict(config), force=config.force) if distributed.is_main() else RunDir(folder)
        session = cls(run, config, Display(None if distributed.is_main() else Console(quiet=True)))
        session._open.enter_context(session.run)
        if distributed.is_main():
            session.run.watch(session._open.enter_context(closing(Curves(session.run, config.log))))
        session._open.enter_context(session.display)
        session.display.say(f"run folder: {session.run.root}")
        set_random_seed(config.seed)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(problem, InputError) and distributed.is_main():
            self.run.forget()
        self._open.close()
        if isinstance(problem, Stopped):
            self.display.say("stopped and saved; the same command goes on from here")
            raise SystemExit(130)

    def show_if_finished(self) -> bool:
        """Prints the table of a run that is finished; False if it is not."""
        if not distributed.broadcast_object(self.run.finished):
            return False
        result = self.run.result()
        title = f"{split_title(self.config.data.title, result['split'], result['clips'])}: finished before (force=true starts over)"
        self.display.console.print(table(result["policies"], title, result.get("metric", "top1")))
        return True

    def clips(self, *, for_policy: bool = True) -> Clips:
        """The clips of the data set, rendered and decoded where they are not yet.

        Args:
            for_policy: a policy will be trained on them; its settings are checked first.

        Raises:
            InputError: the data set, the classifier or a setting of PPO cannot be used.
        """
        start, config = time.perf_counter(), self.config
        data = build_data(config.data)
        check_train_split(data, config.data.root)
        self.display.say(data.summary)
        self.wanted = choose_classifier(config.classifier, data, self.device, config.patch_size, config.architecture)
        limit_threads(self.wanted, data.classes, self.device)
        architecture = self.wanted if isinstance(self.wanted, Architecture) else self.wanted.architecture
        if for_policy:
            self._check(architecture)
        with distributed.main_first():
            clips = build_clips(data, config.data, architecture.size, self.display, seed=config.seed)
        self.seconds["render"] = time.perf_counter() - start
        return clips

    def _check(self, architecture: Architecture) -> None:
        """Checks the settings of the algorithm before anything is rendered; see `check_algo` and `check_ppo`."""
        config = self.config
        if isinstance(config, Train):
            action = lookup("action", config.env.action, ACTIONS)(config.env.grid, architecture.size, architecture.patch_size)
            check_algo(config, action.space)
            if not learns_as_ppo(config.algo):
                return
        steps = config.env.video_div or 1 if architecture.head == "mean" else config.data.num_frames
        check_ppo(config.ppo, config.env, steps, config.network)

    def classifier(self, clips: Clips) -> Classifier:
        """The classifier for these clips: a given one, the kept one, or one that is trained now."""
        assert self.wanted is not None
        return trained_classifier(
            self.wanted, clips, self.config.stages, self.device, self.display, video_div=self.config.env.video_div
        )

    def features(self, classifier: Classifier, clips: ClipSource) -> Features:
        """What the frozen classifier sees in the clips, as the config wants it run and kept; the same bank until `finish`."""
        if self._running is None or self._running[0] is not classifier:
            self._running = classifier, run_as(classifier, self.config.env)  # once, since it may be compiled
            self._features = {}
        if clips.fingerprint not in self._features:
            self._features[clips.fingerprint] = features_of(self._running[1], clips, self.config.env)
        return self._features[clips.fingerprint]

    def train_policy(
        self,
        classifier: Classifier,
        clips: Clips,
        *,
        run: RunDir | None = None,
        ppo: PPOConfig | None = None,
        seed: int | None = None,
        start: PolicyNetwork | None = None,
    ) -> PolicyNetwork | TrainedModel:
        """Stage 2 on the frozen classifier; the policy that did best on the validation part.

        Args:
            classifier: judges the patches.
            clips: of all parts.
            run: where metrics and checkpoints go; None: the folder of the whole run.
            ppo: how it learns; None: as the config says.
            seed: of everything random; None: the config's.
            start: the policy to start from; None: the one that the config names, or a new one.
        """
        run, ppo = run or self.run, ppo or self.config.ppo
        features = self.features(classifier, clips.train)
        self.display.say(features.about)
        val = self.features(classifier, clips.val) if clips.val else None
        config = self.config
        seed = config.seed if seed is None else seed
        algo = config.algo if isinstance(config, Train) else None
        settings = algorithm_settings(features, config.env, config.network, ppo, algo, start or self.given_policy(features))
        return train_policy(features, val, run, self.display, settings, env=config.env, seed=seed)

    def given_policy(self, features: Features) -> PolicyNetwork | None:
        """The policy that the user wants to start from, if any.

        Raises:
            InputError: it does not fit the environment.
        """
        if not self.config.policy:
            return None
        policy = load_policy(self.config.policy, self.device)
        try:
            check_policy(policy, features)
        except InputError as problem:
            raise InputError(f"policy={self.config.policy}: {problem}") from problem
        return policy

    def finish(
        self,
        classifier: Classifier,
        policy: PolicyNetwork | TrainedModel | None,
        clips: Clips,
        since: float,
        further: Mapping[str, Any] = MappingProxyType({}),
        **about: Any,
    ) -> None:
        """Saves the classifier and reads the test clips, once: table, `result.json` and pictures.

        Args:
            classifier: in its final state.
            policy: what was learned, if anything.
            clips: of all parts.
            since: `time.perf_counter` when training began.
            further: entries of `result.json`.
            about: fields of the classifier's card.
        """
        self.seconds["train"] = time.perf_counter() - since
        checkpoint.save(classifier, self.run.checkpoints / "classifier", data=clips.data.name, **about)
        start = time.perf_counter()
        self._features = {}  # makes room
        features = self.features(classifier, clips.test)
        about = {"data": clips.data.name, "title": self.config.data.title, "metric": clips.data.metric}
        player = policy.on(features) if isinstance(policy, TrainedModel) else policy
        result = report(features, player, self.run.root, self.display, seed=self.config.seed, skipped=self.config.env.skipped, **about)
        self.seconds["evaluate"] = time.perf_counter() - start
        self.run.write_result({**result, **further, "seconds": {key: round(value, 1) for key, value in self.seconds.items()}})
        self.display.say(f"saved to {self.run.root}: result.json, result.png, contact_sheet.png, checkpoints/")


def learn(folder: str | Path, config: TrainPPO) -> None:
    """Trains a policy in the run folder ``folder`` and reports what it is worth on the test clips; goes on with a run that was stopped.

    Raises:
        InputError: a setting, the data or the folder cannot be used.
    """
    with Session.open(folder, config) as session:
        if session.show_if_finished():
            return
        clips = session.clips()
        classifier = session.classifier(clips)
        prepared = time.perf_counter()
        policy = session.train_policy(classifier, clips)
        session.finish(classifier, policy, clips, prepared)


def check_algo(config: Train, space: spaces.Space) -> None:
    """Checks that algorithm, settings and environment go together; PPO's own settings are `check_ppo`'s business.

    Raises:
        InputError: the algorithm does not learn such actions, or a setting is unknown or to be set elsewhere.
    """
    algo = config.algo
    check_fits(algo.name, f"env.action={config.env.action}", space)
    check_settings(algo)
    lookup("algo.observation", algo.observation, OBSERVATIONS)
    if learns_as_ppo(algo):
        for key in algo.settings:
            if key in asdict(config.ppo):
                raise InputError(f"algo.settings.{key}: with PPO, set ppo.{key}")
    elif config.policy:
        raise InputError(f"policy={config.policy} is for algo=ppo alone; leave it out with algo={algo.name}")


def deterministic() -> None:
    """Makes PyTorch choose algorithms that give the same bits twice, where it has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product of matrices on a GPU
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a bank is large and filled anyway
