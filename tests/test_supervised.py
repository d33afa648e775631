import copy
import math

import numpy as np
import pytest
import torch
from conftest import random_classifier

from agents.config import SupervisedConfig
from agents.policies import GlancePolicy, PolicyNetwork
from agents.stages.finetune import finetune
from agents.stages.random_patches import train_on_random_patches
from agents.stages.warm_up import warm_up
from agents.supervised import Part, train_epochs
from classifiers.errors import InputError

CONFIG = SupervisedConfig(epochs=2, batch_size=5, learning_rate=0.01, head_learning_rate=0.01, frames=2)


def looking_policy():
    torch.manual_seed(0)
    return GlancePolicy(PolicyNetwork((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)


STAGES = {
    "glancer": lambda classifier, clips, config, seed: warm_up(classifier, "glancer", clips, config, seed=seed),
    "focuser": lambda classifier, clips, config, seed: warm_up(classifier, "focuser", clips, config, seed=seed),
    "random patches": lambda classifier, clips, config, seed: train_on_random_patches(classifier, clips, config, seed=seed),
    "finetune": lambda classifier, clips, config, seed: finetune(classifier, looking_policy(), clips, config, seed=seed),
}
LEARNING = {"glancer": ("glancer.",), "focuser": ("focuser.",), "random patches": ("focuser.features.", "head."), "finetune": ("head.",)}


def trained(stage, clips, config=CONFIG, seed=0):
    classifier = random_classifier()
    measured = list(STAGES[stage](classifier, clips, config, seed))
    return classifier, measured


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_what_it_trains_and_nothing_else(clips, stage):
    before = copy.deepcopy(random_classifier().state_dict())
    classifier, measured = trained(stage, clips)
    changed = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(LEARNING[stage])}  # batch-norm statistics are among them
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert [set(epoch) for epoch in measured] == [{"loss", "accuracy"}] * 2
    assert all(0 <= epoch["accuracy"] <= 1 and epoch["loss"] > 0 for epoch in measured)


@pytest.mark.parametrize("stage", STAGES)
def test_equal_seeds_give_equal_losses_and_weights(clips, stage):
    def run(seed):
        torch.manual_seed(7)  # of the dropout
        classifier, measured = trained(stage, clips, seed=seed)
        return classifier.fingerprint(), measured

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_the_loss_falls(clips, optimizer, schedule):
    rate = 0.1 if optimizer == "sgd" else 0.03
    config = SupervisedConfig(epochs=10, batch_size=4, learning_rate=rate, optimizer=optimizer, schedule=schedule, frames=4)
    losses = [epoch["loss"] for epoch in trained("glancer", clips, config)[1]]
    assert losses[-1] < min(losses[0], math.log(10)) - 0.2  # ln 10: what guessing costs


def test_every_clip_comes_once_an_epoch_in_a_new_order(clips):
    classifier, orders = random_classifier(), []

    def scores(batch):
        orders.append(batch.clips)
        assert batch.frames.shape == (len(batch.clips), 4, 3, 96, 96) and batch.frames.dtype == torch.uint8
        assert batch.labels.tolist() == clips.labels[batch.clips].tolist()
        return classifier.glancer.scores(classifier.glance(classifier.normalise(batch.frames[:, 0]))[1]), batch.labels

    list(train_epochs([Part(classifier.glancer, 0.01)], clips, scores, CONFIG, seed=0, device=classifier.device))
    assert [len(batch) for batch in orders] == [4, 4, 4] * 2  # as even as they can be: none of a single clip
    first, second = np.concatenate(orders[:3]), np.concatenate(orders[3:])
    assert sorted(first) == sorted(second) == list(range(12)) and not np.array_equal(first, second)


def test_no_epochs_leave_the_weights_as_they_are(clips):
    for stage in STAGES:
        classifier, measured = trained(stage, clips, SupervisedConfig(epochs=0))
        assert measured == [] and classifier.fingerprint() == random_classifier().fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, r"optimizer='lion' is not known; choose one of \['adamw', 'sgd'\]"),
        ({"schedule": "step"}, r"schedule='step' is not known; choose one of \['cosine', 'one_cycle'\]"),
        ({"batch_size": 0}, r"batch_size=0 is too small; choose 1 or more"),
        ({"frames": 0}, r"frames=0 is too small; choose 1 or more"),
    ],
)
def test_settings_that_cannot_be(clips, change, message):
    with pytest.raises(InputError, match=message):
        trained("glancer", clips, SupervisedConfig(**change))
