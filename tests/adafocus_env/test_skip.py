"""Skipping patches, in the dynamics and in every API."""

import gymnasium as gym
import numpy as np
import pytest
import test_vector_env as test_vector
import torch
from conftest import TINY_COST, slow_except
from test_vector_env import APIS, N, assert_equal_values, assert_same, play_single

from adafocus_env.action import ActionError, ContinuousAction, ContinuousSkipAction, GridAction, SkipAction, boxes_of
from adafocus_env.build import build_features
from adafocus_env.classify import SKIPPED
from adafocus_env.dynamics import Dynamics
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.live import LiveFeatures
from adafocus_env.reward import REWARDS
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation.evaluate import classify_actions
from classifiers.errors import InputError
from classifiers.flops import classifier_flops
from classifiers.optimize import PLAIN, with_execution

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("error")]
SKIP = 49
FOCUS_COST = 12**2 * 3 * 9 * 8 + 6**2 * 8 * 9 * 32
CLIPS = np.array([0, 5, 11])
ACTIONS_OF = {"skip": SkipAction, "continuous_skip": ContinuousSkipAction}


@pytest.fixture(params=["live", "bank"])
def features(request, classifier, clips, bank):
    return bank if request.param == "bank" else LiveFeatures(classifier, clips, bank.action)


def dynamics_on(features, **arguments):
    """Return the dynamics at the start of three clips, with the baseline patches 7 and 30 in every step."""
    skipping = {"baseline": 2} if "action" in arguments else {"baseline": 2, "action": SkipAction(features.action)}
    dynamics = Dynamics(features, 3, **{**skipping, **arguments})
    patches = np.broadcast_to([7, 30], dynamics.baseline.shape) if dynamics.baseline.size else dynamics.baseline
    dynamics.restart(CLIPS, patches)
    return dynamics


@torch.no_grad()
def confidences(features, actions, skipped="zeros"):
    """Return the softmax scores of the true class (3, T) after each of the actions (3, T), computed with the head step by step."""
    classifier, found = features.classifier, torch.zeros(actions.shape)
    for row, clip in enumerate(CLIPS):
        state, focus, scores = None, torch.zeros(1, 1, 32), torch.zeros(len(classifier.classes))
        for step, action in enumerate(actions[row]):
            if action != SKIP:
                focus = features.focus_vectors(np.array([[clip]]), np.array([[step]]), np.array([[action]]))
            elif skipped == "zeros":
                focus = torch.zeros(1, 1, 32)
            if action != SKIP or skipped != "none":
                logits, state = classifier.classify(features.glance_vectors(np.array([[clip]]), np.array([[step]])), focus, state)
                scores = logits[0, 0]
            found[row, step] = scores.softmax(-1)[features.clips.labels[clip]]
        if (actions[row] == SKIP).all() and len(actions[row]) == 4:  # a whole video that was skipped
            logits, _ = classifier.classify(features.glance_vectors(np.array([[clip]]), np.arange(4)[None]), torch.zeros(1, 4, 32))
            found[row, -1] = logits[0, -1].softmax(-1)[features.clips.labels[clip]]
    return found.numpy()


ACTIONS = np.array([[SKIP, 3, SKIP, 20], [5, SKIP, SKIP, 48], [SKIP, SKIP, SKIP, SKIP]])


@pytest.mark.parametrize("skipped", SKIPPED)
def test_the_head_gets_what_the_option_says(features, skipped):
    dynamics, expected = dynamics_on(features, skipped=skipped), confidences(features, ACTIONS, skipped)
    for t in range(4):
        outcome = dynamics.step(ACTIONS[:, t])
        assert np.allclose(outcome.confidence, expected[:, t], atol=1e-6, rtol=0)
        assert np.array_equal(outcome.boxes.any(1), ACTIONS[:, t] != SKIP)
        assert np.array_equal(outcome.prediction, dynamics.scores.argmax(-1))
    assert outcome.terminated.all()


def test_the_options_differ_where_a_frame_is_skipped_and_agree_where_all_are(bank):
    every = {name: confidences(bank, ACTIONS, name) for name in SKIPPED}
    for one, other in (("zeros", "last"), ("last", "none"), ("none", "zeros")):
        assert (np.abs(every[one] - every[other])[:2, 2] > 1e-4).all()
        assert np.allclose(every[one][2, -1], every[other][2, -1], atol=1e-6)


@pytest.mark.parametrize("skipped", SKIPPED)
def test_rows_that_run_by_themselves_skip_alike(bank, skipped):
    together, alone = dynamics_on(bank, skipped=skipped), dynamics_on(bank, skipped=skipped)
    for t in range(4):
        expected = together.step(ACTIONS[:, t])
        for rows in (np.array([1]), np.array([2, 0])):
            outcome = alone.step(ACTIONS[rows, t], rows)
            assert np.allclose(outcome.confidence, expected.confidence[rows], atol=1e-6)
            assert outcome.multiply_adds.tolist() == expected.multiply_adds[rows].tolist()
    together.restart(CLIPS, together.baseline)
    fresh = dynamics_on(bank, skipped=skipped)
    assert np.array_equal(together.step(ACTIONS[:, 0]).confidence, fresh.step(ACTIONS[:, 0]).confidence)  # nothing is left over


@pytest.mark.parametrize("skipped", SKIPPED)
def test_scores_of_whole_clips_are_those_of_the_steps(features, skipped):
    expected, labels = confidences(features, ACTIONS, skipped), features.clips.labels[CLIPS]
    scores = classify_actions(features, np.where(ACTIONS == SKIP, 0, ACTIONS), ACTIONS != SKIP, skipped, CLIPS)
    assert np.allclose(torch.from_numpy(scores).softmax(-1)[np.arange(3), :, labels], expected, atol=1e-6)
    every = np.full((len(features.clips), 4), 3)
    assert classify_actions(features, every, every > 0, skipped).shape == (len(features.clips), 4, 10)


@pytest.mark.slow
def test_the_baseline_of_random_is_over_patches_alone_from_the_same_state(features):
    for baseline, patches in ((2, [7, 30]), ("all", range(49))):
        for skipped in SKIPPED if baseline == 2 else ["none"]:
            dynamics = dynamics_on(features, baseline=baseline, cost_weight=0.1, skipped=skipped)
            for t in range(4):
                outcome = dynamics.step(ACTIONS[:, t])
                tracks = (np.column_stack([ACTIONS[:, :t], np.full(3, patch)]) for patch in patches)
                others = [confidences(features, track, skipped)[:, -1] for track in tracks]
                assert np.allclose(outcome.baseline, np.mean(others, axis=0), atol=1e-6, rtol=0)
                assert np.allclose(outcome.reward, outcome.confidence - outcome.baseline - outcome.penalty, atol=1e-6, rtol=0)


def test_before_any_head_step_all_classes_have_the_same_score(bank):
    outcome = dynamics_on(bank, skipped="none", reward="previous").step(ACTIONS[:, 0])
    assert outcome.confidence[[0, 2]].tolist() == pytest.approx([0.1, 0.1]) and not outcome.previous.any()


@pytest.mark.parametrize("skipped", SKIPPED)
@pytest.mark.parametrize("reward", [name for name, reward in REWARDS.items() if not reward.alone])
def test_the_penalty_is_the_share_of_multiply_adds(bank, reward, skipped):
    free, paid = (dynamics_on(bank, reward=reward, cost_weight=cost_weight, skipped=skipped) for cost_weight in (0, 0.3))
    head = classifier_flops(bank.classifier).head
    for t in range(4):
        one, other = free.step(ACTIONS[:, t]), paid.step(ACTIONS[:, t])
        costs = np.where(ACTIONS[:, t] == SKIP, TINY_COST - FOCUS_COST - (head if skipped == "none" else 0), TINY_COST)
        costs[2] += 4 * head if skipped == "none" and t == 3 else 0  # the head answers from the glances of all four frames
        assert other.multiply_adds.tolist() == costs.tolist()
        assert np.allclose(other.penalty, 0.3 * other.multiply_adds / TINY_COST, rtol=1e-6, atol=0) and not one.penalty.any()
        assert np.allclose(one.reward - other.reward, other.penalty, atol=1e-6, rtol=0)


def test_only_patches_that_are_not_skipped_reach_the_focuser(classifier, clips):
    live = LiveFeatures(with_execution(classifier, PLAIN), clips, GridAction(7, 96, 24))
    dynamics, calls = dynamics_on(live, reward="confidence"), []
    handle = classifier.focuser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    try:
        for t in range(4):
            dynamics.step(ACTIONS[:, t])
    finally:
        handle.remove()
    assert calls == [1, 1, 2]  # one call for all that look, none where all skip


@pytest.mark.parametrize("skipped", SKIPPED)
def test_a_search_for_the_best_action_may_skip(features, skipped):
    dynamics = dynamics_on(features, skipped=skipped)
    for t in range(4):
        every, track = dynamics.confidence_of_candidates(), np.column_stack([ACTIONS[:, :t], np.full(3, SKIP)])
        assert every.shape == (3, 50)
        assert np.allclose(every[:, SKIP], confidences(features, track, skipped)[:, -1], atol=1e-6)
        dynamics.step(ACTIONS[:, t])


def test_skipping_is_an_action_that_has_no_patch():
    action = SkipAction(GridAction(7, 96, 24))
    assert action.space == gym.spaces.Discrete(50) and action.patch_action.num_cells == 49
    assert boxes_of(action, np.array([48, SKIP])).tolist() == [[72, 72, 96, 96], [0, 0, 0, 0]]
    assert action.check([0, SKIP], 2).tolist() == [0, SKIP]
    assert action.sample(np.random.default_rng(0), (5000,)).max() == 48
    assert action.nearest(np.array([95.0, 95.0])) == 48
    with pytest.raises(ActionError, match=r"action 50 \(clip 1\) is outside the space; choose a cell from 0 to 48, or 49 to skip"):
        action.check([0, 50], 2)


def test_a_third_coordinate_skips():
    action = ContinuousSkipAction(ContinuousAction(96, 24))
    assert action.space == gym.spaces.Box(0, 1, (3,), np.float32) and action.num_cells is None
    assert action.patch_mask(np.array([[0, 0, 0.49], [0, 0, 0.5]], np.float32)).tolist() == [True, False]
    assert boxes_of(action, np.array([[1, 1, 0], [1, 1, 1]], np.float32)).tolist() == [[72, 72, 96, 96], [0, 0, 0, 0]]
    sampled = action.sample(np.random.default_rng(0), (50, 2))
    assert sampled.shape == (50, 2, 3) and sampled.dtype == np.float32 and action.patch_mask(sampled).all() and sampled[..., :2].std() > 0.2
    assert action.patch_mask(action.candidates).tolist() == [True] * 49 + [False]
    with pytest.raises(ActionError, match=r"shape \(1, 2\); give one location and whether to skip it \(row, column, skip\) .* \(1, 3\)"):
        action.check([[0.5, 0.5]], 1)
    with pytest.raises(ActionError, match=r"action \[0\.5 0\.5 1\.5\] \(clip 0\) is outside the space; .* must lie in \[0, 1\]"):
        action.check([[0.5, 0.5, 1.5]], 1)


@pytest.mark.parametrize("skipped", SKIPPED)
def test_places_and_cells_that_are_the_same_patches_skip_alike(classifier, clips, bank, skipped):
    live = LiveFeatures(classifier, clips, ContinuousAction(96, 24))
    cells = dynamics_on(bank, skipped=skipped, reward="confidence")
    locations = dynamics_on(live, skipped=skipped, reward="confidence", action=ContinuousSkipAction(live.action))
    for t in range(4):
        corners = bank.action.corners_of(np.where(ACTIONS[:, t] == SKIP, 0, ACTIONS[:, t])) + 0.5
        actions = np.column_stack([corners / 72, ACTIONS[:, t] == SKIP]).astype(np.float32).clip(0, 1)
        one, other = cells.step(ACTIONS[:, t]), locations.step(actions)
        assert np.allclose(one.confidence, other.confidence, atol=1e-5) and one.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize("kind", ["skip", "continuous_skip"])
def test_without_skips_the_environment_equals_that_without_skipping(classifier, clips, bank, kind):
    features = bank if kind == "skip" else LiveFeatures(classifier, clips, ContinuousAction(96, 24))
    sampled = features.action.sample(np.random.default_rng(0), (4, 3))
    actions = features.action, ACTIONS_OF[kind](features.action)
    plain, skipping = (dynamics_on(features, action=each, reward="confidence") for each in actions)
    for chosen in sampled:
        patch_action = chosen if kind == "skip" else np.concatenate([chosen, np.zeros((3, 1), np.float32)], axis=1)
        one, other = plain.step(chosen), skipping.step(patch_action)
        assert np.array_equal(one.confidence, other.confidence) and one.boxes.tolist() == other.boxes.tolist()
        assert one.multiply_adds.tolist() == other.multiply_adds.tolist()


# The APIs


QUICK = [(False, "zeros"), (True, "zeros")]


@pytest.fixture
def make(classifier, clips, bank):
    def make(num_envs=N, **arguments):
        return AdaFocusVectorEnv(num_envs, classifier, clips, **{"bank": bank, "observation": "dict", "action": "skip", **arguments})

    return make


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(("live", "skipped"), slow_except(QUICK, [*QUICK, (False, "last"), (False, "none")]))
def test_every_api_skips_alike(make, classifier, clips, bank, monkeypatch, api, live, skipped):
    def actions_at(step):
        sampled = np.random.default_rng(step).integers(49, size=N)
        return np.where(np.random.default_rng(-step % 1000).random(N) < 0.5, SKIP, sampled)

    monkeypatch.setattr(test_vector, "actions_at", actions_at)
    arguments = {"observation": "dict", "cost_weight": 0.2, "baseline": 2, "bank": not live and bank, "skipped": skipped}
    records = APIS[api](make, **arguments)
    for row in range(N):
        expected = play_single(classifier, clips, row, action="skip", **arguments)
        assert {True, False} == {bool(step[5]["box"].any()) for step in expected if step[5] and "box" in step[5]}
        assert_same(records[row], expected, tolerance=1e-6)


def test_a_bank_of_the_grid_serves_the_id_that_skips(classifier, clips, bank):
    env = gym.make_vec("AdaFocusSkip-v1", 2, "vector_entry_point", classifier=classifier, clips=clips, bank=bank)
    assert env.dynamics.features is bank and env.dynamics.cost_weight == 0.05 and env.single_action_space == gym.spaces.Discrete(50)
    env.reset(seed=0)
    assert env.step(np.array([SKIP, 3]))[4]["box"].any(1).tolist() == [False, True]


def test_pictures_say_that_a_frame_was_skipped(classifier, clips, bank):
    env = AdaFocusEnv(classifier, clips, bank=bank, action="skip", render_mode="rgb_array")
    env.reset(options={"clip": 2})
    begun = env.render()
    env.step(SKIP)
    assert np.array_equal(env.render()[:288], begun[:288]) and not np.array_equal(env.render()[288:], begun[288:])


def test_masks_keep_one_frame(make):
    env = make(autoreset_mode="SAME_STEP")
    env.reset(seed=0)
    for step in range(4):
        masks = env.action_masks()
        assert masks.shape == (N, 50) and masks[:, :SKIP].all()
        assert masks[:, SKIP].tolist() == ([True, True, False] if step == 3 else [True] * N)
        env.step(np.array([5 if step == 1 else SKIP, 7 if step == 2 else SKIP, SKIP]))
    assert env.action_masks().all()


def test_every_api_has_masks(make, classifier, clips, bank):
    rows = AdaFocusVecEnv(make(autoreset_mode="SAME_STEP"))
    rows.reset()
    assert [mask.shape for mask in rows.env_method("action_masks")] == [(50,)] * N
    assert len(rows.env_method("action_masks", indices=[0, 2])) == 2 and rows.has_attr("action_masks")
    assert AdaFocusEnv(classifier, clips, bank=bank).action_masks().tolist() == [True] * 49
    with pytest.raises(InputError, match="action_masks: continuous actions have no masks; use action='grid' or action='skip'"):
        AdaFocusEnv(classifier, clips, action="continuous", bank=False).action_masks()


def test_maskable_ppo_learns_with_them(make):
    contrib = pytest.importorskip("sb3_contrib")
    env = AdaFocusVecEnv(make(autoreset_mode="SAME_STEP", observation="vector"))
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    model.learn(24)
    assert model.num_timesteps == 24


# Bad input


@pytest.mark.parametrize("cost_weight", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_invalid_cost_weights(make, cost_weight):
    env = make()
    with pytest.raises(
        InputError, match=f"cost_weight must be a number of at least 0, in units of the reward, got {cost_weight!r}"
    ):
        env.dynamics.set_cost_weight(cost_weight)
    with pytest.raises(InputError, match=f"cost_weight must be a number of at least 0, got {cost_weight!r}"):
        make(cost_weight=cost_weight)


def test_an_unknown_option(make, bank):
    with pytest.raises(InputError, match=r"skipped must be 'zeros' or 'last' or 'none', got 'zero'; did you mean 'zeros'\?"):
        make(skipped="zero")
    with pytest.raises(InputError, match="skipped='repeat' is not known"):
        classify_actions(bank, np.zeros((len(bank.clips), 4), int), np.ones((len(bank.clips), 4), bool), "repeat")


def test_skipping_on_an_id_without_it(classifier, clips, bank):
    env = AdaFocusEnv(classifier, clips, bank=bank)
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"action 49 \(clip 0\) is outside the space; choose a cell from 0 to 48, row-major"):
        env.step(SKIP)


def test_an_unknown_kind_of_action(classifier, clips):
    with pytest.raises(InputError, match=r"action must be 'grid' or .*, got 'skipp'; did you mean 'skip'\?"):
        build_features(classifier, clips, action="skipp", bank=False)


# A custom kind of action


class Corners:
    """A custom kind of action: only the four corners of the frame."""

    def __init__(self, grid, size, patch_size):
        self.size, self.patch_size, self.num_cells = size, patch_size, 4
        self.space, self.candidates, self.patch_action = gym.spaces.Discrete(4), np.arange(4), self

    def check(self, actions, count):
        return np.asarray(actions).reshape(count)

    def patch_mask(self, actions):
        return np.ones(actions.shape, bool)

    def corners_of(self, actions):
        return np.stack([actions // 2, actions % 2], -1) * (self.size - self.patch_size)

    def nearest(self, points):
        return np.rint(points / self.size).astype(np.int64) @ [2, 1]

    def sample(self, rng, shape):
        return rng.integers(4, size=shape)


def test_a_custom_kind_of_action(classifier, clips):
    env = AdaFocusVectorEnv(2, classifier, clips, action=Corners, bank=True, baseline="all")
    env.reset(seed=0)
    outcome = env.step(np.array([1, 3]))
    assert outcome[4]["box"].tolist() == [[0, 72, 24, 96], [72, 72, 96, 96]]
    live = AdaFocusVectorEnv(2, classifier, clips, action=Corners, bank=False, baseline="all")
    live.reset(seed=0)
    assert_equal_values(outcome, live.step(np.array([1, 3])))
