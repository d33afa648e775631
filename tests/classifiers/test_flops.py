"""The paper's cost figures, counted on the real modules. A GFLOP here is 10⁹ multiply-adds, as in the paper."""

import pytest
import torch
from conftest import slow_except

from agents.evaluation.inference import policy_cost
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from benchmarks.published_flops import FAMILIES, parts
from classifiers.classifier import Classifier
from classifiers.flops import classifier_cost, multiply_adds, on_cpu
from classifiers.model_zoo import ARCHITECTURES


@pytest.fixture(scope="module")
def classifier():
    with torch.device("meta"):
        empty = Classifier(ARCHITECTURES["paper"], [str(i) for i in range(200)])
    return empty.to_empty(device="cpu")  # costs do not depend on weights, and random ones take seconds


@pytest.mark.parametrize(
    ("family", "patch_size"),
    slow_except(
        [(name, min(family.published)) for name, family in FAMILIES.items()],
        [(name, patch_size) for name, family in FAMILIES.items() for patch_size in family.published],
    ),
)
def test_published_cost_of_a_video(family, patch_size):
    published = FAMILIES[family].published[patch_size]
    assert sum(parts(FAMILIES[family], patch_size).values()) / 1e9 == pytest.approx(published, rel=0.005)


def test_the_parts(classifier):
    """Part by part: MobileNetV2 300 M a frame, GRUs 3·h·(i + h), ResNet-50 in proportion to the patch's area."""
    cost = classifier_cost(classifier)
    assert cost.glance / 1e6 == pytest.approx(300, rel=0.01)
    assert cost.focus_frame / 1e9 == pytest.approx(4.087, rel=0.01)
    size = classifier.architecture.patch_size
    assert cost.focus == pytest.approx(cost.focus_frame * (size / 224) ** 2, rel=1e-3)
    assert cost.head == 3 * 1024 * (3328 + 1024) + 1024 * 200
    policy = policy_cost(PolicyNetwork(PolicyArchitecture((1280, 7, 7)), 7))
    assert policy == 1280 * 32 * 49 + 1568 * 1024 + 3 * 1024 * (1024 + 1024) + 1024 * 49


# Something-Something: 8 glances, one decision, 12 patches


@pytest.fixture(scope="module")
def shifted():
    with torch.device("meta"):
        empty = Classifier(ARCHITECTURES["paper_tsm"], [str(i) for i in range(174)])
    return empty.to_empty(device="cpu")


@pytest.fixture(scope="module")
def continuous_policy():
    with torch.device("meta"):
        policy = PolicyNetwork(PolicyArchitecture((8 * 1280, 7, 7), channels=64, batch_norm=True), None)
    model = on_cpu(policy.to_empty(device="cpu"))
    return multiply_adds(lambda: model(torch.zeros(1, 1, 8 * 1280, 7, 7)))


def test_the_shift_is_free_and_the_mean_of_scores_counts_both_linear_layers(classifier, shifted, continuous_policy):
    with_shift, without = classifier_cost(shifted), classifier_cost(classifier)
    assert (with_shift.glance, with_shift.focus_frame) == (without.glance, without.focus_frame)
    assert with_shift.head == (1280 + 2048) * 174
    assert continuous_policy == 8 * 1280 * 64 * 49 + 64 * 49 * 1024 + 3 * 1024 * (1024 + 1024) + 1024 * 2
    images = torch.zeros(4, 3, 64, 64)
    assert multiply_adds(lambda: shifted.focuser(images, 4)) == 4 * multiply_adds(lambda: shifted.focuser(images[:1]))


@pytest.mark.parametrize(("inputs", "hidden", "steps"), [(3328, 1024, 1), (48, 20, 1), (48, 20, 7)])
def test_a_gru_costs_three_gates_a_step(inputs, hidden, steps):
    gru = torch.nn.GRU(inputs, hidden, batch_first=True)
    assert multiply_adds(lambda: gru(torch.zeros(1, steps, inputs))) == steps * 3 * hidden * (inputs + hidden)
