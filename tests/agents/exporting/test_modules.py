"""The chained exported modules return the results of inference, in PyTorch only."""

from dataclasses import replace

import pytest
import torch
from random_networks import PUBLISHED, SPATIAL, policy_of, tiny

from agents.evaluation.inference import infer
from agents.exporting.comparison import random_clips, torch_call
from agents.exporting.modules import Counts, signatures
from classifiers.heads import HEADS
from classifiers.optimize import PLAIN, with_execution


def chain(classifier, policy, skipped):
    """Run the modules one after the other; return the outputs of the policy and the class probabilities."""
    modules = signatures(classifier, policy, skipped)
    call = {name: torch_call(each) for name, each in modules.items()}
    counts = Counts.of(classifier, policy)
    with torch.no_grad():
        maps, glances = call["glancer"](frames=random_clips(classifier, counts.glances))
        *chosen, corners, mask = call["policy"](maps=maps)
        [vectors] = call["focuser"](frames=random_clips(classifier, counts.frames), corners=corners, patch_mask=mask)
        assert not vectors[~mask].any()
        vectors = vectors + torch.where(mask, 0.0, torch.nan)[..., None, None]  # not read where it is skipped
        [probabilities] = call["head"](glance_vectors=glances, focus_vectors=vectors, patch_mask=mask)
    return chosen, corners, mask, probabilities


def normalised_clips(classifier, num_frames):
    return classifier.normalise(random_clips(classifier, num_frames).movedim(-1, -3))


def assert_as_inference(classifier, policy, skipped="zeros"):
    counts = Counts.of(classifier, policy)
    frames, glances = (normalised_clips(classifier, count) for count in (counts.frames, counts.glances))
    expected = infer(with_execution(classifier, PLAIN), policy, frames, glances, skipped=skipped)
    _, corners, mask, probabilities = chain(classifier, policy, skipped)
    repeats = counts.frames_per_decision
    assert torch.equal(mask.repeat_interleave(repeats, 1), expected.patch_mask)
    assert torch.equal((corners * mask[..., None]).repeat_interleave(repeats, 1), expected.boxes[..., :2])
    assert torch.allclose(probabilities, expected.logits.softmax(-1), atol=1e-5)
    return mask


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head):
    assert_as_inference(tiny(head), policy_of())


@pytest.mark.parametrize("skipped", ["zeros", "last", "none"])
@pytest.mark.parametrize("architecture", [SPATIAL, PUBLISHED], ids=["spatial", "published"])
@pytest.mark.parametrize("grid", [3, None])
def test_policies_that_skip(architecture, grid, skipped):
    classifier = tiny()
    with torch.no_grad():
        skip = policy_of(architecture, grid, skips=True).choose(chain_maps(classifier))[1][:, :, 0]
    mask = assert_as_inference(classifier, policy_of(architecture, grid, skips=True, threshold=float(skip.median())), skipped)
    assert 0 < mask.float().mean() < 1


def chain_maps(classifier):
    maps, _ = classifier.glance(normalised_clips(classifier, 4).flatten(0, 1))
    return maps.unflatten(0, (-1, 4))


@pytest.mark.parametrize("skipped", ["zeros", "last", "none"])
@pytest.mark.parametrize("head", HEADS)
def test_clips_without_any_patch(head, skipped):
    mask = assert_as_inference(tiny(head), policy_of(skips=True, threshold=-1.0), skipped)
    assert not mask.any()


@pytest.mark.parametrize("skips", [False, True])
def test_decisions_of_several_frames_with_a_temporal_shift(skips):
    architecture = replace(SPATIAL, map_shape=(64, 6, 6))  # four glances of a decision, stacked
    assert_as_inference(tiny("mean", shift=0.125, glance_frames=8), policy_of(architecture, skips=skips), "last")


def test_continuous_locations():
    assert_as_inference(tiny(), policy_of(PUBLISHED, None))


@pytest.mark.parametrize("head", ["gru", "mean"])
def test_interpolated_patches(head):
    """With ``mean`` two frames of a decision have the same patch."""
    several = {"shift": 0.125, "glance_frames": 8} if head == "mean" else {}
    classifier = tiny(head, **several)
    policy = policy_of(replace(SPATIAL, map_shape=(64, 6, 6)) if several else SPATIAL, None, interpolated=True)
    _, corners, _, probabilities = chain(classifier, policy, "zeros")
    assert corners.is_floating_point() and (corners != corners.round()).any()
    counts = Counts.of(classifier, policy)
    frames, glances = (normalised_clips(classifier, count) for count in (counts.frames, counts.glances))
    expected = infer(with_execution(classifier, PLAIN), policy, frames, glances)
    assert torch.allclose(probabilities, expected.logits.softmax(-1), atol=1e-5)
