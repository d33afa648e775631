"""The plan of a training: the order of its stages, their networks and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.config.settings import PPOConfig, SupervisedConfig, TrainStages
from agents.rl.algorithms import learns_as_ppo
from agents.runs.run_dir import RunDir
from agents.supervised.epochs import check_settings
from classifiers.errors import InputError, refuse_if

Score = tuple[float, float]
"""Top-1 accuracy, and the mean softmax score of the true class. Between models with equal accuracy, the softmax score decides."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of a training, which starts from the best checkpoint of the stage before.

    Attributes:
        stage: 0, 1, 2 or 3.
        trains: Name of the trained network in lines of metrics.
        settings: Settings of PPO in stage 2, and settings of supervised training in the other stages.
        round: Number of the joint round, starting at 1; 0 for the single pass before the joint rounds.
    """

    stage: int
    trains: str
    settings: SupervisedConfig | PPOConfig
    round: int = 0

    @property
    def folder(self) -> str:
        """Name of the stage's folder in ``checkpoints``."""
        name = f"stage{self.stage}-{self.trains}" if self.stage == 0 else f"stage{self.stage}"
        return f"round{self.round}-{name}" if self.round else name

    @property
    def title(self) -> str:
        """Name on the display."""
        title = f"stage {self.stage}: {self.trains}"
        return f"round {self.round}, {title}" if self.round else title


@dataclass(frozen=True)
class Milestone:
    """The model after a stage.

    Attributes:
        spec: The stage.
        classifier: Folder of the classifier's checkpoint.
        policy: Folder of the policy's checkpoint; None before stage 2.
        score: Score on the validation split; None without a validation split.
    """

    spec: StageSpec
    classifier: Path
    policy: Path | None
    score: Score | None


def single_pass(config: TrainStages) -> list[StageSpec]:
    """Return the stages from ``config.first`` to ``config.last``, leaving out stages with 0 epochs."""
    stages = config.stages
    specs = [
        StageSpec(0, "glancer", stages.glancer),
        StageSpec(0, "focuser", stages.focuser),
        StageSpec(1, "random patches", stages.random_patches),
        StageSpec(2, "policy", config.ppo),
        StageSpec(3, _finetuned(stages.finetune), stages.finetune),
    ]
    return [spec for spec in specs if config.first <= spec.stage <= config.last and spec.settings.epochs != 0]


def joint_round(config: TrainStages, number: int) -> list[StageSpec]:
    """Return stages 2 and 3 of a joint round, with the overrides of ``config.joint``."""
    joint = config.joint
    ppo = _changed(config.ppo, total_steps=joint.total_steps, learning_rate=joint.policy_learning_rate)
    ppo = ppo if joint.total_steps is None else replace(ppo, epochs=None)
    finetune = _changed(
        config.stages.finetune, epochs=joint.epochs, learning_rate=joint.learning_rate, head_learning_rate=joint.head_learning_rate
    )
    return [StageSpec(2, "policy", ppo, number), StageSpec(3, _finetuned(finetune), finetune, number)]


def check_stages(config: TrainStages) -> None:
    """Check that the stages can run one after the other.

    Raises:
        InputError: If the stages are out of order, if no stage has epochs, if stage 3 has no policy, or if there are rounds without stage
            3. The error is also raised if the algorithm is neither PPO nor a subclass of PPO.
    """
    refuse_if(
        not learns_as_ppo(config.algo),
        f"algo must be PPO or a subclass, such as expected_pg, with algo.observation=reference, got {config.algo.name} with "
        f"{config.algo.observation}; other algorithms are those of python -m agents.train",
    )
    refuse_if(config.first > config.last, f"first must not be greater than last, got first={config.first} and last={config.last}")
    refuse_if(
        config.first == 3 and not config.policy,
        "first=3 needs a trained policy: add policy=DIR, for example RUN/checkpoints/best of python -m agents.train_ppo, or first=2 to "
        "train one",
    )
    refuse_if(
        config.rounds and config.last < 3,
        f"rounds={config.rounds} need last=3, got last={config.last}; leave last out, or set rounds=0",
    )
    refuse_if(
        not config.rounds and not single_pass(config),
        f"no stage from first={config.first} to last={config.last} has epochs; set those of stages.* above 0",
    )


def check_learning(config: TrainStages, device: torch.device) -> None:
    """Check the settings of stages 0, 1 and 3 before the first of them starts; see `check_settings`.

    Raises:
        InputError: If a setting cannot be used. The message names the stage.
    """
    for spec in single_pass(config):
        if isinstance(spec.settings, SupervisedConfig):
            try:
                check_settings(spec.settings, device)
            except InputError as problem:
                raise InputError(f"{spec.title}: {problem}") from problem


def _finetuned(settings: SupervisedConfig) -> str:
    return "focuser, head" if settings.learning_rate > 0 else "head"


def _changed(settings: Any, **values: Any) -> Any:
    return replace(settings, **{key: value for key, value in values.items() if value is not None})


class StageDir(RunDir):
    """A view of a run directory that shows one stage: the stage's checkpoints, and the lines of metrics from the stage's first line on.

    Args:
        run: The run directory.
        spec: The stage.
        first: Number of lines of metrics from earlier stages.
    """

    def __init__(self, run: RunDir, spec: StageSpec, first: int) -> None:
        super().__init__(run.root)
        self._run, self._spec, self._first = run, spec, first

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self._run.checkpoints / self._spec.folder

    def log(self, metrics: Mapping[str, object]) -> None:
        """Append a line of metrics, with the number of the joint round if the stage is part of a joint round; see `RunDir.log`."""
        self._run.log({"round": self._spec.round, **metrics} if self._spec.round else metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics of this stage and of later stages."""
        return self._run.metrics()[self._first :]

    def truncate(self, lines: int) -> None:
        """Remove all lines after the first ``lines`` lines of this stage; see `RunDir.truncate`."""
        self._run.truncate(self._first + lines)
