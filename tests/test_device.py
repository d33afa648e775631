"""What a GPU would find, on a machine without one: PyTorch's fake tensors know their device and have no values.

So whatever copies numbers to the host, branches on them, or mixes devices raises here as it would wait or fail there.
"""

import numpy as np
import pytest
import torch
from conftest import TINY
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from adafocus_env import bank as bank_module
from adafocus_env import dynamics as dynamics_module
from adafocus_env.action import GridAction
from adafocus_env.bank import FeatureBank
from adafocus_env.demo import CLASSES
from adafocus_env.frozen import Watch
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.reward import REWARDS
from adafocus_env.vector import AdaFocusVectorEnv
from classifiers.classifier import Classifier
from classifiers.cost import classifier_cost

N, T = 3, 4


@pytest.fixture(scope="module")
def cost(classifier):
    return classifier_cost(classifier)


@pytest.fixture
def pretended(monkeypatch, cost):
    """A GPU that is not there: within it tensors are on ``cuda:0`` and hold nothing."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Watch, "touched", lambda watch: False)
    monkeypatch.setattr(Classifier, "fingerprint", lambda classifier, parts=(): "0" * 64)
    monkeypatch.setattr(bank_module, "_check_memory", lambda size, count, device: None)
    monkeypatch.setattr(dynamics_module, "classifier_cost", lambda classifier: cost)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")


@pytest.fixture
def full(pretended, clips):
    """A bank on that GPU that has everything."""
    with pretended:
        classifier = Classifier(TINY, CLASSES).freeze()
    bank = FeatureBank(classifier, clips, GridAction(7, 96, 24))
    bank._glanced[:] = bank._focused[:] = True
    return bank


def make(bank, **arguments):
    given = {"observation": "vector", "autoreset_mode": "SAME_STEP", "output": "torch", "bank": bank, **arguments}
    return AdaFocusVectorEnv(N, bank.classifier, bank.clips, **given)


def cells():
    return torch.zeros(N, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
@pytest.mark.parametrize("observation", ["map", "vector", "dict", "reference", "reference_looks"])
def test_no_step_waits_for_a_gpu(full, observation, mode):
    env = make(full, observation=observation, autoreset_mode=mode)
    env.reset(seed=0)
    for _ in range(2 * T):
        seen, *numbers, infos = env.step(cells())
        on_device = [*(seen.values() if isinstance(seen, dict) else [seen]), *numbers]
        assert {each.device.type for each in on_device} == {"cuda"}
    assert len(OBSERVATIONS) == 6, "add the new observation above; pixels hold frames, which no bank does"
    assert isinstance(infos["clip"], np.ndarray)


@pytest.mark.parametrize("arguments", [*({"reward": reward} for reward in REWARDS), {"baseline": "all"}, {"price": 0.1}], ids=str)
def test_no_reward_waits_for_a_gpu(full, arguments):
    env = make(full, **arguments)
    env.reset(seed=0)
    *_, infos = [env.step(cells()) for _ in range(T)][-1]
    for key in ("confidence", "previous", "baseline", "prediction", "correct", "box"):
        assert infos["final_info"][key].device.type == "cuda" and len(infos["final_info"][key]) == N, key


@pytest.mark.parametrize("arguments", [{"output": "numpy"}, {"action": "skip"}, {"action": "continuous", "bank": False}], ids=str)
def test_what_waits_is_found(full, arguments):
    """Otherwise the tests above could not fail."""
    env = make(**{"bank": full, **arguments}) if "bank" not in arguments else AdaFocusVectorEnv(N, full.classifier, full.clips, **arguments)
    with pytest.raises((DataDependentOutputException, RuntimeError), match=r"numpy|_local_scalar_dense"):
        env.reset(seed=0)
        env.step(cells() if arguments.get("action") != "continuous" else torch.zeros(N, 2, device="cuda"))
