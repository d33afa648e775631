"""The stages 0, 1 and 3 with tiny settings."""

from dataclasses import replace

import torch
from conftest import random_classifier

from agents.config.settings import SupervisedConfig
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.supervised.stages import finetune, train_on_random_patches, warm_up

CONFIG = SupervisedConfig(epochs=2, batch_size=5, learning_rate=0.01, head_learning_rate=0.01, frames=2)


def looking_policy():
    torch.manual_seed(0)
    return PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)


STAGES = {
    "glancer": lambda classifier, clips, config, seed: warm_up(classifier, "glancer", clips, config, seed=seed),
    "focuser": lambda classifier, clips, config, seed: warm_up(classifier, "focuser", clips, config, seed=seed),
    "random patches": lambda classifier, clips, config, seed: train_on_random_patches(classifier, clips, config, seed=seed),
    "finetune head": lambda classifier, clips, config, seed: finetune(
        classifier, looking_policy(), clips, replace(config, learning_rate=0), seed=seed
    ),
    "finetune both": lambda classifier, clips, config, seed: finetune(classifier, looking_policy(), clips, config, seed=seed),
}
LEARNING = {
    "glancer": ("glancer.",), "focuser": ("focuser.",), "random patches": ("focuser.features.", "head."),
    "finetune head": ("head.",), "finetune both": ("focuser.features.", "head."),
}  # fmt: skip


def trained(stage, clips, config=CONFIG, seed=0):
    classifier = random_classifier()
    measured = list(STAGES[stage](classifier, clips, config, seed))
    return classifier, measured
