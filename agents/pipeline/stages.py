"""The legs of a whole training: which part learns, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from agents.config.settings import PPOConfig, SupervisedConfig, TrainStages
from agents.supervised.epochs import check_settings
from classifiers.errors import InputError


@dataclass(frozen=True)
class Leg:
    """One stretch of training, from the best checkpoint of the leg before.

    Attributes:
        stage: 0, 1, 2 or 3.
        part: what learns.
        settings: how it learns: by PPO in stage 2, by cross-entropy in the others.
        round: number of the joint round, from 1 on; 0 in the single pass before them.
    """

    stage: int
    part: str
    settings: SupervisedConfig | PPOConfig
    round: int = 0

    @property
    def name(self) -> str:
        """Of its folder below ``checkpoints``."""
        stage = f"stage{self.stage}-{self.part}" if self.stage == 0 else f"stage{self.stage}"
        return f"round{self.round}-{stage}" if self.round else stage

    @property
    def title(self) -> str:
        """For people."""
        title = f"stage {self.stage}: {self.part}"
        return f"round {self.round}, {title}" if self.round else title

    @property
    def about(self) -> dict[str, Any]:
        """What its lines of metrics begin with."""
        return {"round": self.round} if self.round else {}


def single_pass(config: TrainStages) -> list[Leg]:
    """The stages from ``config.first`` to ``config.last``; those with no epochs are left out."""
    stages = config.stages
    legs = [
        Leg(0, "glancer", stages.glancer),
        Leg(0, "focuser", stages.focuser),
        Leg(1, "random patches", stages.random_patches),
        Leg(2, "policy", config.ppo),
        Leg(3, _finetuned(stages.finetune), stages.finetune),
    ]
    return [leg for leg in legs if config.first <= leg.stage <= config.last and leg.settings.epochs != 0]


def joint_round(config: TrainStages, number: int) -> list[Leg]:
    """Stages 2 and 3 once more, with the settings of ``config.joint`` where those differ."""
    joint = config.joint
    ppo = _changed(config.ppo, total_steps=joint.total_steps, learning_rate=joint.policy_learning_rate)
    if joint.total_steps is not None:
        ppo = replace(ppo, epochs=None)
    finetune = _changed(
        config.stages.finetune, epochs=joint.epochs, learning_rate=joint.learning_rate, head_learning_rate=joint.head_learning_rate
    )
    return [Leg(2, "policy", ppo, number), Leg(3, _finetuned(finetune), finetune, number)]


def check_stages(config: TrainStages) -> None:
    """Checks that the stages asked for can be run one after the other.

    Raises:
        InputError: there are no such stages or rounds, or stage 3 has no policy to look with.
    """
    if config.first > config.last:
        raise InputError(f"first={config.first} comes after last={config.last}; choose stages in their order")
    if config.first == 3 and not config.policy:
        raise InputError(
            "first=3 needs a trained policy: add policy=DIR, one that python -m agents.train_ppo has made (RUN/checkpoints/best), "
            "or first=2 to train one"
        )
    if config.rounds and config.last < 3:
        raise InputError(f"rounds={config.rounds} begin after stage 3, and last={config.last}; leave last out, or set rounds=0")


def check_learning(config: TrainStages, device: torch.device) -> None:
    """Checks how stages 0, 1 and 3 learn, also those that come hours later; see `check_settings`.

    Raises:
        InputError: a setting cannot be used (names the stage).
    """
    for leg in single_pass(config):
        if isinstance(leg.settings, SupervisedConfig):
            try:
                check_settings(leg.settings, device)
            except InputError as problem:
                raise InputError(f"{leg.title}: {problem}") from problem


def _finetuned(settings: SupervisedConfig) -> str:
    return "focuser, head" if settings.learning_rate > 0 else "head"


def _changed(settings: Any, **values: Any) -> Any:
    return replace(settings, **{key: value for key, value in values.items() if value is not None})
