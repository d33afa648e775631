"""The classifier and the policy to export, with information from their files."""

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
    """A classifier and its policy, both on the CPU.

    Attributes:
        name: Name of the run or of the classifier's folder.
        classifier: The frozen classifier.
        policy: The frozen policy.
        skipped: Input of the head for skipped frames.
        card: The classifier's card.
        about: The policy's card, without the description of its network.
        run: The run from which classifier and policy are loaded; None: they are not loaded from a run.
        plugin: The Python module that classifier and policy need; empty: no module.
        exit: The stored confidences for a conditional exit; None if no confidences were computed with these weights.
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
        """Load the classifier and the policy that the settings name.

        Raises:
            InputError: If the run is not finished, if a checkpoint is missing or cannot be read, or if the policy is not a policy network.
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
        """The content of the run's ``result.json``, which has the results on the test clips; empty if there is no run."""
        return {} if self.run is None else self.run.result()

    @property
    def commands(self) -> list[str]:
        """The commands that created the classifier and the policy, as far as they are known, without duplicates."""
        system = None if self.run is None else self.run.path(SYSTEM)
        of_run = [command_line(json.loads(system.read_text(encoding="utf-8"))["command"])] if system and system.is_file() else []
        found = [self.card.command, self.about.get("command"), *of_run]
        return list(dict.fromkeys(str(each) for each in found if each))


def _stored_exit(path: Path, classifier: Classifier, policy: PolicyNetwork, skipped: str) -> ExitFit | None:
    """Return the stored confidences for a conditional exit. Return None if there are no confidences for these networks.

    Raises:
        InputError: If the file is damaged.
    """
    fit = ExitFit.load(path) if path.is_file() else None
    if fit is None or fit.model.classifier != classifier.fingerprint() or fit.model != exit_model(classifier, policy, skipped):
        return None
    return fit
