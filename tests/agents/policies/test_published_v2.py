"""AdaFocusV2's policy networks, and policies whose patches are interpolated: cards, inference, environments, evaluation, finetuning."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_classifier
from torch import nn

from adafocus_env.action import ContinuousAction, InterpolatedAction
from adafocus_env.build import check_fit, open_clips
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import LiveFeatures
from agents.config.settings import DataConfig, EnvConfig, PPOConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.inference import infer
from agents.pipeline.builders import in_order_of
from agents.policies.baselines import check_policy
from agents.policies.networks import CARD, PolicyNetwork, load_policy, save_policy
from agents.policies.published_v2 import PublishedV2Architecture
from agents.policies.sb3 import load_network, to_network
from agents.rl.environment import make_environment
from agents.rl.settings import new_ppo
from classifiers.classifier import ClipFormat
from classifiers.crop import crop_at_locations
from classifiers.errors import InputError

RECURRENT = PublishedV2Architecture((16, 6, 6), channels=4, features=10, hidden=8)
ALONE = replace(RECURRENT, memory=False)
CHOSEN = np.array([0, 5, 7, 11])


def new_policy(architecture=RECURRENT, **changes):
    """Return a policy with statistics and weights that make locations differ between clips."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PolicyNetwork(architecture, None, interpolated=True, **changes)
        for module in policy.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
        policy.actor.weight.data.mul_(10)
    return policy.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def policy():
    return new_policy()


@pytest.fixture(scope="module")
def maps():
    return torch.rand(3, 4, 16, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def features(classifier, clips):
    return LiveFeatures(classifier, clips, InterpolatedAction(96, 24))


# Networks


def test_layers_are_the_published_ones():
    kinds = [type(layer) for layer in new_policy().encoder.frame]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Tanh, nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.Tanh]
    alone = new_policy(ALONE).encoder
    assert [type(layer) for layer in alone.frame] == [*kinds, nn.Linear, nn.BatchNorm1d, nn.Tanh] and alone.gru is None
    assert new_policy().encoder.frame[0].bias is None


@pytest.mark.numerical
def test_the_gru_runs_over_decisions_in_their_order(policy, maps):
    frames = policy.encoder.frame(maps.flatten(0, 1)).unflatten(0, (3, 4))
    expected = policy.actor(policy.encoder.gru(frames)[0]).sigmoid()
    assert torch.allclose(policy.act(maps), expected, atol=1e-6)
    assert torch.allclose(policy.act(maps[:, :2]), expected[:, :2], atol=1e-6)


@pytest.mark.numerical
def test_without_memory_every_decision_is_alone(maps):
    policy = new_policy(ALONE)
    together = policy.act(maps)
    assert together.shape == (3, 4, 2) and together.std(1).min() > 1e-3
    assert torch.allclose(together[:, 2:3], policy.act(maps[:, 2:3]), atol=1e-6)


@pytest.mark.numerical
@pytest.mark.parametrize("architecture", [RECURRENT, ALONE])
def test_decision_by_decision_equals_whole_clips(maps, architecture):
    encoder, state = new_policy(architecture).encoder, None
    whole = encoder(maps)
    for decision in range(4):
        hidden, state = encoder.step(maps[:, decision], state)
        assert torch.allclose(hidden, whole[:, decision], atol=1e-6)


# Cards


@pytest.mark.parametrize("architecture", [RECURRENT, ALONE])
def test_the_card_says_how_patches_are_cropped(tmp_path, maps, architecture):
    policy = new_policy(architecture)
    save_policy(policy, tmp_path, {})
    card = json.loads((tmp_path / CARD).read_text())["network"]
    assert card["kind"] == "published_v2" and card["interpolated"] is True and card["memory"] is architecture.memory
    loaded = load_policy(tmp_path)
    assert (loaded.architecture, loaded.interpolated) == (architecture, True)
    assert torch.equal(loaded.act(maps), policy.act(maps))


def test_cards_of_other_policies_do_not_mention_it():
    assert "interpolated" not in PolicyNetwork(RECURRENT, None).card()


@pytest.mark.parametrize("changes", [{"grid": 7}, {"grid": None, "skips": True}])
def test_cells_and_skipping_exclude_interpolated_patches(changes):
    with pytest.raises(InputError, match=r"interpolated must be True only for a continuous policy that does not skip, got True with grid="):
        PolicyNetwork(RECURRENT, **changes, interpolated=True)


# Crops


@pytest.mark.numerical
def test_inference_crops_as_the_policy_was_trained(classifier, clips, policy):
    frames = classifier.normalise(torch.stack([clips.frames(int(clip)) for clip in CHOSEN]))
    found = infer(classifier, policy, frames)
    maps, vectors = (part.unflatten(0, (4, 4)) for part in classifier.glance(frames.flatten(0, 1)))
    locations = policy.act(maps)
    assert torch.allclose(found.actions, locations, atol=1e-4)
    focus_vectors = classifier.focus(crop_at_locations(frames, locations, 24).flatten(0, 1)).unflatten(0, (4, 4))
    assert torch.allclose(found.logits, classifier.classify(vectors, focus_vectors)[0], atol=1e-3)
    assert (found.boxes[..., :2] - locations * 72).abs().max() <= 0.5 + 1e-3 and found.boxes.dtype == torch.int64
    whole = PolicyNetwork(RECURRENT, None).eval()
    whole.load_state_dict(policy.state_dict())
    assert (infer(classifier, whole, frames).logits - found.logits).abs().max() > 1e-3


@pytest.mark.numerical
def test_the_environment_and_the_evaluation_agree_with_inference(classifier, clips, policy, features):
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(len(clips))]))
    found = infer(classifier, policy, frames)
    assert np.allclose(evaluate_policy(features, policy).scores, found.logits, atol=1e-4)
    dynamics = Dynamics(features, 4, reward="confidence")
    dynamics.restart(CHOSEN, np.zeros((4, 4, 0, 2), np.float32))
    for step in range(4):
        outcome = dynamics.step(found.actions[CHOSEN, step].numpy())
        assert outcome.boxes.tolist() == found.boxes[CHOSEN, step].tolist()
        scores = found.logits[CHOSEN, step].softmax(-1)[torch.arange(4), torch.from_numpy(clips.labels[CHOSEN])]
        assert np.allclose(outcome.confidence, scores, atol=1e-4)


def test_a_policy_and_an_environment_that_crop_differently_are_refused(classifier, clips, policy, features):
    check_policy(policy, features)
    whole = LiveFeatures(classifier, clips, ContinuousAction(96, 24))
    for trained, offered in ((policy, whole), (PolicyNetwork(RECURRENT, None), features)):
        with pytest.raises(InputError, match=r"the policy chooses .*, the environment offers .*; set them alike"):
            check_policy(trained, offered)


# Finetuning


@pytest.mark.numerical
@pytest.mark.parametrize("architecture", [RECURRENT, ALONE])
def test_ppo_continues_with_it_and_its_card_stays(features, maps, architecture):
    env = make_environment(features, EnvConfig(num_envs=4, action="interpolated", baseline=1, bank=False))
    model = new_ppo(env, features, PPOConfig(n_steps=4, batch_size=8), architecture, 5, 0.25)
    model.policy.features_extractor.bind(features)
    start = new_policy(architecture)
    load_network(model.policy, start)
    assert torch.allclose(to_network(model.policy, interpolated=True).act(maps), start.act(maps), atol=1e-6)
    model.learn(16)
    after = to_network(model.policy, interpolated=True)
    assert after.interpolated and not torch.equal(after.act(maps), start.act(maps))


# Order of frames


def test_clips_come_in_the_order_of_the_classifier(clips):
    from conftest import TASK

    from adafocus_env.demo.videos import demo

    data = demo(TASK, val=0.0)
    ordered = open_clips(data, "train", num_frames=4, size=96, order="coarse_to_fine")
    assert torch.equal(ordered.frames(3), clips.frames(3)[[1, 0, 3, 2]])
    assert ordered.indices(3).tolist() == clips.indices(3)[[1, 0, 3, 2]].tolist()
    assert np.array_equal(ordered.truth(3), clips.truth(3)[[1, 0, 3, 2]])
    assert ordered.fingerprint != clips.fingerprint
    classifier = random_classifier()
    check_fit(classifier, clips)
    with pytest.raises(InputError, match=r"have their frames in the order coarse_to_fine, .* trained with time; set data\.order=time"):
        check_fit(classifier, ordered)
    classifier.clip_format = ClipFormat(4, order="coarse_to_fine")
    check_fit(classifier, ordered)


def test_the_order_is_the_classifiers_unless_it_is_given():
    trained = ClipFormat(4, order="coarse_to_fine")
    assert in_order_of(DataConfig(), trained).order == "coarse_to_fine"
    assert in_order_of(DataConfig(order="time"), trained).order == "time"
    assert in_order_of(DataConfig(), ClipFormat()).order == "time"


def test_an_order_that_is_not_known_is_refused():
    from adafocus_env.clips.clip_spec import ClipSpec

    with pytest.raises(InputError, match="order='random' is not known; choose one of"):
        ClipSpec(4, 96, 96, train=False, order="random")
