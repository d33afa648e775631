import functools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecMonitor

from adafocus_env.action import ActionError
from adafocus_env.env import AdaFocusEnv
from adafocus_env.observation import OBSERVATIONS, row_of
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import InputError

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("error")]
N, T, EPISODES, SEED = 3, 4, 4, 11
MODES = list(AutoresetMode)


@pytest.fixture
def make(classifier, clips, bank):
    """Return a function that makes vector environments of N rows on the shared clips and bank."""

    def make(num_envs=N, **arguments):
        return AdaFocusVectorEnv(num_envs, classifier, clips, **{"bank": bank, "observation": "vector", **arguments})

    return make


@pytest.fixture(scope="module")
def single_records(classifier, clips):
    """What the single environment gives for a row; played once for all APIs."""
    return functools.cache(functools.partial(play_single, classifier, clips))


def actions_at(step):
    """Return one action per row for a step, the same in every API."""
    return np.random.default_rng(step).integers(49, size=N)


def rounding():
    """Return the tolerance for the dependence of a step on the batch size: zero if matrix products do not depend on it.

    On processors with AVX-512, Intel's library sums in the same order for any number of rows of at least 5; on older ones, it does not.
    """
    drawn = torch.Generator().manual_seed(0)
    one, other = torch.randn(48, 60, generator=drawn), torch.randn(64, 48, generator=drawn)
    return 0.0 if all(torch.equal((other @ one)[:rows], other[:rows] @ one) for rows in (8, 16, 24, 40)) else 1e-6


def row_info(infos, row):
    """Return the info of one row from a vector environment's dictionary of arrays and masks."""
    keys = [key for key in infos if not key.startswith(("_", "final_"))]
    return {key: infos[key][row] for key in keys if infos[f"_{key}"][row]}


# The APIs. Each gives, for each row, a list of (action, observation, reward, terminated, truncated, info); action None for a reset.


def play_single(classifier, clips, row, **arguments):
    env = AdaFocusEnv(classifier, clips, **arguments)
    record = []
    for episode in range(EPISODES):
        observation, info = env.reset(seed=SEED + row if episode == 0 else None)
        record.append((None, observation, 0.0, False, False, info))
        for step in range(T):
            action = actions_at(episode * T + step)[row]
            record.append((action, *env.step(action)))
    return record


def play_next_step(make, **arguments):
    env = make(autoreset_mode="NEXT_STEP", **arguments)
    observations, infos = env.reset(seed=SEED)
    records = [[(None, row_of(observations, row), 0.0, False, False, row_info(infos, row))] for row in range(N)]
    for episode in range(EPISODES):
        for step in range(T):
            actions = actions_at(episode * T + step)
            returned = env.step(actions)
            for row in range(N):
                records[row].append((actions[row], *(row_of(values, row) for values in returned[:4]), row_info(returned[4], row)))
        if episode < EPISODES - 1:
            returned = env.step(actions_at(999))
            for row in range(N):
                records[row].append((None, *(row_of(values, row) for values in returned[:4]), row_info(returned[4], row)))
    return records


def play_same_step(make, **arguments):
    env = make(autoreset_mode=AutoresetMode.SAME_STEP, **arguments)
    observations, infos = env.reset(seed=SEED)
    records = [[(None, row_of(observations, row), 0.0, False, False, row_info(infos, row))] for row in range(N)]
    for step in range(EPISODES * T):
        actions = actions_at(step)
        observations, *flags, infos = env.step(actions)
        for row in range(N):
            step_flags = [values[row] for values in flags]
            if step_flags[1]:
                assert infos["_final_obs"][row] and infos["_final_info"][row]
                records[row].append((actions[row], infos["final_obs"][row], *step_flags, row_info(infos["final_info"], row)))
                records[row].append((None, row_of(observations, row), 0.0, False, False, row_info(infos, row)))
            else:
                assert "final_obs" not in infos
                records[row].append((actions[row], row_of(observations, row), *step_flags, row_info(infos, row)))
    return [record[:-1] for record in records]  # without the episodes that have only just begun


def play_disabled(make, **arguments):
    env = make(autoreset_mode="Disabled", **arguments)
    records = [[] for _ in range(N)]
    for episode in range(EPISODES):
        mask = np.ones(N, bool)
        observations, infos = env.reset(seed=SEED if episode == 0 else None, options={"reset_mask": mask} if episode else None)
        for row in range(N):
            records[row].append((None, row_of(observations, row), 0.0, False, False, row_info(infos, row)))
        for step in range(T):
            actions = actions_at(episode * T + step)
            returned = env.step(actions)
            for row in range(N):
                records[row].append((actions[row], *(row_of(values, row) for values in returned[:4]), row_info(returned[4], row)))
    return records


def play_sb3(make, **arguments):
    env = AdaFocusVecEnv(make(autoreset_mode="SameStep", **arguments))
    env.seed(SEED)
    observations = env.reset()
    records = [[(None, row_of(observations, row), 0.0, False, False, env.reset_infos[row])] for row in range(N)]
    for step in range(EPISODES * T):
        actions = actions_at(step)
        observations, rewards, dones, infos = env.step(actions)
        assert rewards.dtype == np.float32 and dones.dtype == bool
        for row, info in enumerate(infos):
            last = info.pop("terminal_observation") if dones[row] else row_of(observations, row)
            truncated = info.pop("TimeLimit.truncated") if dones[row] else False
            records[row].append((actions[row], last, rewards[row], dones[row], truncated, info))
            if dones[row]:
                records[row].append((None, row_of(observations, row), 0.0, False, False, None))  # its info is lost in this API
    return [record[:-1] for record in records]


APIS = {"next step": play_next_step, "same step": play_same_step, "disabled": play_disabled, "sb3": play_sb3}


def assert_same(record, expected, tolerance=0.0):
    """Check that the records of a row agree: flags, integers and names exactly, floating-point numbers within the tolerance."""
    assert len(record) == len(expected)
    for number, (ours, theirs) in enumerate(zip(record, expected, strict=True)):
        assert ours[0] == theirs[0], number
        assert_equal_values(ours[1], theirs[1], f"observation {number}", tolerance)
        assert ours[2] == pytest.approx(theirs[2], abs=tolerance, rel=0), number
        assert ours[3:5] == theirs[3:5], number
        if ours[5] is None:
            continue
        assert ours[5].keys() == theirs[5].keys(), number
        for key, value in ours[5].items():
            if key in ("confidence", "previous", "baseline"):
                assert value == pytest.approx(theirs[5][key], abs=tolerance, rel=0), (number, key)
            else:
                assert np.array_equal(value, theirs[5][key]), (number, key)


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("api", APIS)
def test_every_row_of_every_api_is_the_single_environment(make, single_records, bank, api, observation):
    """With a shared bank, everything is exactly equal for any batch size, or within 1e-6; see `rounding`."""
    arguments = {"observation": observation, "baseline": 3}
    records = APIS[api](make, **arguments)
    for row in range(N):
        expected = single_records(row, bank=bank, **arguments)
        assert [step[3] for step in expected] == [False, False, False, False, True] * EPISODES
        assert_same(records[row], expected, tolerance=rounding())
        glances = [[step[1]["map"] if observation == "dict" else step[1] for step in steps] for steps in (records[row], expected)]
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*glances, strict=True))
    assert records[0][0][5]["clip"] != records[1][0][5]["clip"]


@pytest.mark.parametrize("arguments", [{"baseline": 1}, {"baseline": "all"}, {"reward": "padding"}], ids=str)
def test_an_episode_is_the_same_among_any_number(make, arguments):
    def episode(num_envs, row):
        """Return rewards and observations of the episode with seed 40, in the given row of a vector environment."""
        env = make(num_envs, observation="dict", autoreset_mode="DISABLED", **arguments)
        env.reset(seed=40 - row)
        steps = [env.step((np.arange(num_envs) - row + 9 * step) % 49) for step in range(T)]
        return tuple((step[0]["state"][row], step[0]["head"][row], step[1][row : row + 1]) for step in steps)

    expected = episode(1, 0)
    for num_envs, row in ((2, 1), (7, 3), (8, 7), (16, 9), (40, 33)):
        assert_equal_values(episode(num_envs, row), expected, f"{num_envs}", rounding())


@pytest.mark.parametrize("api", APIS)
def test_every_api_is_the_single_environment_without_a_bank(make, single_records, api):
    arguments = {"observation": "vector", "reward": "padding", "bank": False}
    for row, record in enumerate(APIS[api](make, **arguments)):
        assert_same(record, single_records(row, **arguments), tolerance=1e-6)


@pytest.mark.parametrize("api", APIS)
def test_apis_with_equally_many_rows_are_exactly_equal_with_a_shared_bank(make, api):
    for record, expected in zip(APIS[api](make, baseline=3), play_next_step(make, baseline=3), strict=True):
        assert_same(record, expected)


def test_a_vector_of_one_row_is_exactly_the_single_environment(make, classifier, clips, bank):
    vector, single = make(1, autoreset_mode="DISABLED"), AdaFocusEnv(classifier, clips, bank=bank, observation="vector")
    for seed in range(3):
        (ours, infos), (theirs, info) = vector.reset(seed=seed), single.reset(seed=seed)
        record, expected = [(None, ours[0], 0.0, False, False, row_info(infos, 0))], [(None, theirs, 0.0, False, False, info)]
        for step in range(T):
            *returned, infos = vector.step(actions_at(step)[:1])
            record.append((None, *(values[0] for values in returned), row_info(infos, 0)))
            expected.append((None, *single.step(actions_at(step)[0])))
        assert_same(record, expected)


# Gymnasium's own vector environment


@pytest.mark.parametrize("mode", MODES)
def test_equals_gymnasiums_vector_of_single_environments(classifier, clips, bank, mode):
    arguments = {"classifier": classifier, "clips": clips, "bank": bank, "observation": "vector", "baseline": 2}
    ours = gym.make_vec("AdaFocus-v1", N, "vector_entry_point", autoreset_mode=mode, **arguments)
    theirs = gym.make_vec("AdaFocus-v1", N, "sync", vector_kwargs={"autoreset_mode": mode}, **arguments)
    assert isinstance(ours, AdaFocusVectorEnv)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert_equal_values(ours.reset(seed=SEED), theirs.reset(seed=SEED))
    for step in range(14):
        returned = ours.step(actions_at(step)), theirs.step(actions_at(step))
        assert_equal_values(*returned)
        assert ours.observation_space.contains(returned[0][0])
        if mode is AutoresetMode.DISABLED and returned[0][2].any():
            options = {"reset_mask": returned[0][2]}
            assert_equal_values(ours.reset(options=dict(options)), theirs.reset(options=dict(options)))


def assert_equal_values(ours, theirs, where="", tolerance=1e-6):
    """Check that tuples and dictionaries of arrays are equal within the tolerance, with equal keys, types and masks."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal_values(ours[key], theirs[key], f"{where}/{key}", tolerance)
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal_values(a, b, f"{where}/{number}", tolerance)
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        assert theirs.dtype == object
        assert_equal_values(tuple(ours), tuple(theirs), where, tolerance)
    elif isinstance(ours, np.ndarray):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (where, ours.dtype, theirs.dtype)
        assert np.allclose(ours, theirs, atol=tolerance, rtol=0), where
    else:
        assert ours == theirs, where


def test_make_vec_takes_our_vector_environment_by_default(classifier, clips):
    env = gym.make_vec("AdaFocus-v1", num_envs=2, classifier=classifier, clips=clips)
    assert isinstance(env, AdaFocusVectorEnv) and env.num_envs == 2
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and env.spec.id == "AdaFocus-v1"
    statistics = gym.wrappers.vector.RecordEpisodeStatistics(env)
    statistics.reset(seed=0)
    for _ in range(T):
        *_, infos = statistics.step(np.array([1, 2]))
    assert infos["episode"]["l"].tolist() == [T, T]
    env.close()


# Autoreset modes


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_declared_whatever_way_it_is_given(make, mode):
    for given in (mode, mode.name, mode.value):
        env = make(autoreset_mode=given)
        assert env.metadata["autoreset_mode"] is mode and env.autoreset_mode is mode
    assert "autoreset_mode" not in AdaFocusEnv.metadata and "autoreset_mode" not in AdaFocusVectorEnv.metadata


def test_the_reset_step_of_next_step_ignores_the_actions(make):
    envs = [make(autoreset_mode="NEXT_STEP") for _ in range(2)]
    for env in envs:
        env.reset(seed=SEED)
        for step in range(T):
            env.step(actions_at(step))
    one, other = envs[0].step(np.array([0, 0, 0])), envs[1].step(np.array([48, 48, 48]))
    assert_equal_values(one, other)
    assert not one[1].any() and not one[2].any() and not one[3].any() and one[4].keys() == {"clip", "_clip", "name", "_name"}
    assert_equal_values(envs[0].step(actions_at(9)), envs[1].step(actions_at(9)))


def single_with_resets(classifier, clips, bank, row, resets, steps, **first):
    """Return the records of a single environment that is reset after the given steps."""
    env = AdaFocusEnv(classifier, clips, bank=bank, observation="vector")
    observation, info = env.reset(**first)
    record = [(None, observation, 0.0, False, False, info)]
    for step in range(steps):
        record.append((actions_at(step)[row], *env.step(actions_at(step)[row])))
        if step in resets:
            observation, info = env.reset()
            record.append((None, observation, 0.0, False, False, info))
    return record


def test_rows_can_be_reset_apart_in_disabled_mode(make, classifier, clips, bank):
    env = make(autoreset_mode="DISABLED")
    observations, infos = env.reset(seed=SEED)
    records = [[(None, row_of(observations, row), 0.0, False, False, row_info(infos, row))] for row in range(N)]
    early = {(0, 0), (1, 2), (2, 2)}  # (step, row): resets in the middle of an episode
    resets = [set() for _ in range(N)]
    for step in range(15):
        returned = env.step(actions_at(step))
        mask = returned[2] | np.array([(step, row) in early for row in range(N)])
        for row in range(N):
            records[row].append((actions_at(step)[row], *(row_of(values, row) for values in returned[:4]), row_info(returned[4], row)))
        if mask.any():
            observations, infos = env.reset(options={"reset_mask": mask})
            assert np.array_equal(infos["_clip"], mask)
            for row in range(N):
                if mask[row]:
                    resets[row].add(step)
                    records[row].append((None, row_of(observations, row), 0.0, False, False, row_info(infos, row)))
                else:
                    assert np.array_equal(observations[row], returned[0][row])
    assert resets[0] != resets[1] != resets[2]
    for row in range(N):
        expected = single_with_resets(classifier, clips, bank, row, resets[row], 15, seed=SEED + row)
        assert_same(records[row], expected, tolerance=1e-6)


def test_rows_out_of_step_reset_themselves_in_next_step_mode(make, classifier, clips, bank):
    env = make(autoreset_mode="NEXT_STEP")
    env.reset(seed=SEED)
    env.step(actions_at(100))
    _, infos = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert_equal_values(row_info(infos, 1), {})
    singles = [AdaFocusEnv(classifier, clips, bank=bank, observation="vector") for _ in range(N)]
    for row, single in enumerate(singles):
        single.reset(seed=SEED + row)
        single.step(actions_at(100)[row])
    singles[0].reset()
    ended = np.zeros(N, bool)
    for step in range(16):
        returned = env.step(actions_at(step))
        for row, single in enumerate(singles):
            observation, info = single.reset() if ended[row] else (None, None)
            expected = (observation, 0.0, False, False, info) if ended[row] else single.step(actions_at(step)[row])
            ours = (None, *(row_of(values, row) for values in returned[:4]), row_info(returned[4], row))
            assert_same([ours], [(None, *expected)], tolerance=1e-6)
            ended[row] = expected[2]
    with pytest.raises(ActionError, match="outside the space"):
        env.step(np.array([0, 0, 49]))


def test_rows_out_of_step_reset_themselves_in_same_step_mode(make):
    env = make(autoreset_mode="SAME_STEP")
    env.reset(seed=SEED)
    env.step(actions_at(0))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    ends = [env.step(actions_at(step)) for step in range(T)]
    assert [step[2].tolist() for step in ends] == [[False] * 3, [False] * 3, [True, False, True], [False, True, False]]
    infos = ends[2][4]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == infos["final_info"]["_correct"].tolist() == [True, False, True]
    assert infos["_confidence"].tolist() == [False, True, False] and infos["_clip"].all()
    assert infos["final_obs"][1] is None and infos["final_obs"][0].shape == (16,)
    assert infos["final_info"]["confidence"][1] == 0 and infos["confidence"][1] > 0


def test_the_sb3_api_wants_same_step(make):
    with pytest.raises(InputError, match="autoreset_mode must be SAME_STEP for Stable-Baselines3, got NEXT_STEP"):
        AdaFocusVecEnv(make())


# Clips


def dealt(env, resets):
    """Return the clips of the given number of resets, row after row."""
    return np.concatenate([env.reset(seed=SEED if i == 0 else None)[1]["clip"] for i in range(resets)]).tolist()


def test_in_epochs_every_clip_is_dealt_once(make):
    clips = dealt(make(5, clip_order="epoch"), 12)
    epochs = [clips[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5, "the order is always the same"
    assert dealt(make(5, clip_order="epoch"), 12) == clips, "the same seed deals otherwise"
    many = dealt(make(30, clip_order="epoch"), 2)
    assert sorted(many) == sorted(5 * list(range(12))), "more rows than clips"


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_in_epochs_every_clip_is_dealt_once_by_autoresets_too(make, mode):
    env = make(4, clip_order="epoch", autoreset_mode=mode, observation="reference")
    observations = [env.reset(seed=SEED)[0]]
    while len(observations) < 6:
        returned = env.step(np.zeros(4, np.int64))
        if not returned[0][:, 1].any():
            observations.append(returned[0])
    clips = np.concatenate(observations)[:, 0]
    assert sorted(clips[:12]) == sorted(clips[12:]) == list(range(12))


def test_independent_rows_draw_clips_of_their_own(make):
    clips = dealt(make(5), 40)
    assert set(clips) == set(range(12)) and clips[:12] != list(range(12))
    assert dealt(make(5), 40) == clips


def test_chosen_clips(make):
    env = make(autoreset_mode="DISABLED", observation="reference")
    observations, infos = env.reset(options={"clips": [5, 5, 2]})
    assert infos["clip"].tolist() == observations[:, 0].tolist() == [5, 5, 2]
    env.step(actions_at(0))
    observations, infos = env.reset(options={"clips": np.array([7]), "reset_mask": np.array([False, True, False])})
    assert observations.tolist() == [[5, 1], [7, 0], [2, 1]] and infos["_clip"].tolist() == [False, True, False]


def test_seeds_for_each_row(make):
    one, other, same = make(), make(), make()
    whole, parts = one.reset(seed=SEED), other.reset(seed=[SEED, SEED + 1, SEED + 2])
    assert_equal_values(whole, parts)
    same.reset(seed=[SEED, SEED, None])
    infos = same.reset(seed=[SEED, None, None])[1]
    assert infos["clip"][0] == whole[1]["clip"][0]
    one.reset(seed=SEED)
    assert_equal_values(one.reset(), other.reset())


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"num_envs": -2}, "num_envs must be .*, got -2"),
        ({"num_envs": 2.5}, "num_envs must be an integer of at least 1, got 2.5"),
        ({"output": "jax"}, r"output='jax' is not known; choose one of \['numpy', 'torch'\]"),
        ({"autoreset_mode": "LAST"}, r"autoreset_mode='LAST' is not known; choose one of \['DISABLED', 'Disabled', "),
        ({"clip_order": "random"}, r"clip_order='random' is not known; choose one of \['epoch', 'independent'\]"),
        ({"observation": "mp"}, r"observation='mp' is not known; did you mean 'map'\?"),
        ({"reward": "paddding"}, r"reward='paddding' is not known; did you mean 'padding'\?"),
        ({"render_mode": "human"}, "render_mode='human' is not known"),
    ],
)
def test_arguments_out_of_their_range(make, arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 3}, r"reset options \['clip'\] are not known; choose from \['clips', 'reset_mask'\]"),
        ({"clips": [1, 2]}, r"options\['clips'\] has 2 entries; give one clip for each of the 3 rows that are reset"),
        ({"clips": [1, 2, 12]}, "clip must be an integer from 0 to 11, got 12"),
        ({"clips": [1, 2, 0.5]}, "clip must be an integer from 0 to 11, got 0.5"),
        ({"reset_mask": [1, 0, 0]}, r"has dtype int64, shape \(3,\) and 1 rows set; give a bool array of shape \(3,\) with at least one"),
        ({"reset_mask": np.array([True, False])}, r"has dtype bool, shape \(2,\)"),
        ({"reset_mask": np.zeros(3, bool)}, "and 0 rows set"),
    ],
)
def test_reset_options_that_cannot_be_used(make, options, message):
    env = make(autoreset_mode="DISABLED")
    with pytest.raises(InputError, match=message):
        env.reset(options=options)


def test_seeds_that_are_too_few(make):
    with pytest.raises(InputError, match="seed has 2 entries; give one number, or one for each of the 3 sub-environments"):
        make().reset(seed=[1, 2])


def test_resets_and_steps_out_of_order(make):
    env = make(autoreset_mode="DISABLED")
    with pytest.raises(ResetNeeded, match="call reset before step"):
        env.step(actions_at(0))
    with pytest.raises(ResetNeeded, match="the first reset begins an episode in every row"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(seed=SEED)
    for step in range(T):
        env.step(actions_at(step))
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ResetNeeded, match="clip 1 has no episode running; call reset before step"):
        env.step(actions_at(0))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1], r"actions have shape \(2,\); give one cell for each of the 3 clips: shape \(3,\)"),
        ([0, 1, 49], r"action 49 \(clip 2\) is outside the space"),
        ([0, 1, np.nan], "actions have dtype float64"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_actions_outside_the_space_change_nothing(make, mode, actions, message):
    env, undisturbed = make(autoreset_mode=mode), make(autoreset_mode=mode)
    env.reset(seed=SEED)
    undisturbed.reset(seed=SEED)
    for step in range(T):
        with pytest.raises(ActionError, match=message):
            env.step(actions)
        assert_equal_values(env.step(actions_at(step)), undisturbed.step(actions_at(step)))


# What is returned


def arrays_in(returned):
    """Yield all arrays in nested tuples, lists and dictionaries."""
    if isinstance(returned, np.ndarray):
        yield returned
        if returned.dtype == object:
            yield from (array for item in returned for array in arrays_in(item))
    elif isinstance(returned, dict):
        yield from (array for value in returned.values() for array in arrays_in(value))
    elif isinstance(returned, tuple | list):
        yield from (array for value in returned for array in arrays_in(value))


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_returned_arrays_are_never_written_to_afterwards(make, mode, observation):
    env = make(autoreset_mode=mode, observation=observation)
    patch_mask = []
    for _ in range(2):
        for returned in (env.reset(seed=SEED), *(env.step(actions_at(step)) for step in range(T))):
            patch_mask += [(array, array.copy()) for array in arrays_in(returned)]
    assert len(patch_mask) > 100
    for array, copy in patch_mask:
        if array.dtype == object:  # its elements are compared by themselves
            assert all(ours is theirs for ours, theirs in zip(array, copy, strict=True))
        else:
            assert np.array_equal(array, copy)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_whoever_writes_to_returned_arrays_changes_nothing(make, mode):
    env, undisturbed = make(autoreset_mode=mode), make(autoreset_mode=mode)
    returned, expected = env.reset(seed=SEED), undisturbed.reset(seed=SEED)
    for step in range(3 * T):
        assert_equal_values(returned, expected)
        for array in arrays_in(returned):
            array[...] = 1 if array.dtype != object else None
        returned, expected = env.step(actions_at(step)), undisturbed.step(actions_at(step))


# Going back


@pytest.mark.parametrize("order", ["independent", "epoch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fresh", [False, True])
def test_restoring_the_random_state_brings_the_same_episodes(make, mode, order, fresh):
    def episodes(env, count=3):
        returned = []
        for episode in range(count):
            if episode and mode is AutoresetMode.DISABLED:
                returned.append(env.reset())
            returned += [env.step(actions_at(step)) for step in range(T)]
            if episode < count - 1 and mode is AutoresetMode.NEXT_STEP:
                returned.append(env.step(actions_at(0)))
        return tuple(returned)

    env = make(autoreset_mode=mode, clip_order=order, baseline=3)
    env.reset(seed=SEED)
    episodes(env)
    if mode is AutoresetMode.NEXT_STEP:
        env.step(actions_at(0))
    elif mode is AutoresetMode.DISABLED:
        env.reset()
    state = env.random_state()
    expected = episodes(env)
    back = make(autoreset_mode=mode, clip_order=order, baseline=3) if fresh else env
    back.restore_random_state(state)
    assert_equal_values(episodes(back), expected)
    if not fresh:
        back.restore_random_state(state)
        assert_equal_values(episodes(back), expected)


# Pictures


def test_pictures_of_all_rows(make, clips):
    env = make(render_mode="rgb_array", autoreset_mode="DISABLED")
    env.reset(options={"clips": [1, 2, 3]})
    assert [picture.shape for picture in env.render()] == [(324, 288, 3)] * N
    env.step(np.array([0, 24, 48]))
    looked = env.render()
    env.reset(options={"clips": [4], "reset_mask": np.array([False, True, False])})
    begun = env.render()
    assert np.array_equal(begun[0], looked[0]) and np.array_equal(begun[2], looked[2])
    assert np.array_equal(begun[1][:288], enlarged(clips, 4, 0))
    assert make().render() is None


def enlarged(clips, clip, frame):
    return clips.frames(clip)[frame].permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_those_of_the_single_environment(make, classifier, clips, bank, mode):
    env = make(render_mode="rgb_array", autoreset_mode=mode)
    single = AdaFocusEnv(classifier, clips, bank=bank, render_mode="rgb_array")
    env.reset(seed=SEED)
    single.reset(seed=SEED)
    for step in range(T):
        env.step(actions_at(step))
        single.step(actions_at(step)[0])
        if not (mode is AutoresetMode.SAME_STEP and step == T - 1):
            assert np.array_equal(env.render()[0], single.render())
    if mode is AutoresetMode.NEXT_STEP:
        env.step(actions_at(0))
    elif mode is AutoresetMode.DISABLED:
        env.reset()
    single.reset()
    assert np.array_equal(env.render()[0], single.render())


# Stable-Baselines3


def test_vec_monitor_counts_episodes(make):
    env = VecMonitor(AdaFocusVecEnv(make(autoreset_mode="SAME_STEP", reward="confidence")))
    env.seed(SEED)
    env.reset()
    total = np.zeros(N)
    for step in range(T):
        _, rewards, dones, infos = env.step(actions_at(step))
        total += rewards
    assert dones.all()
    for row, info in enumerate(infos):
        assert info["episode"]["l"] == T and info["episode"]["r"] == pytest.approx(total[row], abs=1e-5)


def test_the_sb3_api_takes_seeds_and_options_once(make):
    env = AdaFocusVecEnv(make(autoreset_mode="SAME_STEP", observation="reference"))
    env.set_options({"clips": [4, 5, 6]})
    assert env.reset()[:, 0].tolist() == [4, 5, 6]
    assert [info["clip"] for info in env.reset_infos] == [4, 5, 6]
    drawn = [env.reset()[:, 0].tolist() for _ in range(3)]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2], "options are used again"
    env.seed(SEED)
    first = env.reset()
    env.seed(SEED)
    assert np.array_equal(env.reset(), first)


def test_the_sb3_api_has_what_sb3_asks_for(make):
    vector = make(autoreset_mode="SAME_STEP", render_mode="rgb_array")
    env = AdaFocusVecEnv(vector)
    env.reset()
    assert env.num_envs == N and env.observation_space == vector.single_observation_space and env.render_mode == "rgb_array"
    assert env.get_attr("clip_order") == ["independent"] * N and env.get_attr("clip_order", [0]) == ["independent"]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * N
    assert len(env.env_method("random_state", indices=[1, 2])) == 2
    env.set_attr("marked", 1)
    assert vector.marked == 1
    with pytest.raises(InputError, match=r"marked is shared by all rows; set it for all of them \(indices=None\)"):
        env.set_attr("marked", 2, indices=0)
    assert [image.shape for image in env.get_images()] == [(324, 288, 3)] * N
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env.render().ndim == 3
    env.close()
