"""The classifier and the policy to export, with the information in their files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.config.settings import Export
from agents.evaluation.conditional_exit import ExitFit, exit_file
from agents.policies.networks import CARD as POLICY_CARD
from agents.policies.networks import PolicyNetwork
from agents.prediction.checkpoints import check_plugin, load_checkpoints, locate
from agents.prediction.thresholds import exit_model
from agents.rl.saved_model import CARD as MODEL_CARD
from agents.runs.run_dir import SYSTEM, RunDir
from agents.runs.system import command_line
from classifiers.checkpoint import Card, read_card, read_json
from classifiers.classifier import Classifier
from classifiers.errors import InputError


@dataclass(frozen=True)
class Trained:
    """A classifier and its policy, on the CPU.

    Attributes:
        name: Of the run or of the classifier's folder.
        classifier: Frozen.
        policy: Frozen.
        skipped: Input of the head where the policy skips a frame.
        card: Of the classifier.
        about: The policy's card, without the description of its network.
        run: The run that they are from, if any.
        plugin: The module that they need, if any.
        exit: What a conditional exit was fitted on, if it is stored beside the policy and belongs to these weights.
    """

    name: str
    classifier: Classifier
    policy: PolicyNetwork
    skipped: str
    card: Card
    about: dict[str, Any]
    run: RunDir | None
    plugin: str
    exit: ExitFit | None
    @classmethod
    def load(cls, config: Export) -> Trained:
        """Return what the settings name.

        Raises:
            InputError: The run is not finished, a checkpoint is missing or cannot be read, or the policy is a model of another kind.
        """
        check_plugin(config.run, config.plugin)
        source, given = Path(config.run or config.classifier), Path(config.policy) if config.policy else None
        run, folder, policy = locate(source, given)
        if (policy / MODEL_CARD).is_file() and not (policy / POLICY_CARD).is_file():
            algo = read_json(policy, MODEL_CARD, f"policy={policy}").get("algo")
            raise InputError(
                f"policy={policy} is a model of algo={algo} and cannot be exported; give one with a policy network on glance maps, such as "
                "algo=ppo, expected_pg and imitation train"
            )
        classifier, network, skipped = load_checkpoints(source, given, torch.device("cpu"))
        about = read_json(policy, POLICY_CARD, f"policy={policy}")
        del about["network"]
        exit = _stored_exit(exit_file(config.policy or (policy if run else config.classifier)), classifier, network, skipped)
        return cls(source.resolve().name, classifier, network, skipped, read_card(folder), about, run, config.plugin, exit)

    @property
    def result(self) -> dict[str, Any]:
        """What was measured on the test clips, as ``result.json`` has it; empty without a run."""
        return {} if self.run is None else self.run.result()

    @property
    def commands(self) -> list[str]:
        """The commands that made the classifier and the policy, as far as they are known, each once."""
        system = None if self.run is None else self.run.path(SYSTEM)
        of_run = [command_line(json.loads(system.read_text(encoding="utf-8"))["command"])] if system and system.is_file() else []
        found = [self.card.command, self.about.get("command"), *of_run]
        return list(dict.fromkeys(str(each) for each in found if each))


def _stored_exit(path: Path, classifier: Classifier, policy: PolicyNetwork, skipped: str) -> ExitFit | None:
    """Return what is stored for a conditional exit of these networks; None if there is nothing, or it belongs to others.

    Raises:
        InputError: The file is damaged.
    """
    fit = ExitFit.load(path) if path.is_file() else None
    if fit is None or fit.model.classifier != classifier.fingerprint() or fit.model != exit_model(classifier, policy, skipped):
        return None
    return fit
