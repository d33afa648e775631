"""Tests that need a GPU: `python -m pytest -m cuda`. See tests/adafocus_env/test_device.py for tests without one.

No test reads a video: networks are tiny and random, and clips are random pixels.
"""

import copy
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import random_classifier

from adafocus_env.action import GridAction
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.observation import OBSERVATIONS, to_numpy
from adafocus_env.transfers import to_device
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import PPOConfig, SupervisedConfig
from agents.evaluation.inference import infer, infer_clips
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stages import train_on_random_patches
from benchmarks.training import learner
from benchmarks.workload import RandomClips
from classifiers import checkpoint
from classifiers.errors import InputError
from classifiers.optimize import Execution, check_compiler, with_execution

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
N, T = 16, 4
NETWORK = PolicyArchitecture((16, 6, 6), channels=4, features=8, hidden=8)


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """Compute convolutions in full float32. PyTorch's default is TF32, with a mantissa of 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def clips():
    return RandomClips(N, T, 96)


@pytest.fixture(scope="module")
def networks():
    """Return the same classifier on the CPU and on the GPU."""
    return {"cpu": random_classifier(), "cuda": random_classifier().to("cuda")}


@pytest.fixture(scope="module")
def banks(networks, clips):
    """Return a full bank of each classifier."""
    banks = {name: MemoryBank(network, clips, GridAction(7, 96, 24)) for name, network in networks.items()}
    for bank in banks.values():
        for clip in range(N):
            bank.focus_vectors(np.full((1, T), clip), np.arange(T)[None], np.zeros((1, T), np.int64))
        bank.glance_vectors(np.arange(N)[:, None], np.arange(T)[None])
    return banks


def make(bank, **arguments):
    given = {"bank": bank, "autoreset_mode": "SAME_STEP", "baseline": 3, **arguments}
    return AdaFocusVectorEnv(N, bank.classifier, bank.clips, **given)


def close(ours, theirs, tolerance=1e-4):
    for one, other in zip(ours, theirs, strict=True):
        one, other = (torch.as_tensor(each).double().cpu() for each in (one, other))
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_step_is_that_of_the_cpu(banks, observation):
    tolerance = 5e-3 if observation == "pixels" else 1e-4  # of 255: halves may be rounded otherwise
    envs = [make(banks["cuda"], observation=observation, output="torch"), make(banks["cpu"], observation=observation)]
    seen, expected = (env.reset(seed=0)[0] for env in envs)
    for step in range(2 * T):
        cells = np.random.default_rng(step).integers(49, size=N)
        (seen, *numbers, infos), (expected, *others, their_infos) = envs[0].step(torch.from_numpy(cells).cuda()), envs[1].step(cells)
        if "final_info" in infos:
            infos, their_infos = infos["final_info"], their_infos["final_info"]
        tensors = list(seen.values()) if isinstance(seen, dict) else [seen]
        assert all(each.is_cuda for each in (*tensors, *numbers, infos["confidence"], infos["box"]))
        found = to_numpy(seen)
        pair = [each.values() if isinstance(each, dict) else [each] for each in (found, expected)]
        close(*pair, tolerance)
        close(numbers, others)
        for key in ("confidence", "baseline", "previous", "box", "penalty"):
            close([infos[key]], [their_infos[key]])


@pytest.mark.parametrize("observation", ["reference", "map", "vector", "dict"])
def test_no_step_waits(banks, observation):
    """PyTorch raises an error if it would wait for the GPU."""
    env = make(banks["cuda"], observation=observation, output="torch")
    env.reset(seed=0)
    cells = torch.zeros(N, dtype=torch.int64, device="cuda")
    for _ in range(T):
        env.step(cells)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2 * T):
            env.step(cells)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_action_outside_the_space_ends_the_process():
    code = """
        import torch
        from adafocus_env.action import GridAction
        GridAction(7, 96, 24).check_tensor(torch.tensor([0, 49], device="cuda"), 2)
        torch.cuda.synchronize()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], text=True, capture_output=True)
    assert done.returncode and "device-side assert" in done.stderr


def test_copies_to_the_device_are_taken_before_they_return():
    numbers = np.arange(10**6)
    copied = to_device(numbers, torch.device("cuda"))
    numbers[:] = 0
    assert copied.is_cuda and torch.equal(copied.cpu(), torch.arange(10**6))


def test_a_bank_holds_what_is_computed_live(banks, networks, clips):
    live = LiveFeatures(networks["cuda"], clips, GridAction(7, 96, 24))
    every, steps = np.arange(N)[:, None], np.arange(T)[None]
    cells = np.random.default_rng(0).integers(49, size=(N, T))
    bank = banks["cuda"]
    close(
        [bank.glance_maps(every, steps), bank.glance_vectors(every, steps)],
        [live.glance_maps(every, steps), live.glance_vectors(every, steps)],
    )
    close([bank.focus_vectors(every, steps, cells)], [live.focus_vectors(every, steps, cells)])
    assert torch.equal(bank.focus_vectors(every, steps, torch.from_numpy(cells).cuda()), bank.focus_vectors(every, steps, cells))


@pytest.mark.parametrize(
    ("precision", "compile", "tolerance"),
    [("float32", False, 1e-4), ("bfloat16", False, 0.03), ("float16", False, 0.01), ("bfloat16", True, 0.03)],
)
def test_an_execution_comes_close(networks, precision, compile, tolerance):
    """Compiled networks replay CUDA graphs from the third call on, and the next call overwrites the outputs."""
    if precision == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU cannot compute in bfloat16")
    if compile:
        try:
            check_compiler()
        except InputError as problem:
            pytest.skip(str(problem))
    other = with_execution(networks["cuda"], Execution(precision, channels_last=True, compile=compile, focus_call=8))
    patches = [torch.randn(13, 3, 24, 24, device="cuda", generator=torch.Generator("cuda").manual_seed(n)) for n in range(4)]
    found = [other.focus(each) for each in patches]
    close(found, [networks["cuda"].focus(each) for each in patches], tolerance)
    assert all(each.dtype == torch.float32 for each in found)


@pytest.fixture(scope="module")
def policies():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PolicyNetwork(NETWORK, 7).eval().requires_grad_(False)
        policy.actor.weight.mul_(30)
    return {"cpu": policy, "cuda": copy.deepcopy(policy).to("cuda")}


def test_inference_is_that_of_the_cpu(networks, policies, clips):
    frames = torch.stack([clips.frames(clip) for clip in range(N)])
    found, expected = (infer(networks[name], policies[name], networks[name].normalise(frames.to(name))) for name in ("cuda", "cpu"))
    assert (found.actions.cpu() == expected.actions).float().mean() > 0.9  # near ties may fall otherwise
    same = (found.actions.cpu() == expected.actions).all(1)
    close([found.logits[same.cuda()]], [expected.logits[same]], 1e-3)
    batches = list(infer_clips(networks["cuda"], policies["cuda"], clips, batch_size=5))  # by way of pinned memory
    assert (torch.cat([each.actions for each in batches]) == found.actions).float().mean() > 0.9


def test_ppo_learns_and_leaves_the_classifier(banks):
    bank = banks["cuda"]
    before = bank.classifier.fingerprint()
    model = learner(bank, PPOConfig(n_steps=T, batch_size=2 * T, n_epochs=2), N, NETWORK)
    weights = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(3 * T * N)
    assert bank.classifier.fingerprint() == before
    assert any(not torch.equal(old, new) for old, new in zip(weights, model.policy.parameters(), strict=True))
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_stage_1_learns_in_mixed_precision(networks, clips, precision):
    network = copy.deepcopy(networks["cuda"])
    before = network.fingerprint(["glancer"]), network.fingerprint(["focuser"])
    config = SupervisedConfig(2, 8, learning_rate=1e-3, head_learning_rate=1e-3, precision=precision, channels_last=True)
    lines = list(train_on_random_patches(network, clips, config, seed=0))
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
    assert network.fingerprint(["glancer"]) == before[0] and network.fingerprint(["focuser"]) != before[1]


def test_checkpoints_move_between_devices(networks, clips, tmp_path):
    checkpoint.save(networks["cuda"], tmp_path / "classifier")
    assert checkpoint.load(tmp_path / "classifier").fingerprint() == networks["cpu"].fingerprint()
    config = SupervisedConfig(2, 8, learning_rate=1e-3, head_learning_rate=1e-3)
    for name in ("cuda", "cpu"):
        saved = EpochCheckpoint(tmp_path / "epochs", lambda: 0)
        training = train_on_random_patches(copy.deepcopy(networks[name]), clips, config, seed=0, checkpoints=saved)
        assert np.isfinite(next(training)["loss"])
        saved.between_epochs()
    assert [file.name for file in sorted((tmp_path / "epochs").glob("*.pt"))] == ["00001-0000000.pt", "00002-0000000.pt"]
