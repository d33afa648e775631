"""Decisions for several frames, and continuous locations (the Something-Something family), are compared with computations by hand."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TASK, TINY
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch.nn import functional as F

import adafocus_env  # noqa: F401  # registers the ids
from adafocus_env.action import ActionError, ContinuousAction, GridAction
from adafocus_env.build import open_clips
from adafocus_env.demo.videos import CLASSES, demo
from adafocus_env.dynamics import Dynamics
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank, check_bank
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation.inference import infer, policy_flops
from agents.policies.baselines import CentrePatch, GaussianPatch, GreedyOracle, LearnedPolicy, Oracle, RandomPatch
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import video_flops

pytestmark = pytest.mark.numerical

FRAMES, GLANCES = 8, 4
PLACES = np.array([[0.0, 1.0], [0.31, 0.77], [0.5, 0.5], [0.999, 0.01]], np.float32)


@pytest.fixture(scope="module")
def averaging():
    """Return a classifier with temporal shift whose head averages scores."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        classifier = Classifier(replace(TINY, head="mean", shift=0.125, shift_place="block"), CLASSES)
        with torch.no_grad():
            classifier.head.fc.weight.mul_(10)
    return classifier.freeze()


@pytest.fixture(scope="module")
def clips():
    """Return twelve clips with eight frames for the focuser and four separate frames for the glancer."""
    return open_clips(demo(TASK, val=0.0), "train", num_frames=FRAMES, glance_frames=GLANCES, size=96)


def shifted_trunk(network, images):
    """Compute the two layers of a tiny backbone, with one of eight channels shifted in each direction between them."""
    before = network.features[0](images)
    after = before.clone()
    for frame in range(len(images)):
        after[frame, 0] = before[frame + 1, 0] if frame + 1 < len(images) else 0
        after[frame, 1] = before[frame - 1, 1] if frame > 0 else 0
    for part in network.features[1]:  # one by one: called as a whole it would shift by itself
        after = part(after)
    return after


def by_hand(classifier, clips, clip, corners):
    """Compute the scores after every decision, and the decisions' glance maps and vectors, with the bare layers."""
    decisions = len(corners)
    frames, seen = classifier.normalise(clips.frames(clip)), classifier.normalise(clips.glancer_frames(clip))
    maps = shifted_trunk(classifier.glancer, F.interpolate(seen, (24, 24), mode="bilinear", align_corners=False, antialias=True))
    vectors = maps.mean((2, 3))
    glanced = classifier.glancer.fc(vectors)
    each, look = FRAMES // decisions, GLANCES // decisions
    patched, scores = [], []
    for decision, (top, left) in enumerate(corners):
        patches = frames[decision * each : (decision + 1) * each, :, top : top + 24, left : left + 24]
        patched += list(classifier.head.fc(shifted_trunk(classifier.focuser, patches).amax((2, 3))))
        scores.append(torch.stack(patched).mean(0) + glanced[: (decision + 1) * look].mean(0))
    stacked = torch.stack([maps[d * look : (d + 1) * look].flatten(0, 1) for d in range(decisions)])
    return torch.stack(scores), stacked, vectors.unflatten(0, (decisions, look)).mean(1)


def corners(action, actions):
    return [(int(y), int(x)) for y, x in action.corners_of(actions)]


@pytest.fixture(params=[1, 2, 4])
def decisions(request):
    return request.param


@pytest.mark.parametrize("kind", ["bank", "live"])
@pytest.mark.parametrize("continuous", [False, True])
def test_every_decision_equals_that_by_hand(averaging, clips, decisions, kind, continuous):
    action = ContinuousAction(96, 24) if continuous else GridAction(5, 96, 24)
    features = (MemoryBank if kind == "bank" else LiveFeatures)(averaging, clips, action, video_div=decisions)
    chosen = PLACES[:decisions] if continuous else np.array([0, 24, 7, 13])[:decisions]
    with torch.no_grad():
        scores, maps, vectors = by_hand(averaging, clips, 5, corners(action, chosen))
    assert features.num_steps == decisions and features.map_shape == tuple(maps.shape[1:])
    dynamics = Dynamics(features, 2, reward="confidence")
    dynamics.restart(np.array([5, 0]), np.zeros((2, decisions, 0, *action.space.shape)))
    for step in range(decisions):
        torch.testing.assert_close(features.glance_maps(np.array([5]), np.array([step]))[0], maps[step])
        torch.testing.assert_close(features.glance_vectors(np.array([5]), np.array([step]))[0], vectors[step])
        outcome = dynamics.step(np.stack([chosen[step]] * 2))
        assert outcome.confidence[0] == pytest.approx(scores[step].softmax(-1)[clips.labels[5]].item(), abs=1e-5)
        assert outcome.prediction[0] == scores[step].argmax()
        assert outcome.terminated.tolist() == [step == decisions - 1] * 2


def test_the_reward_compares_with_random_places_from_the_same_state(averaging, clips, decisions):
    action = ContinuousAction(96, 24)
    dynamics = Dynamics(LiveFeatures(averaging, clips, action, video_div=decisions), 1, reward="random", baseline=3)
    episode = dynamics.sample_episode(np.random.default_rng(0), 7)
    assert episode.baseline.shape == (decisions, 3, 2) and episode.baseline.dtype == np.float32
    dynamics.start(np.zeros(1, np.int64), [episode])
    for step in range(decisions):
        outcome = dynamics.step(PLACES[step : step + 1])
        compared = []
        for other in episode.baseline[step]:
            with torch.no_grad():
                tried = np.stack([*PLACES[:step], *[other] * (decisions - step)])
                scores, _, _ = by_hand(averaging, clips, 7, corners(action, tried))
            compared.append(scores[step].softmax(-1)[clips.labels[7]].item())
        assert outcome.baseline[0] == pytest.approx(np.mean(compared), abs=1e-5)
        assert outcome.reward[0] == pytest.approx(outcome.confidence[0] - np.mean(compared), abs=1e-5)


def test_all_faces_agree(averaging, clips, decisions):
    shared = {"clips": clips, "video_div": decisions, "action": "continuous", "bank": True}
    vector = {
        mode: AdaFocusVectorEnv(3, averaging, autoreset_mode=mode, **shared) for mode in ("NEXT_STEP", "SAME_STEP", "DISABLED")
    }
    single = [AdaFocusEnv(averaging, **shared) for _ in range(3)]
    sb3 = AdaFocusVecEnv(AdaFocusVectorEnv(3, averaging, autoreset_mode="SAME_STEP", **shared))
    sb3.seed(9)
    first = {mode: env.reset(seed=9)[0] for mode, env in vector.items()} | {"sb3": sb3.reset()}
    for observations in first.values():
        assert np.array_equal(observations, np.stack([env.reset(seed=9 + i)[0] for i, env in enumerate(single)]))
    actions = np.random.default_rng(0).random((decisions, 3, 2), np.float32)
    for step in range(decisions):
        alone = [env.step(actions[step, i]) for i, env in enumerate(single)]
        for env in vector.values():
            observations, rewards, terminated, truncated, info = env.step(actions[step])
            assert terminated.tolist() == [step == decisions - 1] * 3 and not truncated.any()
            assert np.allclose(rewards, [one[1] for one in alone], atol=1e-6)
            last = env.autoreset_mode is AutoresetMode.SAME_STEP and terminated.all()
            shown = np.stack(info["final_obs"]) if last else observations
            assert np.array_equal(shown, np.stack([one[0] for one in alone]))
            boxes = info["final_info"]["box"] if last else info["box"]
            assert np.array_equal(boxes, np.stack([one[4]["box"] for one in alone]))
        assert np.allclose(sb3.step(actions[step])[1], [one[1] for one in alone], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*(Box observation space|image|normalize).*")
def test_the_registered_id_passes_the_checkers(averaging, clips):
    env = gym.make("AdaFocusContinuous-v1", classifier=averaging, clips=clips, video_div=2)
    assert env.action_space == gym.spaces.Box(0, 1, (2,), np.float32)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)
    vector = gym.make_vec("AdaFocusContinuous-v1", num_envs=2, vectorization_mode="vector_entry_point", classifier=averaging, clips=clips)
    assert vector.action_space.shape == (2, 2) and vector.dynamics.num_steps == 1


def test_the_recurrent_classifier_takes_continuous_actions_too(classifier):
    same = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    env = AdaFocusEnv(classifier, same, action="continuous")
    grid = AdaFocusEnv(classifier, same)
    env.reset(seed=3), grid.reset(seed=3)
    for cell in (0, 24, 48, 10):
        place = ContinuousAction(96, 24).candidates[cell]
        ours, theirs = env.step(place), grid.step(cell)
        assert np.array_equal(ours[4]["box"], theirs[4]["box"])
        assert ours[4]["confidence"] == pytest.approx(theirs[4]["confidence"], abs=1e-6)


def test_pictures_show_a_frame_of_the_decision(averaging, clips):
    env = AdaFocusEnv(averaging, clips, video_div=2, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(24)
    assert env.render().shape == before.shape and not np.array_equal(env.render(), before)


def make_policy(continuous, decisions):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PolicyArchitecture((16 * GLANCES // decisions, 6, 6), channels=4, features=10, hidden=8, batch_norm=continuous)
        return PolicyNetwork(network, None if continuous else 5).eval().requires_grad_(False)


@pytest.mark.parametrize("continuous", [False, True])
def test_one_pass_equals_the_environment_step_by_step(averaging, clips, decisions, continuous):
    policy = make_policy(continuous, decisions)
    action = ContinuousAction(96, 24) if continuous else GridAction(5, 96, 24)
    features = LiveFeatures(averaging, clips, action, video_div=decisions)
    chosen = np.array([2, 9, 4])
    frames, seen = (averaging.normalise(torch.stack([take(int(c)) for c in chosen])) for take in (clips.frames, clips.glancer_frames))
    found = infer(averaging, policy, frames, seen)
    assert found.actions.shape == (3, decisions, *action.space.shape) and found.boxes.shape == (3, FRAMES, 4)
    assert found.logits.shape == (3, FRAMES, 10) and found.patch_mask.all()
    assert found.macs.tolist() == [video_flops(averaging, FRAMES, GLANCES, decisions, policy_step=policy_flops(policy)).total()] * 3
    dynamics, player = Dynamics(features, 3, reward="confidence"), LearnedPolicy(policy, features)
    dynamics.restart(chosen, np.zeros((3, decisions, 0, *action.space.shape)))
    each = FRAMES // decisions
    for step in range(decisions):
        actions, _ = player.predict(np.stack([chosen, np.full(3, step)], 1))
        assert np.allclose(actions, found.actions[:, step])
        outcome = dynamics.step(actions)
        assert (found.boxes[:, step * each : (step + 1) * each].numpy() == outcome.boxes[:, None]).all()
        scores = found.logits[:, (step + 1) * each - 1].softmax(-1)[torch.arange(3), torch.from_numpy(clips.labels[chosen])]
        assert np.allclose(outcome.confidence, scores, atol=1e-5)


def test_baselines_choose_places(averaging, clips):
    features = LiveFeatures(averaging, clips, ContinuousAction(96, 24), video_div=2)
    references = np.array([[0, 0], [3, 1], [3, 0]])
    for player in (RandomPatch(features.action, 0), GaussianPatch(features.action, 0), CentrePatch(features.action), Oracle(features)):
        places, _ = player.predict(references)
        assert features.action.check(places, 3).shape == (3, 2)
    assert corners(features.action, CentrePatch(features.action).predict(references)[0]) == [(36, 36)] * 3
    places, _ = Oracle(features).predict(references)
    reachable = np.clip(clips.truth(3)[4:].mean(0), 11.5, 83.5)
    assert np.abs(np.array(corners(features.action, places)[1]) + 11.5 - reachable).max() <= 0.5
    dynamics = Dynamics(features, 1, reward="confidence")
    dynamics.restart(np.array([3]), np.zeros((1, 2, 0, 2)))
    place, _ = GreedyOracle(dynamics).predict(references[2:])
    assert dynamics.step(place).confidence[0] == pytest.approx(dynamics_best(features), abs=1e-5)


def dynamics_best(features):
    """Return the highest confidence of any candidate in the first decision of clip 3."""
    best = Dynamics(features, 49, reward="confidence")
    best.restart(np.full(49, 3), np.zeros((49, 2, 0, 2)))
    return best.step(features.action.candidates).confidence.max()


def test_random_places_reach_every_corner_alike():
    action = ContinuousAction(8, 6)
    found, counts = np.unique(action.corners_of(action.sample(np.random.default_rng(0), (3000,)))[:, 0], return_counts=True)
    assert found.tolist() == [0, 1, 2] and counts.min() > 900
    assert action.corners_of(np.array([1.0, 0.0], np.float32)).tolist() == [2, 0]
    for size, patch_size in [(224, 144), (224, 224), (96, 24), (97, 1)]:
        action, wanted = ContinuousAction(size, patch_size), np.arange(size - patch_size + 1)
        middles = np.stack([wanted, wanted], 1) + (patch_size - 1) / 2
        assert np.array_equal(action.corners_of(action.nearest(middles))[:, 0], wanted)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[0.5, 1.01]], r"action \[0.5 +1.01\] \(clip 0\) is outside the space; all coordinates must lie in \[0, 1\]"),
        ([[float("nan"), 0.5]], "is outside the space"),
        ([[-1e-6, 0.5]], "is outside the space"),
        ([0.5, 0.5], r"actions have shape \(2,\); give one location \(row, column\) for each of the 1 clips"),
        ([["x", 0.5]], "actions must be an array of numbers"),
    ],
)
def test_places_outside_the_space_are_refused(actions, message):
    with pytest.raises(ActionError, match=message):
        ContinuousAction(96, 24).check(actions, 1)


@pytest.mark.parametrize(
    ("video_div", "allowed"),
    [(0, "an integer of at least 1 or null"), (3, "1, 2 or 4 decisions per video"), (8, "1, 2 or 4"), (-1, "an integer of at least 1")],
)
def test_other_numbers_of_decisions_are_refused(averaging, clips, video_div, allowed):
    with pytest.raises(InputError, match=rf"video_div must be {allowed}.*, got {video_div}"):
        AdaFocusEnv(averaging, clips, video_div=video_div)


def test_what_does_not_fit_together_is_refused(averaging, classifier, clips):
    same = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    six = open_clips(demo(TASK, val=0.0), "train", num_frames=6, glance_frames=4, size=96)
    action = ContinuousAction(96, 24)
    message = "video_div=2 needs a classifier with the head 'mean' or 'separate_mean', got 'gru'; leave video_div out"
    with pytest.raises(InputError, match=message):
        LiveFeatures(classifier, same, action, video_div=2)
    with pytest.raises(InputError, match=r"the clips have 4 frames for the glancer and 8 for the focuser; .* set glance_frames=0"):
        LiveFeatures(classifier, clips, action)
    with pytest.raises(InputError, match="video_div=4 does not divide num_frames=6"):
        LiveFeatures(averaging, six, action, video_div=4)
    with pytest.raises(InputError, match=r"baseline='all' needs a grid: .* choose a number, such as baseline=1"):
        AdaFocusEnv(averaging, clips, action="continuous", baseline="all")
    with pytest.raises(InputError, match=r"action must be 'grid' or .*, got 'polar'"):
        AdaFocusEnv(averaging, clips, action="polar")
    bank = MemoryBank(averaging, clips, action, video_div=2)
    with pytest.raises(InputError, match="the bank belongs to another patch geometry and another video_div"):
        check_bank(bank, averaging, clips, GridAction(7, 96, 24), 4)
    with pytest.raises(InputError, match=r"the policy chooses cells of a 5×5 grid .*, the environment offers continuous locations"):
        LearnedPolicy(make_policy(False, 2), bank)
    frames = torch.zeros(1, FRAMES, 3, 96, 96)
    with pytest.raises(InputError, match="the policy reads 2 glances per decision: 3 glances and 8 frames are not divisible"):
        infer(averaging, make_policy(True, 2), frames, frames[:, :3])
    with pytest.raises(InputError, match="glance_frames are of 2 videos, frames of 1"):
        infer(averaging, make_policy(True, 2), frames, torch.zeros(2, GLANCES, 3, 96, 96))
    with pytest.raises(InputError, match="this classifier needs the same frames for both networks, got 8 frames and 4 glances"):
        infer(classifier, make_policy(False, 4), frames, frames[:, :4])
