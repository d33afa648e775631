"""Random sequences of `reset` and `step`, right and wrong ones: all APIs do what single environments do, one per row."""

import numpy as np
import pytest
from conftest import slow_except
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from adafocus_env.action import ActionError
from adafocus_env.env import AdaFocusEnv
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.errors import InputError

N, CELLS = 3, 49
SEEDS = st.integers(0, 20)
ACTIONS = st.lists(st.integers(0, CELLS - 1), min_size=N, max_size=N).map(np.array)
MASKS = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)
APIS = [*AutoresetMode, "SB3"]


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # matrix products may depend on the number of rows


class Sequences(RuleBasedStateMachine):
    """A vector environment and, for each row, a single environment that does the same."""

    def __init__(self, classifier, clips, bank, mode):
        super().__init__()
        shared = {"bank": bank, "observation": "vector"}
        self.mode = mode
        self.env = AdaFocusVectorEnv(N, classifier, clips, autoreset_mode=mode, **shared)
        self.singles = [AdaFocusEnv(classifier, clips, **shared) for _ in range(N)]
        self.ended = np.ones(N, bool)

    @initialize(seed=SEEDS, actions=ACTIONS, mask=MASKS)
    def begin(self, seed, actions, mask):
        """Neither a step nor a reset of some rows can come first."""
        for call in (lambda: self.env.step(actions), lambda: self.singles[0].step(0)):
            with pytest.raises(ResetNeeded):
                call()
        if mask.any() and not mask.all():
            with pytest.raises(ResetNeeded):
                self.env.reset(options={"reset_mask": mask})
        self.reset(seed)

    @rule(seed=st.none() | SEEDS)
    def reset(self, seed):
        self.assert_begun(np.arange(N), *self.env.reset(seed=seed), seed)

    @rule(seed=st.none() | SEEDS, mask=MASKS)
    def reset_some(self, seed, mask):
        if mask.any():
            self.assert_begun(np.flatnonzero(mask), *self.env.reset(seed=seed, options={"reset_mask": mask}), seed)
        else:
            with pytest.raises(InputError, match="at least one row set"):
                self.env.reset(options={"reset_mask": mask})

    @rule(clips=st.lists(st.integers(0, 11), min_size=N, max_size=N))
    def reset_to_clips(self, clips):
        observations, infos = self.env.reset(options={"clips": clips})
        assert infos["clip"].tolist() == clips
        for row, clip in enumerate(clips):
            expected, _ = self.singles[row].reset(options={"clip": clip})
            assert_close(observations[row], expected)
        self.ended[:] = False

    @rule(seeds=st.lists(SEEDS, max_size=2 * N).filter(lambda seeds: len(seeds) != N))
    def reset_with_seeds_for_other_rows(self, seeds):
        with pytest.raises(InputError, match=rf"seed has {len(seeds)} entries"):
            self.env.reset(seed=seeds)

    @rule(actions=ACTIONS, row=st.integers(0, N - 1), wrong=st.sampled_from([-1, CELLS, 10**9]))
    def step_out_of_the_space(self, actions, row, wrong):
        """Such a step changes nothing, which the following rules see."""
        if self.mode is AutoresetMode.DISABLED and self.ended.any():
            return
        actions = actions.copy()
        actions[row] = wrong
        with pytest.raises(ActionError):
            self.env.step(actions)

    @precondition(lambda self: self.ended.any() and self.mode is not AutoresetMode.SAME_STEP)
    @rule()
    def step_a_single_one_after_its_end(self):
        with pytest.raises(ResetNeeded):
            self.singles[int(np.flatnonzero(self.ended)[0])].step(0)

    @rule(actions=ACTIONS)
    def step(self, actions):
        if self.mode is AutoresetMode.DISABLED and self.ended.any():
            with pytest.raises(ResetNeeded):
                self.env.step(actions)
            return
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        assert not truncated.any()
        for row, single in enumerate(self.singles):
            if self.ended[row]:  # in the mode NEXT_STEP, this step begins an episode
                expected, info = single.reset()
                assert rewards[row] == 0 and not terminated[row]
            else:
                expected, reward, over, _, info = single.step(int(actions[row]))
                assert_close(rewards[row], reward)
                assert terminated[row] == over
                if over and self.mode is AutoresetMode.SAME_STEP:
                    assert_close(infos["final_obs"][row], expected)
                    expected, info = single.reset()
            assert_close(observations[row], expected)
            assert infos["clip"][row] == info["clip"]
        self.ended = terminated & (self.mode is not AutoresetMode.SAME_STEP)

    def assert_begun(self, rows, observations, infos, seed):
        for row in rows:
            expected, info = self.singles[row].reset(seed=None if seed is None else seed + int(row))
            assert_close(observations[row], expected)
            assert infos["clip"][row] == info["clip"] and infos["_clip"][row]
        self.ended[rows] = False


class SB3Sequences(RuleBasedStateMachine):
    """The same for the API of Stable-Baselines3, which resets ended rows at once."""

    def __init__(self, classifier, clips, bank):
        super().__init__()
        shared = {"bank": bank, "observation": "vector"}
        self.env = AdaFocusVecEnv(AdaFocusVectorEnv(N, classifier, clips, autoreset_mode="SAME_STEP", **shared))
        self.singles = [AdaFocusEnv(classifier, clips, **shared) for _ in range(N)]

    @initialize(seed=SEEDS)
    def begin(self, seed):
        with pytest.raises(ResetNeeded):
            self.env.step(np.zeros(N, int))
        self.reset(seed)

    @rule(seed=st.none() | SEEDS)
    def reset(self, seed):
        if seed is not None:
            self.env.seed(seed)
        observations = self.env.reset()
        for row, single in enumerate(self.singles):
            expected, info = single.reset(seed=None if seed is None else seed + row)
            assert_close(observations[row], expected)
            assert self.env.reset_infos[row]["clip"] == info["clip"]

    @rule(actions=ACTIONS, row=st.integers(0, N - 1), wrong=st.sampled_from([-1, CELLS]))
    def step_out_of_the_space(self, actions, row, wrong):
        actions = actions.copy()
        actions[row] = wrong
        with pytest.raises(ActionError):
            self.env.step(actions)

    @rule(actions=ACTIONS)
    def step(self, actions):
        observations, rewards, dones, infos = self.env.step(actions)
        for row, single in enumerate(self.singles):
            expected, reward, over, _, _ = single.step(int(actions[row]))
            assert_close(rewards[row], reward)
            assert dones[row] == over and ("terminal_observation" in infos[row]) == over
            if over:
                assert_close(infos[row]["terminal_observation"], expected)
                expected, _ = single.reset()
            assert_close(observations[row], expected)


@pytest.mark.parametrize(("api", "examples"), slow_except([(api, 6) for api in APIS], [(api, n) for api in APIS for n in (6, 60)]))
def test_random_sequences(api, examples, classifier, clips, bank):
    options = settings(
        max_examples=examples, stateful_step_count=20, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    shared = (classifier, clips, bank)
    run_state_machine_as_test(lambda: SB3Sequences(*shared) if api == "SB3" else Sequences(*shared, api), settings=options)
