import dataclasses

import numpy as np
import pytest
import torch
from conftest import TASK, TINY, random_classifier

from adafocus_env import bank as bank_module
from adafocus_env.action import GridAction
from adafocus_env.bank import FeatureBank, check_bank
from adafocus_env.build import build_features, choose_device, open_clips
from adafocus_env.demo import demo
from adafocus_env.features import LiveFeatures
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")
GRID = GridAction(3, 96, 24)
CLIPS, STEPS = np.array([3, 0, 3, 11]), np.array([2, 0, 0, 3])
CELLS = np.array([[0, 8], [4, 4], [1, 7], [5, 6]])


def requests(features, clips=CLIPS, steps=STEPS, cells=CELLS):
    return features.maps(clips, steps), features.vectors(clips, steps), features.foci(clips[:, None], steps[:, None], cells)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_bank_holds_what_the_networks_say(classifier, clips):
    live, bank = requests(LiveFeatures(classifier, clips, GRID)), requests(FeatureBank(classifier, clips, GRID))
    for a, b, shape in zip(live, bank, [(4, 16, 6, 6), (4, 16), (4, 2, 32)], strict=True):
        assert a.shape == b.shape == shape and a.dtype == b.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-6, rtol=0)
    assert not equal([live[0][0]], [live[0][1]])


def test_index_arrays_broadcast(classifier, clips):
    bank, live = FeatureBank(classifier, clips, GRID), LiveFeatures(classifier, clips, GRID)
    every = np.arange(9)
    for features in (live, bank):
        assert features.vectors(np.array([[3], [0]]), np.arange(4)).shape == (2, 4, 16)
        assert features.maps(np.array([[3], [0]]), np.arange(4)).shape == (2, 4, 16, 6, 6)
        foci = features.foci(np.array([[[3]], [[0]]]), np.arange(4)[:, None], every)
        assert foci.shape == (2, 4, 9, 32)
        assert torch.allclose(foci[1, 2, 7], features.foci(np.array([0]), np.array([2]), np.array([7]))[0], atol=1e-6, rtol=0)


def test_values_do_not_depend_on_the_order_or_the_company_of_requests(classifier, clips):
    together = requests(FeatureBank(classifier, clips, GRID))
    backwards = FeatureBank(classifier, clips, GRID)
    for cell in reversed(range(9)):
        for clip in reversed(range(12)):
            backwards.foci(np.array([clip]), np.array([clip % 4]), np.array([cell]))
    assert equal(requests(backwards), together)
    alone = FeatureBank(classifier, clips, GRID)
    for row in reversed(range(4)):
        one = slice(row, row + 1)
        assert equal(requests(alone, CLIPS[one], STEPS[one], CELLS[one]), [values[one] for values in together])
    assert equal(requests(alone), together), "a hit differs from the miss that filled it"


def test_each_value_is_computed_once(classifier, clips, monkeypatch):
    bank = FeatureBank(classifier, clips, GRID)
    first = requests(bank)
    monkeypatch.setattr(LiveFeatures, "glance", None)
    monkeypatch.setattr(LiveFeatures, "foci", None)
    assert equal(requests(bank), first)


def in_place(classifier):
    with torch.no_grad():
        classifier.focuser.features[0][0].weight.mul_(1.5)
        classifier.glancer.features[0][0].weight.mul_(1.5)


def other_weights(classifier):
    classifier.load_state_dict(random_classifier(7).state_dict())


def statistics(classifier):
    classifier.focuser.features[0][1].running_mean += 1
    classifier.glancer.features[0][1].running_mean += 1


def new_parameters(classifier):
    for network in (classifier.focuser, classifier.glancer):
        network.features[0][0].weight = torch.nn.Parameter(network.features[0][0].weight * 1.5, requires_grad=False)


def new_data(classifier):
    for network in (classifier.focuser, classifier.glancer):
        network.features[0][0].weight.data = network.features[0][0].weight.data * 1.5


@pytest.mark.parametrize("make", [FeatureBank, LiveFeatures])
@pytest.mark.parametrize("change", [in_place, other_weights, statistics, new_parameters, new_data])
def test_a_changed_weight_is_never_answered_with_old_values(clips, change, make):
    classifier = random_classifier()
    bank = make(classifier, clips, GRID)
    before = requests(bank)
    change(classifier)
    after = requests(bank)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert equal(after, requests(make(classifier, clips, GRID)))


def test_weights_that_were_written_again_unchanged_keep_the_bank(clips, monkeypatch):
    classifier = random_classifier()
    bank = FeatureBank(classifier, clips, GRID)
    before = requests(bank)
    classifier.load_state_dict(random_classifier().state_dict())
    monkeypatch.setattr(LiveFeatures, "glance", None)
    assert equal(requests(bank), before)


def test_a_bank_is_shared_by_equal_classifiers_clips_and_grids(bank, clips):
    again = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    assert build_features(random_classifier(), again, grid=7, bank=bank, device="cpu") is bank


def test_banks_of_something_else_are_refused(classifier, clips, bank):
    others = open_clips(demo(TASK, val=0.0), "test", num_frames=4, size=96)
    refused = "the bank belongs to another {}; make a FeatureBank for this one, or pass bank=True"
    with pytest.raises(InputError, match=refused.format("classifier")):
        check_bank(bank, random_classifier(3), clips, bank.action)
    with pytest.raises(InputError, match=refused.format("clips")):
        check_bank(bank, classifier, others, bank.action)
    with pytest.raises(InputError, match=refused.format("patch geometry")):
        build_features(classifier, clips, grid=5, bank=bank, device="cpu")
    with pytest.raises(InputError, match=refused.format("classifier and another clips and another patch geometry")):
        build_features(random_classifier(3), others, grid=5, bank=bank, device="cpu")


def test_equal_weights_that_see_frames_otherwise_are_another_classifier(bank, clips):
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"glance_size": 32}):
        other = Classifier(dataclasses.replace(TINY, **change), bank.classifier.classes)
        other.load_state_dict(bank.classifier.state_dict())
        with pytest.raises(InputError, match="the bank belongs to another classifier; "):
            check_bank(bank, other.freeze(), clips, bank.action)


def test_a_bank_that_is_too_large_for_the_memory(classifier, clips, monkeypatch):
    need = 4 * 12 * 4 * (16 * 6 * 6 + 16 + 9 * 32)
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * need}
    monkeypatch.setattr(bank_module.os, "sysconf", memory.__getitem__)
    FeatureBank(classifier, clips, GRID)
    memory["SC_PHYS_PAGES"] -= 1
    message = r"bank: the features of 12 clips take 165\.0 KiB, more than half of the 330\.0 KiB of memory there is; keep them on disk \(bank=FOLDER"
    with pytest.raises(InputError, match=message):
        FeatureBank(classifier, clips, GRID)


# What goes together


def test_a_classifier_in_training_mode_is_refused(clips):
    with pytest.raises(InputError, match=r"the classifier is in training mode; call classifier\.freeze\(\) first"):
        build_features(random_classifier().train(), clips, grid=7, bank=True, device="cpu")


def test_clips_of_another_size_are_refused(classifier):
    small = open_clips(demo(TASK, val=0.0), "test", num_frames=4, size=64)
    with pytest.raises(InputError, match="the clips have size=64, the classifier expects size=96; pack them at that size"):
        build_features(classifier, small, grid=7, bank=True, device="cpu")


def test_clips_with_more_classes_are_refused(clips):
    three = Classifier(TINY, "abc").freeze()
    with pytest.raises(InputError, match=r"labels up to 9, the classifier knows 3 classes \(from 0\); use a classifier"):
        build_features(three, clips, grid=7, bank=True, device="cpu")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu") and choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=f"device='{name}' cannot be used here .*; choose auto, cpu, cuda or cuda:N"):
            choose_device(name)


def test_unknown_parts_of_a_data_set():
    with pytest.raises(InputError, match="clips='tets' is no part of a data set; choose 'train', 'val' or 'test', or pass a ClipStore"):
        open_clips(demo(TASK), "tets", num_frames=4, size=96)
