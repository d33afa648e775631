"""The stages 0, 1 and 3, and end-to-end training, with tiny settings."""

from dataclasses import replace

import torch
from conftest import random_classifier

from agents.config.settings import EndToEndConfig, SupervisedConfig
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.policies.spatial import SpatialArchitecture
from agents.supervised.end_to_end import train_end_to_end
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


def continuous_policy():
    torch.manual_seed(0)
    policy = PolicyNetwork(SpatialArchitecture((16, 6, 6), 24 / 96, width=4), None)
    policy.actor.scores.layers[-1].weight.data.mul_(300)  # locations far from the centre
    return policy.eval().requires_grad_(False)


SHARED = ("epochs", "batch_size", "learning_rate", "dropout", "accumulate", "precision")


def end_to_end(classifier, clips, config, seed, *, policy=None, freeze=False, checkpoints=None, **settings):
    """Train end to end with the settings that both kinds of config have."""
    shared = {name: getattr(config, name) for name in SHARED}
    learning = EndToEndConfig(**{**shared, "optimizer": "adamw", "schedule": "one_cycle", **settings})
    policy = continuous_policy() if policy is None else policy
    return train_end_to_end(classifier, policy, clips, learning, seed=seed, freeze=freeze, checkpoints=checkpoints)


def trained(stage, clips, config=CONFIG, seed=0):
    classifier = random_classifier()
    measured = list(STAGES[stage](classifier, clips, config, seed))
    return classifier, measured
