"""The rewards of all actions, compared with copies of the environment that take each action."""

import copy
import itertools

import gymnasium as gym
import numpy as np
import pytest
from conftest import random_classifier, slow_except
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from adafocus_env.action import ContinuousAction
from adafocus_env.classify import SKIPPED
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.reward import REWARDS, Reward
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import InputError

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("error")]
N, T, SKIP, SEED = 3, 4, 49, 5


@pytest.fixture
def make(classifier, clips, bank):
    def make(num_envs=N, **arguments):
        defaults = {"bank": bank, "observation": "vector", "full_information": True, "autoreset_mode": "DISABLED"}
        return AdaFocusVectorEnv(num_envs, classifier, clips, **{**defaults, **arguments})

    return make


@pytest.fixture(scope="module")
def locations(clips):
    """Return a bank for continuous locations, which stores only glances."""
    return MemoryBank(random_classifier(), clips, ContinuousAction(96, 24))


def played(env, actions, every=7):
    """Return the rewards of every seventh action (T, N, A / 7) from the infos, and those of copies of the environment that take it."""
    env.reset(seed=SEED)
    reported, by_copies = [], []
    for action in actions:
        before = copy.deepcopy(env)
        info = env.step(action)[-1]
        assert info["_action_rewards"].all()
        candidates = info.get("candidates", np.arange(info["action_rewards"].shape[1])[None].repeat(env.num_envs, 0))
        assert info["action_rewards"].shape == (env.num_envs, len(env.dynamics.alternatives))
        reported.append(np.asarray(info["action_rewards"])[:, ::every])
        taken = [np.asarray(copy.deepcopy(before).step(each)[1]) for each in candidates[:, ::every].swapaxes(0, 1)]
        by_copies.append(np.stack(taken, axis=1))
    return np.array(reported), np.array(by_copies)


ACTIONS = [[3, 40, 7], [48, 0, 12], [6, 6, 30], [21, 22, 23]]
WITH_SKIPS = {
    "some": [[SKIP, 3, SKIP], [5, SKIP, SKIP], [SKIP, 9, SKIP], [7, SKIP, SKIP]],
    "all": [[SKIP] * N] * T,
}  # fmt: skip
WITH_A_COST = [
    (reward, baseline, actions, skipped)
    for reward, baseline in [("random", "all"), ("padding", 1), ("log_confidence", 2), ("previous", 1)]
    for actions, skipped in itertools.product(WITH_SKIPS, SKIPPED)
]


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize(("reward", "baseline"), [*((reward, 2) for reward in REWARDS), ("random", "all"), ("log_confidence", "all")])
def test_cells_get_what_a_copy_that_chooses_it_gets(make, reward, baseline, output):
    reported, by_copies = played(make(reward=reward, baseline=baseline, output=output, cost_weight=0.1), ACTIONS)
    assert reported.shape == (T, N, 7) and np.ptp(reported) > 0.01
    assert np.allclose(reported, by_copies, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("reward", "baseline", "actions", "skipped"),
    slow_except([case for case in WITH_A_COST if case[0] == "random" or case[2:] == ("some", "zeros")], WITH_A_COST),
)
def test_skipping_is_among_them_with_its_cost(make, reward, baseline, actions, skipped):
    """In the last step of a clip without a patch, skipping has another cost, and the head classifies the glances."""
    env = make(action="skip", reward=reward, baseline=baseline, cost_weight=0.3, skipped=skipped)
    reported, by_copies = played(env, WITH_SKIPS[actions])
    assert reported.shape == (T, N, 8)
    assert np.allclose(reported, by_copies, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("action", ["continuous", "continuous_skip"])
@pytest.mark.parametrize("reward", ["random", "padding"])
def test_locations_are_sampled(locations, clips, action, reward):
    env = AdaFocusVectorEnv(
        N, locations.classifier, clips, bank=locations, action=action, reward=reward, baseline=2, cost_weight=0.2,
        full_information=5, autoreset_mode="DISABLED",
    )  # fmt: skip
    skips = action == "continuous_skip"
    actions = np.random.default_rng(0).random((T, N, 2 + skips), np.float32)
    reported, by_copies = played(env, actions, every=1)
    assert np.allclose(reported, by_copies, atol=2e-6, rtol=1e-5)
    candidates = env.step(actions[0])[-1]["candidates"] if env.reset(seed=SEED) else None
    assert len(np.unique(candidates[:, :5, :2].reshape(-1, 2), axis=0)) == N * 5
    if skips:
        assert (candidates[:, -1, 2] >= 0.5).all() and (candidates[:, :-1, 2] < 0.5).all()


@pytest.mark.parametrize(("action", "request_"), [("grid", True), ("continuous", 4)])
def test_nothing_else_changes(classifier, clips, action, request_):
    """Equal seeds result in equal episodes with and without full information, even if candidates are sampled."""
    one, other = (
        AdaFocusEnv(classifier, clips, action=action, baseline=2, full_information=request, observation="dict", bank=action == "grid")
        for request in (False, request_)
    )
    assert one.observation_space == other.observation_space
    actions = np.random.default_rng(0)
    for episode in range(3):
        for env in (one, other):
            env.reset(seed=None if episode else SEED)
        for _ in range(T):
            taken = int(actions.integers(49)) if action == "grid" else actions.random(2, np.float32)
            (first, reward, *_, info), (second, same, *_, more) = one.step(taken), other.step(taken)
            assert set(more) - set(info) == ({"action_rewards"} if action == "grid" else {"action_rewards", "candidates"})
            assert reward == pytest.approx(same, abs=2e-6) and info["clip"] == more["clip"]
            assert all(np.allclose(first[key], second[key], atol=2e-6) for key in first)


def test_all_apis_report_the_same(make, classifier, clips, bank):
    vector = make()
    vector.reset(seed=SEED)
    adapted = VecMonitor(AdaFocusVecEnv(make(autoreset_mode="SAME_STEP")))
    adapted.seed(SEED)
    adapted.reset()
    arguments = {"bank": bank, "full_information": True}
    single = [AdaFocusEnv(classifier, clips, **arguments) for _ in range(N)]
    dummy = DummyVecEnv([lambda: AdaFocusEnv(classifier, clips, **arguments)] * N)
    dummy.seed(SEED)
    dummy.reset()
    for row, env in enumerate(single):
        env.reset(seed=SEED + row)
    for actions in ACTIONS:
        expected = vector.step(actions)[-1]["action_rewards"]
        infos = adapted.step(np.array(actions))[-1]
        dummy.step(np.array(actions))
        by_row = [env.step(action)[-1]["action_rewards"] for env, action in zip(single, actions, strict=True)]
        for found in (
            vector.action_rewards, adapted.get_attr("action_rewards"), dummy.get_attr("action_rewards"), by_row,
            [env.unwrapped.action_rewards for env in single], [info["action_rewards"] for info in infos],
        ):  # fmt: skip
            assert np.allclose(np.stack(found), expected, atol=2e-6), "also of episodes that have ended"


def test_ended_rows_report_theirs_in_their_final_info(make):
    env = make(autoreset_mode="SAME_STEP")
    env.reset(seed=SEED)
    for actions in ACTIONS:
        info = env.step(actions)[-1]
    assert "action_rewards" not in info and np.array_equal(info["final_info"]["action_rewards"], env.action_rewards.astype(np.float64))


def test_rows_that_reset_report_zeros(make):
    env = make(autoreset_mode="NEXT_STEP")
    env.reset(seed=SEED)
    env.dynamics.step([1], np.array([0]))  # row 0 is a step ahead of the others
    for actions in ACTIONS:
        info = env.step(actions)[-1]
    assert info["_action_rewards"].tolist() == [False, True, True]
    assert not info["action_rewards"][0].any() and info["action_rewards"][1:].any(1).all()


def test_ids_take_the_argument(classifier, clips, bank):
    env = gym.make("AdaFocusSkip-v1", classifier=classifier, clips=clips, bank=bank, full_information=True)
    env.reset(seed=0)
    assert env.step(3)[-1]["action_rewards"].shape == (50,)


def test_the_head_compares_no_cell_twice(make, bank, monkeypatch):
    rows = []
    compare = type(bank.classifier).compare
    monkeypatch.setattr(
        type(bank.classifier),
        "compare",
        lambda self, glances, focus, *more: rows.append(len(focus)) or compare(self, glances, focus, *more),
    )
    for arguments in (
        {"baseline": "all", "full_information": False},
        {"baseline": "all"},
        {"baseline": "all", "action": "skip"},
        {"baseline": 3},
    ):
        env = make(**arguments)
        env.reset(seed=SEED)
        env.step(ACTIONS[0])
    assert rows == [50, 50, 51, 53]


# What is refused


def sum_of_all(now, previous, baseline):
    """A custom reward that mixes clips."""
    return now - now.mean()


def gain(now, previous, baseline):
    """A custom reward."""
    return 2 * (now - baseline)


def test_custom_rewards_say_whether_they_are_elementwise(make):
    message = (
        r"the reward sum_of_all must be elementwise for full_information, which calls it with the confidences \(A, N\) of A actions of N "
        r"clips; set Reward\(\.\.\., elementwise=True\) if .*, or leave full_information out"
    )
    with pytest.raises(InputError, match=message):
        make(reward=Reward(sum_of_all))
    reported, by_copies = played(make(reward=Reward(gain, "random patches", elementwise=True), baseline="all", output="torch"), ACTIONS)
    assert np.allclose(reported, by_copies, atol=2e-6)


@pytest.mark.parametrize("action", ["grid", "skip"])
def test_a_grid_without_a_bank_is_refused_with_the_cost(make, classifier, clips, action):
    message = (
        r"full_information needs a bank on a grid: without one, each step takes 49 passes of the focuser per clip instead of 1; set bank"
    )
    with pytest.raises(InputError, match=message):
        make(bank=False, action=action)


def test_a_request_of_the_wrong_kind(make, locations, clips):
    with pytest.raises(InputError, match=r"full_information=8 must be true on a grid, where the rewards of all actions are reported"):
        make(full_information=8)
    message = r"full_information=true must be a number with continuous actions, since they are infinitely many: .* full_information=16"
    with pytest.raises(InputError, match=message):
        AdaFocusVectorEnv(N, locations.classifier, clips, bank=locations, action="continuous", full_information=True)
    with pytest.raises(InputError, match=r"full_information must be true or false or an integer of at least 1, got 0"):
        make(full_information=0)


@pytest.mark.parametrize("request_", [True, False])
def test_there_is_nothing_to_read_before_a_step_or_without_it(make, request_):
    env = make(full_information=request_)
    env.reset(seed=0)
    if not request_:
        env.step(ACTIONS[0])
    with pytest.raises(InputError, match=r"action_rewards are reported after a step of an environment with full_information=True"):
        _ = env.action_rewards


def test_live_features_are_used_for_continuous_locations_alone(classifier, clips):
    live = LiveFeatures(classifier, clips, ContinuousAction(96, 24))
    env = AdaFocusEnv(classifier, clips, bank=live, action="continuous", full_information=3)
    env.reset(seed=0)
    assert env.step(np.array([0.5, 0.5], np.float32))[-1]["candidates"].shape == (3, 2)
