"""The paper's cost figures, counted on the real modules. A GFLOP here is 10⁹ multiply-adds, as in the paper."""

import dataclasses

import pytest
import torch

from agents.inference import policy_cost
from agents.policies import GlancePolicy, PolicyNetwork
from classifiers.classifier import Classifier
from classifiers.cost import classifier_cost
from classifiers.registry import ARCHITECTURES

FRAMES = 16


@pytest.fixture(scope="module")
def classifier():
    with torch.device("meta"):
        empty = Classifier(ARCHITECTURES["paper"], [str(i) for i in range(200)])
    return empty.to_empty(device="cpu")  # costs do not depend on weights, and random ones take seconds


@pytest.mark.parametrize(("patch_size", "published"), [(96, 17.2), (128, 26.6), (160, 38.6), (192, 53.3)])
def test_published_cost_of_a_video(classifier, patch_size, published):
    classifier.architecture = dataclasses.replace(classifier.architecture, patch_size=patch_size)
    cost = classifier_cost(classifier)
    policy = policy_cost(GlancePolicy(PolicyNetwork((1280, 7, 7)), 7))
    assert FRAMES * (cost.glance + policy + cost.focus + cost.head) / 1e9 == pytest.approx(published, rel=0.02)


def test_the_parts(classifier):
    """Part by part: MobileNetV2 300 M a frame, GRUs 3·h·(i + h), ResNet-50 in proportion to the patch's area."""
    cost = classifier_cost(classifier)
    assert cost.glance / 1e6 == pytest.approx(300, rel=0.01)
    assert cost.focus_frame / 1e9 == pytest.approx(4.087, rel=0.01)
    size = classifier.architecture.patch_size
    assert cost.focus == pytest.approx(cost.focus_frame * (size / 224) ** 2, rel=1e-3)
    assert cost.head == 3 * 1024 * (3328 + 1024) + 1024 * 200
    policy = policy_cost(GlancePolicy(PolicyNetwork((1280, 7, 7)), 7))
    assert policy == 1280 * 32 * 49 + 1568 * 1024 + 3 * 1024 * (1024 + 1024) + 1024 * 49
