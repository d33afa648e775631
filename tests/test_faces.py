"""What Gymnasium and Stable-Baselines3 expect of every registered id: their checkers, wrappers, copies, processes, tensors."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from adafocus_env.observation import OBSERVATIONS, to_numpy
from classifiers.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")
IDS = [name for name, spec in gym.registry.items() if spec.entry_point == "adafocus_env.env:AdaFocusEnv"]
PLAIN_IDS = ["AdaFocus-v0", "AdaFocusContinuous-v0"]
N, SEED = 3, 5


@pytest.fixture
def arguments(classifier, clips):
    """The shared classifier and clips, features computed live."""
    return {"classifier": classifier, "clips": clips, "bank": False}


@pytest.fixture
def make(arguments):
    def make(name="AdaFocus-v0", num_envs=N, **more):
        return gym.make_vec(name, num_envs, "vector_entry_point", **{**arguments, **more})

    return make


# Checkers


TAKEN_FOR_IMAGES = [  # Stable-Baselines3 takes every box with three axes for an image, and images for large ones with their channels last
    r"It seems that your observation .*is an image but",
    "Treating image space as channels-last, while second dimension was smallest of the three",
    "The minimal resolution for an image is 36x36 for the default `CnnPolicy`",
]
NOT_SYMMETRIC = "We recommend you to use a symmetric and normalized Box action space"  # places lie in [0, 1]², as the paper has them


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("name", IDS)
def test_the_checkers_find_nothing(arguments, name, observation):
    env = gym.make(name, **arguments, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)
    with warnings.catch_warnings():
        images = TAKEN_FOR_IMAGES if observation in ("map", "dict", "pixels") else []
        for message in [*images, *([NOT_SYMMETRIC] if isinstance(env.action_space, gym.spaces.Box) else [])]:
            warnings.filterwarnings("ignore", message, UserWarning)
        check_env_for_sb3(env.unwrapped)


def test_all_ids_are_checked():
    assert set(PLAIN_IDS) <= set(IDS)


# Tensors


def numpy_of(returned):
    """The same with arrays in place of all tensors, rewards as the numpy output has them."""
    observed, reward, terminated, truncated, infos = returned
    if "final_obs" in infos:
        final = np.full(N, None, dtype=object)
        for row in np.flatnonzero(infos["_final_obs"]):
            final[row] = to_numpy(infos["final_obs"][row])
        infos = {**infos, "final_obs": final}
    return to_numpy(observed), reward.double().numpy(), terminated.numpy(), truncated.numpy(), infos


def assert_equal(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, tuple) or (isinstance(ours, np.ndarray) and ours.dtype == object):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert np.array_equal(ours, theirs) and np.asarray(ours).dtype == np.asarray(theirs).dtype


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_tensors_are_what_arrays_are(make, bank, mode, observation):
    shared = {"autoreset_mode": mode, "observation": observation, "bank": bank}
    tensors, arrays = make(output="torch", **shared), make(**shared)
    (seen, infos), expected = tensors.reset(seed=SEED), arrays.reset(seed=SEED)
    assert_equal((to_numpy(seen), infos), expected)
    for step in range(10):
        actions = np.random.default_rng(step).integers(49, size=N)
        returned, expected = tensors.step(torch.from_numpy(actions)), arrays.step(actions)
        observed = list(returned[0].values()) if isinstance(returned[0], dict) else [returned[0]]
        assert all(isinstance(each, torch.Tensor) and each.device == tensors.unwrapped.dynamics.state.device for each in observed)
        assert [each.dtype for each in returned[1:4]] == [torch.float32, torch.bool, torch.bool]
        assert_equal(numpy_of(returned), expected)
        if mode is AutoresetMode.DISABLED and expected[2].any():
            begun, expected = (env.reset(options={"reset_mask": expected[2]}) for env in (tensors, arrays))
            assert_equal(to_numpy(begun[0]), expected[0])


def tensors_in(returned):
    if isinstance(returned, torch.Tensor):
        yield returned
    elif isinstance(returned, np.ndarray):
        yield from (tensor for item in returned if returned.dtype == object for tensor in tensors_in(item))
    elif isinstance(returned, dict | tuple):
        yield from (tensor for item in (returned.values() if isinstance(returned, dict) else returned) for tensor in tensors_in(item))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_tensors_are_never_written_to_and_whoever_writes_to_them_changes_nothing(make, bank, observation, live):
    shared = {"output": "torch", "autoreset_mode": "SAME_STEP", "observation": observation, "bank": not live and bank}
    env, undisturbed = make(**shared), make(**shared)
    kept = []
    env.reset(seed=SEED)
    for tensor in tensors_in(undisturbed.reset(seed=SEED)):
        tensor.fill_(1)
    for step in range(9):
        actions = np.random.default_rng(step).integers(49, size=N)
        returned, disturbed = env.step(actions), undisturbed.step(actions)
        kept += [(tensor, tensor.clone()) for tensor in tensors_in(returned)]
        assert_equal(numpy_of(disturbed), numpy_of(returned))
        for tensor in tensors_in(disturbed):
            tensor.fill_(1)
    assert len(kept) > 30 and all(torch.equal(*pair) for pair in kept)


def test_a_glance_never_leaves_the_device(make, bank, monkeypatch):
    """Observations of the output torch are not copied into arrays and back."""
    env = make(output="torch", observation="dict", bank=bank)
    env.reset(seed=SEED)
    copied = []
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self, original=torch.Tensor.numpy: copied.append(self.shape) or original(self))
    env.step(np.zeros(N, np.int64))
    assert copied and max(len(shape) for shape in copied) <= 2 and max(shape.numel() for shape in copied) <= 3 * N


def test_continuous_actions_may_be_tensors_that_need_a_gradient(make):
    env = make("AdaFocusContinuous-v0", output="torch")
    env.reset(seed=SEED)
    place = torch.full((N, 2), 0.5, requires_grad=True)
    assert env.step(place)[4]["box"].tolist() == [[36, 36, 60, 60]] * N


def test_an_unknown_output(make):
    with pytest.raises(InputError, match="output='jax' is not known; choose 'numpy' or 'torch'"):
        make(output="jax")
