"""The process of a training command: its run directory, its display, and methods for each step between the settings and the result."""

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from gymnasium import spaces
from rich.console import Console
from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from adafocus_env.action import ACTIONS
from adafocus_env.build import choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.dataset_registry import build_data
from adafocus_env.features.live import Features
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.outcome import check_full_information
from adafocus_env.reward import ALONE, REWARDS
from adafocus_env.videos.dataset import check_train_split
from agents.config.compose import flat
from agents.config.policy import SKIPPING
from agents.config.settings import AlgoConfig, PPOConfig, Train, Training, TrainPPO
from agents.pipeline.builders import Clips, build_clips, choose_classifier, features_of, in_order_of, inference_classifier
from agents.policies.baselines import check_policy
from agents.policies.networks import PolicyNetwork, load_policy
from agents.rl.algorithms import ALGORITHMS, algorithm_of, check_fits, check_settings, class_of, learns_as_ppo
from agents.rl.distributed import check_processes
from agents.rl.environment import reward_of
from agents.rl.saved_model import TrainedModel, selection_of
from agents.rl.settings import algorithm_settings, check_ppo
from agents.rl.trainer import train_policy
from agents.runs.interrupts import Stopped
from agents.runs.loggers import Curves, check_log
from agents.runs.progress import Display
from agents.runs.report import report, split_title, table
from agents.runs.run_dir import EXECUTION_KEYS, RunDir
from agents.runs.seeding import make_deterministic
from agents.runs.threads import limit_threads
from classifiers import checkpoint
from classifiers.classifier import Architecture, Classifier, ClipFormat
from classifiers.errors import InputError, count_of, lookup, refuse_if

SCORE = ("val_confidence_anytime",)
"""The validation metrics by which policies are selected."""


class TrainingRun:
    """The process of a training command, which starts or resumes a run.

    Args:
        directory: The run directory, opened for writing.
        config: The settings.
        display: Shows progress.

    Attributes:
        classifier_or_architecture: The classifier or architecture that the settings name. The method `clips` sets it.
        seconds: Wall time of each step, for `result.json`.
    """

    classifier_or_architecture: Classifier | Architecture

    def __init__(self, directory: RunDir, config: Training, display: Display) -> None:
        self.directory, self.config, self.display = directory, config, display
        self.device = choose_device(config.device)
        self.seconds: dict[str, float] = {}
        self._resources = ExitStack()
        self._inference: tuple[Classifier, Classifier] | None = None
        self._features: dict[str, Features] = {}

    @classmethod
    def open(cls, path: str | Path, config: Training) -> "TrainingRun":
        """Open the run directory and set the seeds. If there are several processes, only the main process writes files and shows progress.

        Raises:
            InputError: If the directory belongs to another run, if the settings ``device`` or ``log`` cannot be used, or if the processes
                have different settings.
        """
        check_log(config.log)
        make_deterministic()
        compared = {key: value for key, value in flat(asdict(config)).items() if key not in EXECUTION_KEYS}
        distributed.check_equal("settings", compared, "start all of them with the same command")
        main = distributed.is_main()
        with distributed.main_first():  # the other processes only read
            directory = RunDir.open(path, asdict(config), force=config.force) if main else RunDir(path)
        run = cls(directory, config, Display(None if main else Console(quiet=True)))
        run._resources.enter_context(directory)
        if main:
            directory.watch(run._resources.enter_context(closing(Curves(directory, config.log))))
        run._resources.enter_context(run.display)
        run.display.say(f"run folder: {directory.root}")
        set_random_seed(config.seed)
        return run

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(problem, InputError) and distributed.is_main():
            self.directory.forget()
        self._resources.close()
        if isinstance(problem, Stopped):
            self.display.say("stopped and saved; the same command resumes")
            raise SystemExit(130)

    def show_if_finished(self) -> bool:
        """Show the table of a finished run; return False if the run is not finished."""
        if not distributed.broadcast_object(self.directory.finished):
            return False
        result = self.directory.result()
        title = f"{split_title(self.config.data.title, result['split'], result['clips'])}: finished before (force=true starts over)"
        self.display.console.print(table(result["policies"], title, result.get("metric", "top1")))
        if note := result.get("note"):
            self.display.say(note)
        return True

    def clips(self, *, for_policy: bool = True) -> Clips:
        """Return the clips of the data set. If necessary, the clips are rendered and decoded.

        Args:
            for_policy: Whether to check, before videos are rendered, the settings of the algorithm that trains a policy on the clips.

        Raises:
            InputError: If the data set, the classifier or a setting of the algorithm cannot be used.
        """
        start, config = time.perf_counter(), self.config
        data = build_data(config.data)
        check_train_split(data, config.data.root)
        self.display.say(data.summary)
        given = choose_classifier(config.classifier, data, self.device, config.patch_size, config.architecture)
        limit_threads(given, data.classes, self.device)
        self.classifier_or_architecture = given
        architecture = given if isinstance(given, Architecture) else given.architecture
        if for_policy:
            self._check_algorithm(architecture)
        with distributed.main_first():
            of_data = in_order_of(config.data, getattr(given, "clip_format", ClipFormat()))
            clips = build_clips(data, of_data, architecture.size, self.display, seed=config.seed)
        check_clips(clips, processes=distributed.world_size() if for_policy else 1)
        self.seconds["render"] = time.perf_counter() - start
        return clips

    def _check_algorithm(self, architecture: Architecture) -> None:
        """Check the settings of the algorithm before videos are rendered; see `check_algo` and `check_ppo`."""
        config = cast(TrainPPO, self.config)
        check_processes(config.algo if isinstance(config, Train) else AlgoConfig(), config.env.num_envs)
        reward = lookup("env.reward", reward_of(config.env), REWARDS)
        refuse_if(reward.alone and config.env.action in SKIPPING, ALONE.replace("reward=", "env.reward="))
        if isinstance(config, Train):
            action = lookup("action", config.env.action, ACTIONS)(config.env.grid, architecture.size, architecture.patch_size)
            check_algo(config, action.space)
            if config.env.full_information:
                check_full_information(action, reward, stored=config.env.bank is not False, prefix="env.")
                refuse_if(
                    action.num_cells is not None and config.data.views == "resample",
                    "env.full_information needs a bank on a grid, which stores the features of fixed clips: set data.views to a number",
                )
            if not learns_as_ppo(config.algo):
                return
        steps = config.env.video_div or 1 if architecture.averages_frames else config.data.num_frames
        check_ppo(config.ppo, config.env, steps, config.network)

    def features(self, classifier: Classifier, clips: ClipSource) -> Features:
        """Return the features of the clips from the frozen classifier. Calls before `finish` share a bank."""
        if self._inference is None or self._inference[0] is not classifier:
            self._inference = classifier, inference_classifier(classifier, self.config.env)  # only once, since compiling takes minutes
            self._features = {}
        if clips.fingerprint not in self._features:
            self._features[clips.fingerprint] = features_of(self._inference[1], clips, self.config.env)
        return self._features[clips.fingerprint]

    def train_policy(
        self,
        classifier: Classifier,
        clips: Clips,
        *,
        directory: RunDir | None = None,
        ppo: PPOConfig | None = None,
        seed: int | None = None,
        start: PolicyNetwork | None = None,
    ) -> PolicyNetwork | TrainedModel:
        """Run stage 2 on the frozen classifier; return the policy with the best validation score.

        Args:
            classifier: The classifier.
            clips: The clips of all splits.
            directory: Folder of metrics and checkpoints; None: the run directory.
            ppo: Settings of PPO; None: the settings of the run.
            seed: Seed of all random numbers; None: the seed of the run.
            start: The policy to start from; None: the policy that the settings name, or a new one.
        """
        config, directory = cast(TrainPPO, self.config), directory or self.directory
        ppo = ppo or config.ppo
        features = self.features(classifier, clips.train)
        self.display.say(features.about)
        val = self.features(classifier, clips.val) if clips.val and distributed.is_main() else None
        algo = config.algo if isinstance(config, Train) else None
        settings = algorithm_settings(features, config.env, config.network, ppo, algo, start or self.given_policy(features))
        seed = config.seed if seed is None else seed
        return train_policy(features, val, directory, self.display, settings, env=config.env, seed=seed)

    def given_policy(self, features: Features) -> PolicyNetwork | None:
        """Return the policy from which the user wants to start; None if the settings name no policy.

        Raises:
            InputError: If the policy does not match the environment.
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
        result_entries: Mapping[str, Any] | None = None,
        **card: Any,
    ) -> None:
        """Save the classifier, evaluate the models once on the test clips, and write the table, `result.json` and plots.

        The result also states the step or epoch at which the policy was selected, and the policy's anytime confidence on the validation
        clips.

        Args:
            classifier: The classifier in its final state.
            policy: The trained policy, if any.
            clips: The clips of all splits.
            since: Value of `time.perf_counter` when training began.
            result_entries: Further entries of `result.json`.
            card: Further fields of the classifier's card.
        """
        self.seconds["train"] = time.perf_counter() - since
        classifier.clip_format = clips.format
        checkpoint.save(classifier, self.directory.checkpoints / "classifier", data=clips.data.name, **card)
        start, config = time.perf_counter(), self.config
        self._features = {}  # frees the memory of the training's banks
        features = self.features(classifier, clips.test)
        predictor = policy.on(features) if isinstance(policy, TrainedModel) else policy
        result = report(
            features, predictor, self.directory.root, self.display, seed=config.seed, data=clips.data.name, title=config.data.title,
            metric=clips.data.metric, skipped=config.env.skipped,
        )  # fmt: skip
        self.seconds["evaluate"] = time.perf_counter() - start
        seconds = {step: round(value, 1) for step, value in self.seconds.items()}
        if policy is not None and (best := selection_of(self.directory.checkpoints / "best")):
            metrics = best.pop("metrics")
            result["best"] = {**best, **{key: metrics[key] for key in SCORE if key in metrics}}
        self.directory.write_result({**result, **(result_entries or {}), "seconds": seconds})
        self.display.say(f"saved to {self.directory.root}: result.json, result.png, contact_sheet.png, predictions.csv, checkpoints/")


def check_clips(clips: Clips, processes: int) -> None:
    """Check that all processes have the same clips, and that there are enough training clips.

    Raises:
        InputError: If the clips differ, or if there are fewer training clips per epoch than ``processes``.
    """
    splits = {name: split for name, split in (("train", clips.train), ("val", clips.val), ("test", clips.test)) if split is not None}
    distributed.check_equal(
        "data", {name: f"{count_of(len(split), 'clip')}, fingerprint {split.fingerprint[:12]}" for name, split in splits.items()},
        "give all machines the same files, with the same modification times",
    )  # fmt: skip
    refuse_if(
        clips.train.epoch_size < processes,
        f"{count_of(processes, 'process', 'processes')} cannot share {count_of(clips.train.epoch_size, 'training clip')}; start at most "
        "one process per clip",
    )


def check_algo(config: Train, space: spaces.Space) -> None:
    """Check that the algorithm, its settings and the environment fit each other. (`check_ppo` checks PPO's settings.)

    Raises:
        InputError: If the algorithm does not support the actions, if a setting is unknown, or if a setting must be set by another key.
    """
    algo = config.algo
    check_fits(algo.name, f"env.action={config.env.action}", space)
    check_settings(algo)
    lookup("algo.observation", algo.observation, OBSERVATIONS)
    row = algorithm_of(class_of(algo.name), algo.name)
    refuse_if(
        row is ALGORITHMS["imitation"] and algo.observation != "reference",
        f"algo.observation must be reference with algo={algo.name}, which looks up targets by clip and step, got {algo.observation}; "
        "leave it out",
    )
    refuse_if(
        row.full_information and algo.observation == "dict",
        f"algo.observation must be one array with algo={algo.name}, such as reference or map, got dict; leave it out",
    )
    refuse_if(
        row.full_information and not config.env.full_information,
        f"algo={algo.name} learns from the reward of every action; set env.full_information=true",
    )
    if learns_as_ppo(algo):
        for key in algo.settings:
            refuse_if(key in asdict(config.ppo), f"algo.settings.{key}: with PPO, set ppo.{key}")
    elif config.policy:
        raise InputError(f"policy={config.policy} is only for algo=ppo; leave it out with algo={algo.name}")
