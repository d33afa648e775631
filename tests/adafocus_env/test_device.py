"""Simulation of a GPU with PyTorch's fake tensors, which have a device but no values.

Code that copies numbers to the host, branches on them, or mixes devices raises an error in these tests. On a GPU, it would wait or fail.
"""

import itertools
import os

import numpy as np
import pytest
import torch
from conftest import TINY, slow_except
from torch._subclasses.fake_tensor import FakeTensorMode

from adafocus_env.action import ActionError, GridAction
from adafocus_env.demo.videos import CLASSES
from adafocus_env.features import memory_bank as bank_module
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.reward import REWARDS, Reward, itself
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.runs.seeding import make_deterministic
from classifiers import flops as flops_module
from classifiers.classifier import Classifier, WeightMonitor
from classifiers.flops import classifier_flops
from classifiers.optimize import PLAIN, with_execution

N, T = 3, 4
STEPS = list(itertools.product(["map", "vector", "dict", "reference", "reference_looks"], ["SAME_STEP", "NEXT_STEP"]))


@pytest.fixture(scope="module")
def cost(classifier):
    return classifier_flops(classifier)


@pytest.fixture
def pretended(monkeypatch, cost):
    """Return a context with a simulated GPU, in which tensors are on ``cuda:0`` and have no values."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(WeightMonitor, "changed", lambda watch: False)
    monkeypatch.setattr(Classifier, "fingerprint", lambda classifier, parts=(): "0" * 64)
    monkeypatch.setattr(bank_module, "memory_of", lambda device: 1 << 40)
    monkeypatch.setattr(flops_module, "classifier_flops", lambda classifier: cost)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")


@pytest.fixture
def full(pretended, clips):
    """Return a full bank on the simulated GPU."""
    with pretended:
        classifier = with_execution(Classifier(TINY, CLASSES).freeze(), PLAIN)
    bank = MemoryBank(classifier, clips, GridAction(7, 96, 24))
    bank._glanced[:] = bank._focused[:] = True
    return bank


def make(bank, **arguments):
    given = {"observation": "vector", "autoreset_mode": "SAME_STEP", "output": "torch", "bank": bank, **arguments}
    return AdaFocusVectorEnv(N, bank.classifier, bank.clips, **given)


def cells():
    return torch.zeros(N, dtype=torch.int64, device="cuda")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize(("observation", "mode"), slow_except([case for case in STEPS if "SAME_STEP" in case or "dict" in case], STEPS))
def test_no_step_waits_for_a_gpu(full, observation, mode):
    env = make(full, observation=observation, autoreset_mode=mode)
    env.reset(seed=0)
    for step in range(2 * T):
        if mode == "NEXT_STEP" and step == 2:  # from here on not all rows end together
            env.reset(options={"reset_mask": np.arange(N) == 1})
        seen, *numbers, infos = env.step(cells())
        on_device = [*(seen.values() if isinstance(seen, dict) else [seen]), *numbers]
        assert {each.device.type for each in on_device} == {"cuda"}
    assert len(OBSERVATIONS) == 6, "add the new observation above; pixels hold frames, which no bank does"
    assert isinstance(infos["clip"], np.ndarray)


@pytest.mark.parametrize(
    "arguments",
    [*({"reward": reward} for reward in REWARDS), {"baseline": "all"}, {"cost_weight": 0.1}, {"full_information": True}],
    ids=str,
)
def test_no_reward_waits_for_a_gpu(full, arguments):
    env = make(full, **arguments)
    env.reset(seed=0)
    *_, infos = [env.step(cells()) for _ in range(T)][-1]
    reported = ["action_rewards"] if "full_information" in arguments else []
    for key in ("confidence", "previous", "baseline", "prediction", "correct", "box", *reported):
        assert infos["final_info"][key].device.type == "cuda" and len(infos["final_info"][key]) == N, key


@pytest.mark.parametrize(
    "arguments", [{"output": "numpy"}, {"action": "skip"}, {"reward": Reward(itself)}], ids=["numpy", "skip", "arrays only"]
)
def test_what_waits_is_found(full, arguments):
    """Without this, the tests above could not fail."""
    with pytest.raises(RuntimeError, match=r"\.numpy\(\) is not supported"):
        env = make(full, **arguments)
        env.reset(seed=0)
        env.step(cells())


def test_a_session_asks_for_products_of_matrices_that_are_the_same_twice(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        make_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def bits(now, previous, baseline):
    return np.log2(now) - np.log2(baseline)


def test_a_reward_that_only_takes_arrays_gets_them(bank):
    envs = [make(bank, reward=Reward(bits, "random patches"), output=output) for output in ("torch", "numpy")]
    for env in envs:
        env.reset(seed=0)
    for _ in range(T):
        ours, theirs = (env.step(np.arange(N))[1] for env in envs)
        assert ours.dtype == torch.float32 and np.array_equal(ours.double().numpy(), theirs) and theirs.any()


def test_devices_are_not_mixed_unnoticed(full):
    with pytest.raises(RuntimeError, match="at least two devices"):
        full.focus_vectors(np.zeros(N, np.int64), np.zeros(N, np.int64), torch.zeros(N, dtype=torch.int64))


def test_actions_on_the_host_are_sent_to_the_device(full):
    env = make(full)
    env.reset(seed=0)
    assert env.step(np.zeros(N, np.int64))[4]["box"].device.type == "cuda"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), r"actions have shape \(2,\); give one cell for each of the 3 clips: shape \(3,\)"),
        (torch.zeros(3), "actions have dtype torch.float32; cells must be integers from 0 to 48"),
        (torch.zeros(3, dtype=torch.bool), "actions have dtype torch.bool"),
        (torch.tensor([0, 1, 49]), r"action 49 \(clip 2\) is outside the space; choose a cell from 0 to 48"),
        (torch.tensor([0, -1, 3]), r"action -1 \(clip 1\) is outside the space"),
    ],
)
def test_tensors_outside_the_space_change_nothing(bank, wrong, message):
    """This test is for CPUs; see tests/adafocus_env/test_cuda.py for GPUs."""
    env, undisturbed = make(bank), make(bank)
    for each in (env, undisturbed):
        each.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(wrong)
    given = torch.tensor([0, 24, 48], dtype=torch.int32)
    assert torch.equal(env.step(given)[0], undisturbed.step(given.numpy())[0])
