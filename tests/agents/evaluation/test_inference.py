import inspect
import threading

import numpy as np
import pytest
import torch
from conftest import TINY_COST

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import LiveFeatures
from agents.evaluation.inference import infer, infer_batches, infer_clips, policy_flops
from agents.policies.baselines import LearnedPolicy
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers import flops
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical

NETWORK = PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8)
POLICY_COST = 6 * 6 * 16 * 4 + 6 * 6 * 4 * 10 + 3 * 8 * (10 + 8) + 8 * 49
CHOSEN = np.array([0, 5, 7, 11])


@pytest.fixture(scope="module")
def policy():
    """Return a policy with random weights that are large enough for cells to differ between clips and steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PolicyNetwork(NETWORK, 7).eval().requires_grad_(False)
    for parameter in policy.encoder.frame.parameters():
        parameter.mul_(10)
    policy.actor.weight.mul_(10)
    return policy


@pytest.fixture(scope="module")
def frames(classifier, clips):
    return classifier.normalise(torch.stack([clips.frames(int(clip)) for clip in CHOSEN]))


@pytest.mark.parametrize("kind", ["bank", "live"])
def test_one_pass_equals_the_environment_step_by_step(classifier, clips, bank, policy, frames, kind):
    features = bank if kind == "bank" else LiveFeatures(classifier, clips, bank.action)
    found = infer(classifier, policy, frames)
    assert found.actions.shape == (4, 4) and len(found.actions.unique()) > 4
    dynamics, player = Dynamics(features, 4, reward="confidence"), LearnedPolicy(policy, features)
    dynamics.restart(CHOSEN, np.zeros((4, 4, 0), np.int64))
    state = classifier.initial_state(4)
    for step in range(4):
        references = np.stack([CHOSEN, np.full(4, step)], 1)
        actions, _ = player.predict(references)
        assert actions.tolist() == found.actions[:, step].tolist()
        outcome = dynamics.step(actions)
        assert outcome.boxes.tolist() == found.boxes[:, step].tolist()
        glances, focus_vectors = features.glance_vectors(CHOSEN, np.array(step)), features.focus_vectors(CHOSEN, np.array(step), actions)
        logits, state = classifier.classify(glances[:, None], focus_vectors[:, None], state)
        assert torch.allclose(logits[:, 0], found.logits[:, step], atol=1e-5)
        assert outcome.prediction.tolist() == found.logits[:, step].argmax(-1).tolist()
        scores = found.logits[:, step].softmax(-1)[torch.arange(4), torch.from_numpy(clips.labels[CHOSEN])]
        assert np.allclose(outcome.confidence, scores, atol=1e-5)
    assert found.patch_mask.dtype == torch.bool and found.patch_mask.shape == (4, 4) and found.patch_mask.all()


def test_a_video_does_not_depend_on_those_beside_it(classifier, policy, frames):
    together, alone = infer(classifier, policy, frames), infer(classifier, policy, frames[2:3])
    assert torch.equal(together.actions[2:3], alone.actions)
    assert torch.allclose(together.logits[2:3], alone.logits, atol=1e-5)


def test_multiply_adds_are_the_sum_of_the_parts(classifier, policy, frames):
    assert policy_flops(policy) == POLICY_COST
    assert infer(classifier, policy, frames).macs.tolist() == [4 * (TINY_COST + POLICY_COST)] * 4
    assert infer(classifier, policy, frames[:1, :3]).macs.tolist() == [3 * (TINY_COST + POLICY_COST)]


def test_no_label_is_an_input():
    assert list(inspect.signature(infer).parameters)[:3] == ["classifier", "policy", "frames"]
    assert not any("label" in name for name in inspect.signature(infer).parameters)


@pytest.mark.parametrize("shape", [(4, 3, 96, 96), (1, 4, 3, 96, 95), (1, 4, 3, 64, 64), (1, 4, 1, 96, 96)])
def test_frames_of_another_shape_are_refused(classifier, policy, shape):
    with pytest.raises(InputError, match=r"frames have shape \(.*\); this classifier expects \(N, T, 3, 96, 96\)"):
        infer(classifier, policy, torch.zeros(shape))


def test_frames_that_are_still_bytes_are_refused(classifier, policy):
    with pytest.raises(InputError, match=r"frames have dtype torch\.uint8; give them normalised, as classifier\.normalise\(frames\) does"):
        infer(classifier, policy, torch.zeros(1, 4, 3, 96, 96, dtype=torch.uint8))


def test_a_policy_for_another_glancer_is_refused(classifier, bank, frames):
    other = PolicyNetwork(PolicyArchitecture((32, 8, 8), channels=4, features=10, hidden=8), 7)
    message = r"the policy reads glance maps of shape \(32, 8, 8\), the classifier's glancer makes \(16, 6, 6\); use the policy"
    with pytest.raises(InputError, match=message):
        infer(classifier, other, frames)
    with pytest.raises(InputError, match=message):
        LearnedPolicy(other, bank)


def test_a_store_is_classified_batch_by_batch(classifier, clips, policy):
    whole = infer(classifier, policy, classifier.normalise(torch.stack([clips.frames(clip) for clip in range(len(clips))])))
    parts = list(infer_clips(classifier, policy, clips, batch_size=5))
    assert [len(part.actions) for part in parts] == [5, 5, 2]
    assert torch.equal(torch.cat([part.actions for part in parts]), whole.actions)
    assert torch.allclose(torch.cat([part.logits for part in parts]), whole.logits, atol=1e-5)
    with pytest.raises(InputError, match="batch_size=0 is too small; choose 1 or more clips in a batch"):
        infer_clips(classifier, policy, clips, batch_size=0)


def test_the_next_batch_is_read_while_one_is_looked_at(classifier, clips, policy):
    frames, asked = clips.frames(0)[None], threading.Semaphore(0)

    def batches():
        for number in range(3):
            asked.release()
            if number == 2:
                raise InputError("video 2 cannot be read")
            yield frames, frames

    found = infer_batches(classifier, policy, batches())
    next(found)
    assert asked.acquire(timeout=60) and asked.acquire(timeout=60)  # the second was asked for before anybody wanted it
    next(found)
    with pytest.raises(InputError, match="video 2 cannot be read"):
        next(found)


def test_a_network_is_counted_once(classifier, policy, frames, monkeypatch):
    infer(classifier, policy, frames)
    monkeypatch.setattr(flops, "multiply_adds", lambda call: pytest.fail("counted again"))
    assert infer(classifier, policy, frames).macs.tolist() == [4 * (TINY_COST + POLICY_COST)] * 4
