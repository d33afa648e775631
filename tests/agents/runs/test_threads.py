import pytest
import torch
from conftest import TINY, random_classifier

from adafocus_env.demo.videos import CLASSES
from agents.runs import threads
from agents.runs.threads import limit_threads
from classifiers.model_zoo import ARCHITECTURES

CPU = torch.device("cpu")


@pytest.fixture
def count(monkeypatch):
    """Return the requested number of threads in a process without OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


@pytest.mark.parametrize("small", [ARCHITECTURES["small"], TINY])
def test_small_networks_get_one_thread_before_and_after_they_are_built(count, small):
    limit_threads(small, CLASSES, CPU)
    limit_threads(random_classifier(), CLASSES, CPU)
    assert count == [1, 1]


def test_large_networks_and_other_devices_keep_pytorchs_choice(count, monkeypatch):
    limit_threads(random_classifier(), CLASSES, torch.device("cuda"))
    monkeypatch.setattr(threads, "SMALL", 1000)
    limit_threads(TINY, CLASSES, CPU)
    assert count == []


def test_what_the_user_says_counts(count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(TINY, CLASSES, CPU)
    assert count == []
