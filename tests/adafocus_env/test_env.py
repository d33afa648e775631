import copy
import itertools
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY_COST
from gymnasium.error import ResetNeeded

from adafocus_env.action import ActionError
from adafocus_env.build import build_features
from adafocus_env.clips import store as clips_module
from adafocus_env.env import AdaFocusEnv
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.render import CAPTION
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers import checkpoint
from classifiers.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def make(classifier, clips, bank):
    """Return a function that makes environments on the shared clips and bank."""

    def make(**arguments):
        return AdaFocusEnv(classifier, clips, **{"bank": bank, **arguments})

    return make


def rollout(env, actions=(3, 48, 24, 0), **reset):
    """Return all results of one episode."""
    returned = [env.reset(**reset)]
    for action in actions:
        returned.append(env.step(action))
    return returned


def same(one, other):
    """Return whether nested tuples, dictionaries and arrays are exactly equal."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype


# Observations


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_observations_lie_in_the_space_and_the_last_one_repeats(make, observation):
    env = make(observation=observation)
    observations = [returned[0] for returned in rollout(env, seed=0)]
    assert all(env.observation_space.contains(seen) for seen in observations)
    glances = [seen["map"] if observation == "dict" else seen for seen in observations]
    if observation == "reference_looks":
        assert [int(seen[2]) for seen in glances] == [0, 1, 2, 3, 4]
        glances = [seen[:2] for seen in glances]
    assert all(type(seen) is np.ndarray for seen in glances)
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(glances[:4]))
    assert np.array_equal(glances[3], glances[4])


def test_spaces_are_exact(make):
    spaces = {name: make(observation=name).observation_space for name in OBSERVATIONS}
    assert spaces["map"] == gym.spaces.Box(0, 6, (16, 6, 6), np.float32)
    assert spaces["vector"] == gym.spaces.Box(0, 6, (16,), np.float32)
    assert spaces["reference"] == gym.spaces.Box(np.array([0, 0]), np.array([11, 3]), dtype=np.int64)
    assert spaces["reference_looks"] == gym.spaces.Box(np.zeros(3), np.array([11, 3, 4]), dtype=np.int64)
    assert spaces["pixels"] == gym.spaces.Box(0, 255, (3, 24, 24), np.uint8)
    assert spaces["dict"] == gym.spaces.Dict(
        map=spaces["map"],
        step=gym.spaces.Box(0, 1, (1,), np.float32),
        patch=gym.spaces.Box(0, 1, (2,), np.float32),
        head=gym.spaces.Box(0, 1, (2,), np.float32),
        state=gym.spaces.Box(-1, 1, (20,), np.float32),
    )
    assert make().action_space == gym.spaces.Discrete(49) and make(grid=3, bank=False).action_space == gym.spaces.Discrete(9)


def test_references_name_clip_and_step_and_the_others_are_what_they_refer_to(make, bank):
    reference = [returned[0].tolist() for returned in rollout(make(observation="reference"), options={"clip": 5})]
    assert reference == [[5, 0], [5, 1], [5, 2], [5, 3], [5, 3]]
    for observation, read in (("map", bank.glance_maps), ("vector", bank.glance_vectors)):
        for (seen, *_), (clip, step) in zip(rollout(make(observation=observation), options={"clip": 5}), reference, strict=True):
            assert np.array_equal(seen, read(np.array([clip]), np.array([step]))[0])


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_no_observation_depends_on_the_labels(make, classifier, clips, observation):
    permuted = copy.copy(clips)
    permuted.labels = np.roll(clips.labels, 1)
    assert not np.any(permuted.labels == clips.labels)
    one = make(observation=observation, bank=False)
    other = AdaFocusEnv(classifier, permuted, observation=observation, bank=False)
    assert one.observation_space == other.observation_space
    for seed in range(3):
        first, second = rollout(one, seed=seed), rollout(other, seed=seed)
        assert same([returned[0] for returned in first], [returned[0] for returned in second])
        assert same(first[0][1], second[0][1]), "the info of a reset depends on the label"
        assert [step[1] for step in first[1:]] != [step[1] for step in second[1:]], "the labels make no difference at all"


# Episodes


@pytest.mark.parametrize("bank", [False, True])
def test_equal_seeds_give_equal_rollouts(classifier, clips, bank):
    def three_episodes(seed):
        env = AdaFocusEnv(classifier, clips, bank=bank, observation="vector", baseline=3)
        env.action_space.seed(seed)
        return [rollout(env, [env.action_space.sample() for _ in range(4)], **reset) for reset in ({"seed": seed}, {}, {})]

    first = three_episodes(7)
    assert same(three_episodes(7), first)
    assert not same(three_episodes(8), first)
    assert not same(first[1], first[0]), "a reset without a seed begins the same episode again"


def test_the_seed_of_torch_and_numpy_does_not_matter(make):
    first = rollout(make(baseline=3), seed=1)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert same(rollout(make(baseline=3), seed=1), first)
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.get_rng_state(), before[1])  # noqa: NPY002


def test_an_episode_terminates_after_its_last_frame(make):
    for episode in (rollout(make(), seed=3), rollout(make(baseline="all"), seed=3)):
        assert [step[2] for step in episode[1:]] == [False, False, False, True]
        assert [step[3] for step in episode[1:]] == [False] * 4
        assert all(type(step[1]) is float and type(step[2]) is bool for step in episode[1:])


def test_info_tells_what_happened(make, clips):
    (_, started), *steps = rollout(make(reward="random", baseline="all", cost_weight=0.25), options={"clip": 5})
    before = [0.0, *(step[4]["confidence"] for step in steps)]
    assert started == {"clip": 5, "name": clips.names[5]}
    for (_, reward, _, _, info), box in zip(steps, [(0, 36), (72, 72), (36, 36), (0, 0)], strict=True):
        keys = {"confidence", "previous", "baseline", "penalty", "prediction", "correct", "box", "multiply_adds"}
        assert info.keys() == {"clip", "name"} | keys
        assert info["clip"] == 5 and info["name"] == clips.names[5]
        assert reward == pytest.approx(info["confidence"] - info["baseline"] - 0.25, abs=1e-6) and 0 < info["confidence"] < 1
        assert info["penalty"] == 0.25 and info["previous"] == before.pop(0)
        assert info["correct"] is bool(info["prediction"] == clips.labels[5])
        assert info["box"].tolist() == [*box, box[0] + 24, box[1] + 24]
        assert info["multiply_adds"] == TINY_COST


def test_resets_choose_clips_at_random_or_as_told(make):
    env = make(observation="reference")
    assert {env.reset(seed=0 if i == 0 else None)[1]["clip"] for i in range(100)} == set(range(12))
    assert all(env.reset(options={"clip": clip})[0].tolist() == [clip, 0] for clip in range(12))
    assert env.reset(options={"clip": np.int64(3)})[1]["clip"] == 3
    assert env.reset(options={})[1]["clip"] in range(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 12}, "clip must be an integer from 0 to 11, got 12"),
        ({"clip": -1}, "clip must be .* got -1"),
        ({"clip": 1.0}, "clip must be an integer from 0 to 11, got 1.0"),
        ({"clips": [1]}, r"reset options \['clips'\] are not known; choose from \['clip'\]"),
    ],
)
def test_reset_options_that_cannot_be_used(make, options, message):
    env = make()
    with pytest.raises(InputError, match=message):
        env.reset(options=options)


def test_step_before_reset_and_after_the_end(make):
    env = make()
    with pytest.raises(ResetNeeded, match="call reset before step"):
        env.step(0)
    rollout(env, seed=0)
    with pytest.raises(ResetNeeded, match="call reset before step"):
        env.step(0)
    assert env.reset()[1]["clip"] in range(12)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (49, r"action 49 \(clip 0\) is outside the space; choose a cell from 0 to 48"),
        (-1, "action -1"),
        (float("nan"), "actions have dtype float64; cells must be integers from 0 to 48"),
        (2.0, "actions have dtype float64"),
        (np.array([3]), r"actions have shape \(1, 1\); give one cell for each of the 1 clips"),
        (None, "actions have dtype object"),
        ([[1], [2, 3]], "actions must be an array"),
    ],
)
def test_actions_outside_the_space_leave_the_episode_where_it_was(make, action, message):
    expected = rollout(make(), seed=0)
    env = make()
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(action)
    assert same(env.step(np.int64(3)), expected[1])
    with pytest.raises(ActionError, match=message):
        env.step(action)
    assert same(env.step(np.array(48)), expected[2])


# Arguments


def test_unknown_names_suggest_the_nearest(make):
    with pytest.raises(InputError, match=r"observation='vectr' is not known; did you mean 'vector'\? choose one of \['dict', 'map', "):
        make(observation="vectr")
    with pytest.raises(InputError, match=r"observation='xyz' is not known; choose one of"):
        make(observation="xyz")
    with pytest.raises(InputError, match=r"reward='confidance' is not known; did you mean 'confidence'\?"):
        make(reward="confidance")


def test_arguments_out_of_their_range(make, classifier):
    with pytest.raises(InputError, match=r"render_mode='human' is not known; choose one of \['rgb_array'\]"):
        make(render_mode="human")
    for arguments, message in (
        ({"grid": 0}, "grid must be an integer of at least 1, got 0"),
        ({"baseline": 0}, "baseline must be an integer of at least 1 or 'all', got 0"),
        ({"cost_weight": -0.5}, "cost_weight must be a number of at least 0, got -0.5"),
        ({"skipped": "lst"}, "skipped must be 'zeros' or 'last' or 'none', got 'lst'"),
        ({"gird": 5}, "gird is not a setting; did you mean 'grid'?"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            make(**arguments)
        with pytest.raises(InputError, match=re.escape(message)):
            AdaFocusVectorEnv(2, classifier, **arguments)
    with pytest.raises(InputError, match=r"observaton is not a setting; did you mean 'observation'\?"):
        gym.make("AdaFocus-v1", observaton="map")
    with pytest.raises(InputError, match=r"num_envs is not a setting; .*choose one of action, bank.*, task, video_div"):
        gym.make("AdaFocusMover-v1", num_envs=3)
    with pytest.raises(InputError, match=r"clip_oder is not a setting; did you mean 'clip_order'\?"):
        gym.make_vec("AdaFocus-v1", 2, vectorization_mode="vector_entry_point", clip_oder="epoch")
    with pytest.raises(InputError, match="grid=1 is too small"):
        make(grid=1)
    with pytest.raises(InputError, match="clips must be 'train', 'val', 'test', 'further' or a ClipStore, got 'tset'"):
        AdaFocusEnv(classifier, "tset")


def test_a_bank_can_be_shared_or_left_out(make, bank, classifier, clips):
    with_bank, live = make(observation="vector", baseline="all"), make(observation="vector", baseline="all", bank=False)
    assert with_bank.dynamics.features is bank and live.dynamics.features is not bank
    for (seen, *step), (seen_live, *step_live) in zip(rollout(with_bank, seed=4), rollout(live, seed=4), strict=True):
        assert np.allclose(seen, seen_live, atol=1e-6, rtol=0)
        assert len(step) == 1 or (step[0] == pytest.approx(step_live[0], abs=1e-6) and step[1:3] == step_live[1:3])
    other = build_features(classifier, clips, grid=3, bank=True, device="cpu")
    with pytest.raises(InputError, match="the bank belongs to another patch geometry"):
        make(bank=other)


# Pictures


def enlarged(clips, clip, frame):
    return clips.frames(clip)[frame].permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)


def test_pictures_show_the_frame_and_the_outline_of_the_patch(make, clips):
    env = make(render_mode="rgb_array")
    env.reset(options={"clip": 2})
    picture = env.render()
    assert picture.shape == (288 + CAPTION, 288, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture[:288], enlarged(clips, 2, 0))
    captions = [picture[288:]]
    for number, (action, (top, left)) in enumerate([(0, (0, 0)), (9, (12, 24)), (48, (72, 72)), (20, (24, 72))]):
        env.step(action)
        picture = env.render()
        outline = np.zeros((288, 288), bool)
        outline[3 * top : 3 * (top + 24), 3 * left : 3 * (left + 24)] = True
        outline[3 * top + 2 : 3 * (top + 24) - 2, 3 * left + 2 : 3 * (left + 24) - 2] = False  # two pixels wide
        assert np.all(picture[:288][outline] == 255)
        assert np.array_equal(picture[:288][~outline], enlarged(clips, 2, number)[~outline])
        captions.append(picture[288:])
    assert all(caption.max() == 255 for caption in captions)
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(captions))
    env.reset(options={"clip": 3})
    assert np.array_equal(env.render()[:288], enlarged(clips, 3, 0))


def test_no_picture_without_a_render_mode(make):
    env = make()
    env.reset()
    assert env.render() is None


def test_videos_can_be_recorded_and_episodes_counted(make):
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.RenderCollection(make(render_mode="rgb_array")))
    episode = rollout(env, seed=0)
    assert len(env.render()) == 5
    assert episode[-1][4]["episode"]["l"] == 4
    assert episode[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in episode[1:]), abs=1e-5)


# What works at once


def test_make_without_arguments_renders_only_the_clips_that_are_asked_for(classifier, tmp_path, monkeypatch):
    checkpoint.save(classifier, tmp_path / "classifier")
    monkeypatch.setitem(checkpoint.BUNDLED, "demo", tmp_path / "classifier")  # quicker than the one that is bundled
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    monkeypatch.setattr(clips_module, "SHARD_SIZE", 3)
    env = gym.make("AdaFocus-v1")
    assert not list(tmp_path.rglob("*.mp4"))
    observation, info = env.reset(options={"clip": 4})
    assert env.observation_space.contains(observation) and info["clip"] == 4
    assert len(list(tmp_path.rglob("*.mp4"))) == 3
    assert [env.step(cell)[2] for cell in (0, 10, 20, 30)] == [False] * 4
    assert len(list(tmp_path.rglob("*.mp4"))) == 3
    assert env.unwrapped.dynamics.num_steps == 8


def test_importing_the_package_registers_the_id_and_nothing_slow():
    code = "import sys, adafocus_env, gymnasium; print(gymnasium.spec('AdaFocus-v1').entry_point, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["adafocus_env.env:AdaFocusEnv", "False"]
