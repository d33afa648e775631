"""Every registered id passes the checkers of Gymnasium and Stable-Baselines3, and works with wrappers, copies, processes and tensors."""

import copy
import itertools
import pickle
import warnings
from functools import partial

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import slow_except
from gymnasium.error import ClosedEnvironmentError
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.vec_env import VecMonitor, VecVideoRecorder

from adafocus_env import ARGUMENTS
from adafocus_env.clips import store as clips_module
from adafocus_env.observation import OBSERVATIONS, to_numpy
from adafocus_env.sb3_env import AdaFocusVecEnv
from classifiers.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*use AdaFocus.*-v1:DeprecationWarning"),  # version 0 says what replaces it
    pytest.mark.filterwarnings("ignore:.*is out of date"),  # and so does Gymnasium
]
IDS = [name for name, arguments in ARGUMENTS.items() if "task" not in arguments]
PLAIN_IDS = ["AdaFocus-v1", "AdaFocusContinuous-v1"]
N, SEED = 3, 5


@pytest.fixture
def arguments(classifier, clips):
    """Return the shared classifier and clips, with features computed live."""
    return {"classifier": classifier, "clips": clips, "bank": False}


@pytest.fixture
def make(arguments):
    def make(name="AdaFocus-v1", num_envs=N, **more):
        return gym.make_vec(name, num_envs, "vector_entry_point", **{**arguments, **more})

    return make


# Checkers


TAKEN_FOR_IMAGES = [  # Stable-Baselines3 takes every box with three axes for an image, and images for large ones with their channels last
    r"It seems that your observation .*is an image but",
    "Treating image space as channels-last, while second dimension was smallest of the three",
    "The minimal resolution for an image is 36x36 for the default `CnnPolicy`",
]
NOT_SYMMETRIC = "We recommend you to use a symmetric and normalized Box action space"  # places lie in [0, 1]², as the paper has them


CHECKED = [
    (name, observation)
    for name, observation in itertools.product(ARGUMENTS, OBSERVATIONS)
    if name.endswith("-v1") or observation == "map"
]


@pytest.mark.parametrize(
    ("name", "observation"),
    slow_except([case for case in CHECKED if "AdaFocus-v1" in case or (case[0].endswith("-v1") and "map" in case)], CHECKED),
)
def test_the_checkers_find_nothing(arguments, name, observation):
    env = gym.make(name, **arguments, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)
    with warnings.catch_warnings():
        images = TAKEN_FOR_IMAGES if observation in ("map", "dict", "pixels") else []
        for message in [*images, *([NOT_SYMMETRIC] if isinstance(env.action_space, gym.spaces.Box) else [])]:
            warnings.filterwarnings("ignore", message, UserWarning)
        check_env_for_sb3(env.unwrapped)


def test_all_ids_are_checked():
    assert set(PLAIN_IDS) <= set(IDS) < set(ARGUMENTS) == {name for name in gym.registry if name.startswith("AdaFocus")}


# Tensors


def numpy_of(returned):
    """Convert all tensors to arrays, with rewards in the format of the numpy output."""
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
    patch_mask = []
    env.reset(seed=SEED)
    for tensor in tensors_in(undisturbed.reset(seed=SEED)):
        tensor.fill_(1)
    for step in range(9):
        actions = np.random.default_rng(step).integers(49, size=N)
        returned, disturbed = env.step(actions), undisturbed.step(actions)
        patch_mask += [(tensor, tensor.clone()) for tensor in tensors_in(returned)]
        assert_equal(numpy_of(disturbed), numpy_of(returned))
        for tensor in tensors_in(disturbed):
            tensor.fill_(1)
    assert len(patch_mask) > 30 and all(torch.equal(*pair) for pair in patch_mask)


def test_nothing_leaves_the_device(make, bank, monkeypatch):
    """With output="torch", no tensor is converted to an array; see also tests/adafocus_env/test_device.py."""
    env = make(output="torch", observation="dict", bank=bank)
    env.reset(seed=SEED)
    copied = []
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self, original=torch.Tensor.numpy: copied.append(self.shape) or original(self))
    env.step(np.zeros(N, np.int64))
    assert not copied


def test_continuous_actions_may_be_tensors_that_need_a_gradient(make):
    env = make("AdaFocusContinuous-v1", output="torch")
    env.reset(seed=SEED)
    place = torch.full((N, 2), 0.5, requires_grad=True)
    assert env.step(place)[4]["box"].tolist() == [[36, 36, 60, 60]] * N


# Copies, processes and ends


BANKS = {"bank": True, "live": False, "folder": "folder"}


def one_of(api, arguments, bank, tmp_path, **more):
    """Return an environment of one API with separate features, three steps into an episode."""
    given = {**arguments, "bank": tmp_path / "bank" if bank == "folder" else BANKS[bank], "grid": 3, "baseline": 2, **more}
    env = gym.make("AdaFocus-v1", **given).unwrapped if api == "single" else gym.make_vec("AdaFocus-v1", N, "vector_entry_point", **given)
    env.reset(seed=SEED)
    play(env, range(3))
    return env


def play(env, steps):
    """Return the results of further steps, and of a reset at an end."""
    returned = []
    for step in steps:
        actions = np.random.default_rng(step).integers(9, size=getattr(env, "num_envs", 1))
        returned.append(env.step(actions if hasattr(env, "num_envs") else actions[0]))
        if np.all(returned[-1][2]) and not hasattr(env, "num_envs"):
            returned.append(env.reset())
    return tuple(returned)


@pytest.mark.parametrize("observation", ["dict", "pixels"])
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("api", ["single", "vector"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_plays_on_where_the_environment_was(arguments, tmp_path, api, bank, how, observation):
    env = one_of(api, arguments, bank, tmp_path, observation=observation)
    twin = how(env)
    expected = play(env, range(3, 12))
    assert_equal(play(twin, range(3, 12)), expected)
    assert_equal(twin.reset(seed=1), env.reset(seed=1))


def test_a_copy_shares_features_and_a_pickle_leaves_them_behind(arguments, tmp_path):
    env = one_of("vector", arguments, "bank", tmp_path)
    assert copy.deepcopy(env).dynamics.features is env.dynamics.features
    bank = env.dynamics.features
    assert len(pickle.dumps(env)) < len(pickle.dumps(bank.classifier)) + len(pickle.dumps(bank.clips)) + 2**16 < bank.num_bytes


def test_environments_of_a_shipped_classifier_by_name_can_be_pickled():
    env = gym.make("AdaFocus-v1", clips="test")
    again = pickle.loads(pickle.dumps(env))
    assert again.spec == env.spec and again.observation_space == env.observation_space


@pytest.mark.slow
def test_spawned_processes_play_the_same(arguments):
    """The vector environments of Gymnasium, in other processes and in this one, with given classifiers and clips."""
    arguments = {**arguments, "observation": "dict", "grid": 3}
    makers = [partial(gym.make, "adafocus_env:AdaFocus-v1", **arguments)]  # one: what takes long is the start of a process
    spawned, here = gym.vector.AsyncVectorEnv(makers, context="spawn"), gym.vector.SyncVectorEnv(makers)
    try:
        assert_equal(spawned.reset(seed=SEED), here.reset(seed=SEED))
        for step in range(6):
            actions = np.random.default_rng(step).integers(9, size=1)
            assert_equal(spawned.step(actions), here.step(actions))
    finally:
        spawned.close()


@pytest.mark.slow
def test_processes_that_are_forked_decode_the_clips_that_they_need(tmp_path, monkeypatch):
    """The parent has decoded nothing. Workers of `AsyncVectorEnv` are daemons, which must not have daemons as children."""
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    monkeypatch.setattr(clips_module, "SHARD_SIZE", 2)
    env = gym.make_vec("AdaFocus-v1", 1, "async", vector_kwargs={"context": "fork"}, observation="vector")
    try:
        assert env.reset(seed=SEED)[0].any() and len(list(tmp_path.rglob("*.mp4"))) == 2
    finally:
        env.close()


@pytest.mark.parametrize("name", PLAIN_IDS)
@pytest.mark.parametrize("api", ["single", "vector", "sb3"])
def test_what_is_closed_can_be_neither_reset_nor_stepped(arguments, make, name, api):
    if api == "single":
        env = gym.make(name, **arguments).unwrapped
    else:
        env = make(name, autoreset_mode="SAME_STEP")
        env = AdaFocusVecEnv(env) if api == "sb3" else env
    env.reset()
    action = env.action_space.sample() if api != "sb3" else np.stack([env.action_space.sample()] * N)
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match=r"AdaFocus(Vector)?Env is closed and can be neither reset nor stepped"):
        env.step(action)
    with pytest.raises(ClosedEnvironmentError, match="make a new one"):
        env.reset()


@pytest.mark.parametrize("kind", ["AdaFocusEnv", "SyncVectorEnv"])
def test_stable_baselines3_gets_no_other_environment(arguments, kind):
    single = partial(gym.make, "AdaFocus-v1", **arguments)
    with pytest.raises(InputError, match=rf"env must be an AdaFocusVectorEnv, got {kind}; make one with gymnasium\.make_vec\(ID"):
        AdaFocusVecEnv(single() if kind == "AdaFocusEnv" else gym.vector.SyncVectorEnv([single]))


@pytest.mark.parametrize(("algorithm", "policy"), [(PPO, "CnnPolicy"), (RecurrentPPO, "CnnLstmPolicy")])
def test_a_policy_for_images_says_that_glance_maps_are_none(make, algorithm, policy):
    rows = AdaFocusVecEnv(make(observation="map", autoreset_mode="SAME_STEP"))
    with pytest.raises(AssertionError, match=r"\(16, 6, 6\), float32\), which holds glance maps: use MlpPolicy or MlpLstmPolicy"):
        algorithm(policy, rows, device="cpu")
    assert repr(rows.observation_space) == "Box(0.0, 6.0, (16, 6, 6), float32)"
    assert rows.observation_space == gym.spaces.Box(0.0, 6.0, (16, 6, 6), np.float32)


def test_an_unknown_output(make):
    with pytest.raises(InputError, match=r"output='jax' is not known; choose one of \['numpy', 'torch'\]"):
        make(output="jax")


# Wrappers


def played_to_the_end(env, steps):
    env.reset(seed=SEED)
    env.action_space.seed(SEED)
    return [env.step(env.action_space.sample()) for _ in range(steps)]


@pytest.mark.parametrize("name", IDS)
def test_episodes_are_counted(arguments, make, name):
    single = gym.wrappers.RecordEpisodeStatistics(gym.make(name, **arguments))
    steps = played_to_the_end(single, 4)
    assert steps[-1][4]["episode"]["l"] == 4
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps), abs=1e-5)
    for mode in ("NEXT_STEP", "SAME_STEP"):
        vector = gym.wrappers.vector.RecordEpisodeStatistics(make(name, autoreset_mode=mode))
        steps = played_to_the_end(vector, 4)
        assert steps[-1][4]["episode"]["l"].tolist() == [4] * N
        assert np.allclose(steps[-1][4]["episode"]["r"], sum(step[1] for step in steps), atol=1e-5)
    rows = VecMonitor(AdaFocusVecEnv(make(name, autoreset_mode="SAME_STEP")), info_keywords=("name", "correct", "penalty"))
    rows.reset()
    infos = [rows.step(np.stack([rows.action_space.sample() for _ in range(N)]))[3] for _ in range(4)][-1]
    assert all(info["episode"].keys() == {"r", "l", "t", "name", "correct", "penalty"} and info["episode"]["l"] == 4 for info in infos)


def frames_of(folder):
    """Return the frames (n, height, width, 3) of the only video in a folder."""
    (path,) = folder.glob("*.mp4")
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.mark.slow
@pytest.mark.parametrize("api", ["single", "vector", "sb3"])
def test_videos_are_recorded(arguments, make, tmp_path, api):
    folder = tmp_path / "videos"  # made by the wrappers, which warn of an existing one
    pytest.importorskip("moviepy", reason="recording videos needs moviepy: pip install '.[video]'")
    if api == "single":
        env = gym.wrappers.RecordVideo(gym.make("AdaFocusSkip-v1", render_mode="rgb_array", **arguments), str(folder))
        played_to_the_end(env, 4)
    elif api == "vector":
        env = make(render_mode="rgb_array")
        env = gym.wrappers.vector.RecordVideo(env, str(folder), step_trigger=lambda step: step == 0, video_length=4)
        played_to_the_end(env, 5)
    else:
        rows = AdaFocusVecEnv(make(render_mode="rgb_array", autoreset_mode="SAME_STEP"))
        env = VecVideoRecorder(rows, str(folder), lambda step: step == 0, video_length=4)
        env.reset()
        for _ in range(5):
            env.step(np.zeros(N, np.int64))
    env.close()
    frames = frames_of(folder)
    assert 4 <= len(frames) <= 6 and frames.shape[1] % 324 == 0 and frames.shape[2] % 288 == 0
    assert not np.array_equal(frames[0], frames[3])
