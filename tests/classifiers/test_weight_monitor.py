import pickle

import pytest
import torch
from conftest import random_classifier
from torch import nn

from classifiers.classifier import WeightMonitor, check_frozen
from classifiers.errors import InputError


def test_a_write_into_any_parameter_or_buffer_is_noticed_once():
    classifier = random_classifier()
    watch = WeightMonitor(classifier)
    assert not watch.changed()
    for name, tensor in [*classifier.named_parameters(), *classifier.named_buffers()]:
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        assert watch.changed(), name
        assert not watch.changed(), name


def test_replaced_parameters_buffers_and_modules_are_noticed():
    classifier = random_classifier()
    watch = WeightMonitor(classifier)
    layer = classifier.focuser.features[0]
    for _ in range(3):  # what is replaced twice could lie where it lay before
        layer[0].weight = nn.Parameter(layer[0].weight.detach().clone(), requires_grad=False)
        assert watch.changed()
        layer[1].running_mean = layer[1].running_mean.clone()
        assert watch.changed()
        layer[2] = nn.ReLU().eval()
        assert watch.changed()
        layer[0].weight.data = layer[0].weight.data.clone()
        assert watch.changed()
        layer.append(nn.Identity())
        assert watch.changed()
        assert not watch.changed()


def test_what_is_added_later_is_watched_too():
    classifier = random_classifier()
    watch = WeightMonitor(classifier)
    classifier.focuser.features.append(nn.Linear(2, 2))
    assert watch.changed()
    with torch.no_grad():
        classifier.focuser.features[-1].bias += 1
    assert watch.changed()


def test_reading_and_running_touch_nothing():
    classifier = random_classifier()
    watch = WeightMonitor(classifier)
    classifier.fingerprint()
    with torch.no_grad():
        classifier.glance(torch.zeros(1, 3, 24, 24))
    classifier.freeze()
    pickle.dumps(classifier)
    assert not watch.changed()


def test_frozen_is_eval_mode_of_every_part():
    classifier = random_classifier()
    check_frozen(classifier)
    classifier.head.dropout.train()
    with pytest.raises(InputError, match=r"the classifier is in training mode; call classifier\.freeze\(\) first, so that its features"):
        check_frozen(classifier)
