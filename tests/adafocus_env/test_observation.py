"""The content of observations. (test_env.py tests that they lie in their spaces and do not depend on labels.)"""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY
from gymnasium import spaces
from torch.nn import functional as F

from adafocus_env.demo.videos import CLASSES
from adafocus_env.env import AdaFocusEnv
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def make(classifier, clips, bank):
    def make(num_envs=3, **arguments):
        return AdaFocusVectorEnv(num_envs, classifier, clips, **{"bank": bank, "observation": "dict", **arguments})

    return make


def test_the_dictionary_tells_what_the_last_patch_did(make):
    env = make()
    observation, _ = env.reset(seed=0)
    for key in ("step", "patch", "head", "state"):
        assert not observation[key].any(), key
    for step, cell in enumerate([48, 8, 30, 0]):
        observation, *_ = env.step(np.full(3, cell))
        scores = env.dynamics.scores.numpy().astype(np.float64)
        if step < 3:
            assert np.allclose(observation["step"], (step + 1) / 4)
            assert np.allclose(observation["patch"], [(cell // 7) / 6, (cell % 7) / 6])
            assert np.allclose(observation["head"][:, 0], scores.max(1))
            assert np.allclose(observation["head"][:, 1], -(scores * np.log(scores)).sum(1) / np.log(10), atol=1e-6)
            assert np.array_equal(observation["state"], env.dynamics.state.numpy()) and observation["state"].any()


def test_the_last_dictionary_is_that_after_the_last_step(make):
    env = make(autoreset_mode="SAME_STEP")
    env.reset(seed=0)
    for cell in (1, 2, 3):
        env.step(np.full(3, cell))
    observation, _, terminated, _, infos = env.step(np.full(3, 48))
    assert terminated.all() and not observation["step"].any() and not observation["head"].any() and not observation["patch"].any()
    for last in infos["final_obs"]:
        assert last["step"] == 1 and last["patch"].tolist() == [1, 1] and last["head"].all() and last["state"].any()


def test_rows_that_have_just_begun_show_no_trace_of_the_episode_before(make):
    env = make(autoreset_mode="DISABLED")
    env.reset(seed=0)
    before = env.step(np.full(3, 30))[0]
    after = env.reset(options={"reset_mask": np.array([False, True, False])})[0]
    for key in ("step", "patch", "head", "state"):
        assert not after[key][1].any() and np.array_equal(after[key][[0, 2]], before[key][[0, 2]]) and before[key][1].any()


def test_the_certain_and_the_uncertain_head(make):
    env = make()
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    env.dynamics.scores = torch.stack([torch.eye(10)[0], torch.full((10,), 0.1), torch.full((10,), 0.1)])
    assert np.allclose(env._observe()["head"], [[1, 0], [0.1, 1], [0.1, 1]])


def test_pixels_are_the_frame_at_glance_size(make, clips):
    env = make(observation="pixels")
    observation, infos = env.reset(seed=0)
    for step in range(4):
        frames = torch.stack([clips.frames(clip)[step] for clip in infos["clip"]]).float()
        small = F.interpolate(frames, (24, 24), mode="bilinear", align_corners=False, antialias=True)
        assert observation.dtype == np.uint8 and np.abs(observation - small.numpy()).max() <= 0.5 + 1e-4
        observation, *_ = env.step(np.zeros(3, np.int64))


def averaging(head):
    torch.manual_seed(0)
    return Classifier(replace(TINY, head=head), CLASSES).freeze()


@pytest.mark.parametrize("observation", ["map", "pixels", "dict"])
def test_the_frames_of_a_decision_are_stacked(clips, observation):
    env = AdaFocusEnv(averaging("mean"), clips, observation=observation, video_div=2, bank=False)
    seen = env.reset(options={"clip": 3})[0]
    assert env.observation_space.contains(seen)
    if observation == "pixels":
        single = AdaFocusEnv(averaging("gru"), clips, observation="pixels", bank=False)
        first, second = single.reset(options={"clip": 3})[0], single.step(0)[0]
        assert np.array_equal(seen, np.concatenate([first, second])) and not np.array_equal(first, second)


@pytest.mark.parametrize(("head", "bounds"), [("gru", (-1, 1)), ("linear", (0, 4)), ("mean", (-np.inf, np.inf)), ("max", (0, np.inf))])
def test_states_have_the_bounds_of_their_head(clips, head, bounds):
    env = AdaFocusEnv(averaging(head), clips, observation="dict", bank=False)
    state = env.observation_space["state"]
    assert (state.low.min(), state.high.max()) == bounds
    seen = env.reset(seed=0)[0]
    for _ in range(env.dynamics.num_steps):
        seen = env.step(3)[0]
    assert state.contains(seen["state"])


class WhereAndWhen:
    """A custom observation: the last patch and the step."""

    def __init__(self, features):
        self.space = spaces.Box(0, max(features.num_steps, features.action.size), (3,), np.float32)

    def observe(self, dynamics):
        return torch.from_numpy(np.column_stack([dynamics.boxes[:, :2], dynamics.step_number]).astype(np.float32))


def test_a_custom_observation(make, classifier, clips, bank, monkeypatch):
    env = AdaFocusVecEnv(make(observation=WhereAndWhen, autoreset_mode="SAME_STEP"))
    env.reset()
    assert env.step(np.array([0, 8, 48]))[0].tolist() == [[0, 0, 1], [12, 12, 1], [72, 72, 1]]
    monkeypatch.setitem(OBSERVATIONS, "where and when", WhereAndWhen)
    single = gym.make("AdaFocus-v1", classifier=classifier, clips=clips, bank=bank, observation="where and when")
    single.reset(seed=0)
    assert single.step(8)[0].tolist() == [12, 12, 1]


def test_an_unknown_observation_is_noticed_before_anything_is_built():
    with pytest.raises(InputError, match=r"observation='dcit' is not known; did you mean 'dict'\?"):
        AdaFocusEnv("no such classifier", observation="dcit")
