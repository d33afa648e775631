"""End-to-end training: which gradients of the joint loss reach the glancer, the policy, the focuser and the head."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import random_classifier
from supervised_stages import CONFIG, continuous_policy, end_to_end
from torch.nn import functional as F

from agents.config.settings import EndToEndConfig, SupervisedConfig
from agents.supervised import epochs
from agents.supervised.end_to_end import FROZEN_LOSSES, LOSSES, policy_scores, train_end_to_end, two_path_scores
from agents.supervised.epochs import weighted_loss
from classifiers.crop import crop_at_locations

pytestmark = pytest.mark.numerical
WEIGHTS = list(LOSSES.values())


@pytest.fixture
def networks():
    """Return a classifier and a policy with trainable parameters, without dropout and with fixed batch norms."""
    return random_classifier().requires_grad_(True), continuous_policy().requires_grad_(True)


@pytest.fixture
def batch(clips):
    """Return normalised frames of three clips, labels for each of four frames, and random locations."""
    frames = random_classifier().normalise(torch.stack([clips.frames(clip) for clip in (0, 4, 7)]))
    locations = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(1))
    return frames, torch.from_numpy(clips.labels[[0, 4, 7]]).repeat_interleave(4), locations


def gradients(networks, batch, weights):
    """Return the gradients of the loss by network, without the policy's critic."""
    classifier, policy = (copy.deepcopy(each) for each in networks)
    frames, labels, at_random = batch
    loss, _ = weighted_loss(two_path_scores(classifier, policy, frames, frames, at_random), labels, weights)
    loss.backward()
    parts = {"glancer": classifier.glancer, "focuser": classifier.focuser, "head": classifier.head, "policy": policy}
    return {
        name: torch.cat([torch.zeros_like(each).flatten() if each.grad is None else each.grad.flatten() for each in part.parameters()])
        for name, part in parts.items()
    }


def test_the_loss_is_the_published_sum(networks, batch):
    classifier, policy = networks
    frames, labels, at_random = batch
    scores = two_path_scores(classifier, policy, frames, frames, at_random)
    assert scores.shape == (5, 12, 10)
    loss, terms = weighted_loss(scores, labels, WEIGHTS)
    maps, vectors = (each.unflatten(0, (3, 4)) for each in classifier.glance(frames.flatten(0, 1)))
    expected = 1.0 * F.cross_entropy(classifier.glancer.scores(vectors).flatten(0, 1), labels)
    for locations in (policy(maps), at_random):
        focus = classifier.focus(crop_at_locations(frames, locations, 24).flatten(0, 1)).unflatten(0, (3, 4))
        expected = expected + 0.5 * F.cross_entropy(classifier.classify(vectors, focus)[0].flatten(0, 1), labels)
        expected = expected + 0.5 * F.cross_entropy(classifier.focuser.scores(focus).flatten(0, 1), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() == pytest.approx(sum(w * term.item() for w, term in zip(WEIGHTS, terms, strict=True)), rel=1e-6)


@pytest.mark.parametrize("output", LOSSES)
def test_each_loss_reaches_what_it_may(networks, batch, output):
    reached = {
        "policy": {"glancer", "focuser", "head", "policy"}, "random": {"glancer", "focuser", "head"}, "glance": {"glancer"},
        "policy_patch": {"focuser", "policy"}, "random_patch": {"focuser"},
    }[output]  # fmt: skip
    found = gradients(networks, batch, [float(name == output) for name in LOSSES])
    assert {name for name, gradient in found.items() if gradient.any()} == reached


def test_no_gradient_reaches_the_glancer_through_the_policy(networks, batch):
    found = gradients(networks, batch, WEIGHTS)
    classifier, policy = networks
    with torch.no_grad():
        chosen = policy(classifier.glance(batch[0].flatten(0, 1))[0].unflatten(0, (3, 4)))
    constant = copy.deepcopy(policy)
    constant.forward = lambda maps: chosen
    assert torch.equal(found["glancer"], gradients((classifier, constant), batch, WEIGHTS)["glancer"])


def test_the_gradient_of_a_location_is_the_slope_of_the_loss(networks, batch):
    """The gradient from the loss to the location is compared with finite differences in float64."""
    classifier, policy = (each.double() for each in networks)
    frames, labels, _ = batch
    frames = frames.double()

    parameters = list(policy.actor.parameters())
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in parameters]

    def loss(step=0.0):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter += step * change
        return F.cross_entropy(policy_scores(classifier, policy, frames, frames, 4), labels)

    loss().backward()
    slope = sum((parameter.grad * change).sum().item() for parameter, change in zip(parameters, direction, strict=True))
    with torch.no_grad():
        measured = (loss(1e-7) - loss(-2e-7)).item() / 2e-7
    assert slope == pytest.approx(measured, rel=1e-3) and abs(slope) > 1e-4


def test_everything_but_the_critic_learns(clips):
    classifier, policy = random_classifier(), continuous_policy()
    before = copy.deepcopy(classifier.state_dict()), copy.deepcopy(policy.state_dict())
    measured = list(end_to_end(classifier, clips, CONFIG, 0, policy=policy))
    for network, old in zip((classifier, policy), before, strict=True):
        changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, old[name])}
        assert changed == {name for name in old if not name.startswith("critic.")}
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    expected = {"loss", "accuracy", "learning_rate", *(f"loss_{name}" for name in LOSSES)}
    assert [set(epoch) for epoch in measured] == [expected] * 2
    for epoch in measured:
        assert epoch["loss"] == pytest.approx(sum(weight * epoch[f"loss_{name}"] for name, weight in LOSSES.items()), rel=1e-6)


def test_the_policy_alone_learns_from_a_frozen_classifier(clips):
    classifier, policy = random_classifier(), continuous_policy()
    before = copy.deepcopy(policy.state_dict())
    measured = list(end_to_end(classifier, clips, CONFIG, 0, policy=policy, freeze=True))
    assert classifier.fingerprint() == random_classifier().fingerprint()
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if not name.startswith("critic.")}
    assert [set(epoch) for epoch in measured] == [{"loss", "accuracy", "learning_rate", *(f"loss_{name}" for name in FROZEN_LOSSES)}] * 2


def test_with_a_frozen_classifier_every_decision_is_judged_by_itself(clips):
    classifier, policy = random_classifier(), continuous_policy()
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(3)]))
    locations = policy(classifier.glance(frames.flatten(0, 1))[0].unflatten(0, (3, 4)))
    scores = policy_scores(classifier, policy, frames, frames, 4).unflatten(0, (3, 4))
    for step in range(4):
        patches = crop_at_locations(frames[:, step], locations[:, step], classifier.architecture.patch_size)
        vectors = classifier.glance(frames[:, step])[1]
        alone, _ = classifier.classify(vectors[:, None], classifier.focus(patches)[:, None])
        assert torch.allclose(scores[:, step], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_equal_seeds_give_equal_weights(clips):
    def run(seed):
        torch.manual_seed(7)  # of the dropout
        classifier, policy = random_classifier(), continuous_policy()
        measured = list(end_to_end(classifier, clips, CONFIG, seed, policy=policy))
        return measured, classifier.fingerprint(), [tensor.sum().item() for tensor in policy.state_dict().values()]

    assert run(1) == run(1)
    assert run(1)[1] != run(2)[1]


def test_each_network_has_its_learning_rate_and_all_parameters_decay(clips, monkeypatch):
    made, rates = [], []

    def making(groups, config, make=epochs.OPTIMIZERS["sgd"]):
        made.append(make(groups, config))
        made[-1].register_step_pre_hook(lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups]))
        return made[-1]

    monkeypatch.setitem(epochs.OPTIMIZERS, "sgd", making)
    ratios = {"policy_ratio": 0.1, "glancer_ratio": 0.5, "focuser_ratio": 1.0, "head_ratio": 5.0}
    config = EndToEndConfig(epochs=4, batch_size=6, learning_rate=0.01, weight_decay=0.02, **ratios)
    classifier, policy = random_classifier(), continuous_policy()
    list(train_end_to_end(classifier, policy, clips, config, seed=0))
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(2)]  # two batches an epoch
    assert np.allclose(rates, np.outer(cosine, [0.01, 0.005, 0.05, 0.001]))
    assert {group["weight_decay"] for group in made[0].param_groups} == {0.02}
    trained = {parameter for group in made[0].param_groups for parameter in group["params"]}
    assert trained == {*classifier.parameters(), *policy.encoder.parameters(), *policy.actor.parameters()}


def test_the_gradient_of_all_networks_together_is_clipped(clips, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_

    def clipping(parameters, limit):
        parameters = list(parameters)
        total = clip(parameters, limit)
        norms.append((total.item(), torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]).item()))
        return total

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipping)
    list(end_to_end(random_classifier(), clips, CONFIG, 0, max_grad_norm=0.5))
    assert len(norms) == 6 and all(before > 0.5 and after == pytest.approx(0.5, rel=1e-3) for before, after in norms)
    norms.clear()
    list(end_to_end(random_classifier(), clips, CONFIG, 0))
    assert norms == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_microbatches_have_the_loss_of_the_step(clips, accumulate):
    """Without batch norm in training mode, a step in two microbatches equals a step in one."""
    config = SupervisedConfig(epochs=1, batch_size=12, learning_rate=0.0001, dropout=0.0, accumulate=accumulate)
    (measured,) = end_to_end(random_classifier(), clips, config, 0, freeze=True)
    classifier, policy = random_classifier(), continuous_policy()
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(12)]))
    scores = policy_scores(classifier, policy, frames, frames, 4)
    confidence = scores.softmax(-1)[range(len(scores)), clips.labels.repeat(4)]
    assert measured["loss"] == pytest.approx(1 - confidence.mean().item(), rel=1e-5)
