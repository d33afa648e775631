"""The costs that the paper states, compared with counts on the real modules. A GFLOP is 10⁹ multiply-adds, as in the paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import slow_except
from torch.utils.flop_counter import FlopCounterMode

from agents.evaluation.inference import policy_flops
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from benchmarks.published_flops import FAMILIES, flops_of
from classifiers.classifier import Classifier
from classifiers.flops import VideoFlops, classifier_flops, multiply_adds, network_flops, video_flops
from classifiers.heads import HEADS
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
    assert flops_of(FAMILIES[family], patch_size).total() / 1e9 == pytest.approx(published, rel=0.005)


def test_the_parts(classifier):
    """MobileNetV2 has 300 M per frame, a GRU 3·h·(i + h), and ResNet-50 a cost proportional to the area of the patch."""
    cost = classifier_flops(classifier)
    assert cost.glance / 1e6 == pytest.approx(300, rel=0.01)
    assert cost.focus_frame / 1e9 == pytest.approx(4.087, rel=0.01)
    size = classifier.architecture.patch_size
    assert cost.focus == pytest.approx(cost.focus_frame * (size / 224) ** 2, rel=1e-3)
    assert cost.head == 3 * 1024 * (3328 + 1024) + 1024 * 200
    policy = policy_flops(PolicyNetwork(PolicyArchitecture((1280, 7, 7)), 7))
    assert policy == 1280 * 32 * 49 + 1568 * 1024 + 3 * 1024 * (1024 + 1024) + 1024 * 49


@pytest.mark.parametrize("head", sorted(HEADS))
def test_multiply_adds_are_half_of_the_flops_that_pytorch_counts(head):
    steps = 3 if head == "max_per_step" else 0
    network = Classifier(replace(ARCHITECTURES["small"], head=head, head_steps=steps), ["a", "b", "c"]).freeze()
    calls = {
        "glancer": lambda: network.glancer(torch.zeros(2, 3, 32, 32)),
        "head": lambda: network.classify(torch.zeros(2, 3, 32), torch.zeros(2, 3, 96)),
    }
    for call in calls.values():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        assert 2 * multiply_adds(call) == counter.get_total_flops() > 0


def test_multiply_adds_are_counted_in_inference_mode_too():
    linear, recurrent = torch.nn.Linear(3, 4), torch.nn.GRU(3, 4)
    with torch.inference_mode():
        assert multiply_adds(lambda: linear(torch.zeros(2, 3))) == 2 * 3 * 4
        assert multiply_adds(lambda: recurrent(torch.zeros(5, 1, 3))) == 5 * 3 * 4 * (3 + 4)


def test_a_video_is_the_sum_of_its_steps_and_patches():
    flops = VideoFlops(4, glancer=40, policy=8, focuser=400, head=80)
    assert (flops.skipped_step, flops.patch, flops.no_patch) == (32, 100, 0) and flops.total() == 528
    assert flops.total(0) == 128 and flops.total(1, 2) == 164 and flops.at(0.25) == 228
    lazy = replace(flops, head_skips=True)
    assert (lazy.skipped_step, lazy.patch, lazy.no_patch) == (12, 120, 80) and lazy.total() == 528
    for kind in (np.array, torch.tensor):
        assert lazy.total(kind([0, 1, 4])).tolist() == [48 + 80, 48 + 120, 528]
        assert lazy.total(kind([0, 1]), kind([3, 4])).tolist() == [36, 168]


def test_steps_that_do_not_divide_the_counts_are_counted_exactly(shifted):
    flops, parts = video_flops(shifted, 12, 8, 4, policy_step=3), classifier_flops(shifted)
    assert flops.total() == 8 * parts.glance + 12 * (parts.focus + parts.head) + 12
    assert video_flops(shifted, 3, 3, skipped="none").total(0) == 3 * (parts.glance + parts.head)


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
    return network_flops(policy.to_empty(device="cpu"), 1, 1, 8 * 1280, 7, 7)


def test_the_shift_is_free_and_the_mean_of_scores_counts_both_linear_layers(classifier, shifted, continuous_policy):
    with_shift, without = classifier_flops(shifted), classifier_flops(classifier)
    assert (with_shift.glance, with_shift.focus_frame) == (without.glance, without.focus_frame)
    assert with_shift.head == (1280 + 2048) * 174
    assert continuous_policy == 8 * 1280 * 64 * 49 + 64 * 49 * 1024 + 3 * 1024 * (1024 + 1024) + 1024 * 2
    images = torch.zeros(4, 3, 64, 64)
    assert multiply_adds(lambda: shifted.focuser(images, 4)) == 4 * multiply_adds(lambda: shifted.focuser(images[:1]))


@pytest.mark.parametrize(("inputs", "hidden", "steps"), [(3328, 1024, 1), (48, 20, 1), (48, 20, 7)])
def test_a_gru_costs_three_gates_a_step(inputs, hidden, steps):
    gru = torch.nn.GRU(inputs, hidden, batch_first=True)
    assert multiply_adds(lambda: gru(torch.zeros(1, steps, inputs))) == steps * 3 * hidden * (inputs + hidden)


@pytest.mark.parametrize(
    ("family", "patch_size", "published"),
    slow_except(
        [("ActivityNet, V2", 96, 17.615)],
        [
            ("ActivityNet, V2", 96, 17.615), ("ActivityNet, V2", 128, 26.957), ("ActivityNet, V2", 160, 38.969),
            ("ActivityNet, V2", 192, 53.649), ("ActivityNet, V2, res50", 96, 24.758), ("ActivityNet, V2, res50", 128, 34.100),
            ("ActivityNet, V2, res50", 160, 46.112),
        ],
    ),
)  # fmt: skip
def test_the_authors_of_v2_count_the_auxiliary_heads_too(family, patch_size, published):
    """Their figures also include a linear layer on every glance vector and focus vector, which inference does not use."""
    glances = 2048 if family.endswith("res50") else 1280
    auxiliary = 16 * 200 * (glances + 2048)
    assert (flops_of(FAMILIES[family], patch_size).total() + auxiliary) / 1e9 == pytest.approx(published, abs=2e-3)
    assert auxiliary / 1e9 < 0.001 * published


def test_the_steps_of_v2():
    """The published costs of one frame, in units of 1e9, are those of glancer, focuser, policy and head."""
    flops = flops_of(FAMILIES["ActivityNet, V2"], 96)
    parts = [value / 16e9 for value in (flops.glancer, flops.focuser, flops.policy, flops.head)]
    assert parts == pytest.approx([0.299511, 0.750725, 0.035607, 0.014451], abs=5e-5)
