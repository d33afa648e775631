from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import TINY_COST
from gymnasium.error import ResetNeeded
from torch.nn import functional as F

from adafocus_env.action import ActionError, GridAction, SkipAction
from adafocus_env.dynamics import Dynamics, Episode
from adafocus_env.features.live import LiveFeatures
from adafocus_env.reward import REWARDS
from classifiers.errors import InputError

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("error")]
ACTIONS = np.array([[0, 24, 48, 6], [13, 13, 40, 2], [30, 7, 21, 47]])  # of three clips, in four steps
ROWS = np.arange(3)


@pytest.fixture(params=["live", "bank"])
def features(request, classifier, clips, bank):
    return bank if request.param == "bank" else LiveFeatures(classifier, clips, bank.action)


@dataclass
class Step:
    """The results of one step of one clip, computed by hand; all are softmax scores of the true class."""

    chosen: float
    alone: list[float]
    cells: list[float]
    zeros: float
    prediction: int


def play_by_hand(classifier, clips, clip, actions):
    """Compute one episode patch by patch with the bare modules, using only the clip's pixels from the environment."""
    a, label = classifier.architecture, clips.labels[clip]
    frames = (clips.frames(clip) / 255 - torch.tensor(a.mean).view(3, 1, 1)) / torch.tensor(a.std).view(3, 1, 1)
    hidden, steps = torch.zeros(1, 1, a.hidden_size), []
    for frame, action in zip(frames, actions, strict=True):
        small = F.interpolate(frame[None], (a.glance_size, a.glance_size), mode="bilinear", align_corners=False, antialias=True)
        glance = classifier.glancer.features(small).mean((2, 3))

        def look(focus, hidden, glance=glance):
            output, after = classifier.head.gru(torch.cat([glance, focus], dim=1)[:, None], hidden)
            return torch.softmax(classifier.head.fc(output[0, 0]), dim=0), after

        focus_vectors = []
        for cell in range(49):
            top, left = (cell // 7) * 72 // 6, (cell % 7) * 72 // 6
            focus_vectors.append(classifier.focuser.features(frame[None, :, top : top + 24, left : left + 24]).amax((2, 3)))
        probabilities, hidden_after = look(focus_vectors[action], hidden)
        steps.append(
            Step(
                chosen=probabilities[label].item(),
                alone=[look(focus, torch.zeros_like(hidden))[0][label].item() for focus in focus_vectors],
                cells=[look(focus, hidden)[0][label].item() for focus in focus_vectors],
                zeros=look(torch.zeros_like(focus_vectors[0]), hidden)[0][label].item(),
                prediction=int(probabilities.argmax()),
            )
        )
        hidden = hidden_after
    return steps


@pytest.fixture(scope="module")
def by_hand(classifier, clips):
    """Return the steps [clip][t] of clips 0, 5 and 11."""
    with torch.no_grad():
        return [play_by_hand(classifier, clips, clip, actions) for clip, actions in zip((0, 5, 11), ACTIONS, strict=True)]


def play(dynamics, baseline=None):
    """Return the outcomes of the three clips with `ACTIONS`."""
    cells = np.zeros(dynamics.baseline.shape, np.int64) if baseline is None else baseline
    dynamics.restart(np.array([0, 5, 11]), cells)
    return [dynamics.step(ACTIONS[:, t]) for t in range(4)]


def values(by_hand, t, of):
    return np.array([of(steps[t]) for steps in by_hand])


def test_the_episodes_by_hand_are_worth_comparing_with(by_hand):
    chosen = np.array([[step.chosen for step in steps] for steps in by_hand])
    assert np.ptp(chosen) > 0.05, "confidences hardly differ"
    assert max(np.ptp(step.cells) for steps in by_hand for step in steps) > 0.01, "patches hardly matter"


def test_confidence_prediction_and_box_equal_those_by_hand(features, by_hand):
    for t, outcome in enumerate(play(Dynamics(features, 3, reward="confidence"))):
        assert np.allclose(outcome.confidence, values(by_hand, t, lambda step: step.chosen), atol=1e-6, rtol=0)
        assert outcome.prediction.tolist() == [steps[t].prediction for steps in by_hand]
        corners = np.stack([ACTIONS[:, t] // 7, ACTIONS[:, t] % 7], axis=1) * 12
        assert np.array_equal(outcome.boxes, np.concatenate([corners, corners + 24], axis=1))
        assert outcome.terminated.tolist() == [t == 3] * 3


@pytest.mark.parametrize("reward", REWARDS)
def test_rewards_equal_those_by_hand(features, by_hand, reward):
    sampled_cells = np.random.default_rng(1).integers(49, size=(3, 4, 5))
    dynamics = Dynamics(features, 3, reward=reward, baseline=5)
    for t, outcome in enumerate(play(dynamics, sampled_cells if REWARDS[reward].baseline == "random patches" else None)):
        now = values(by_hand, t, lambda step: step.chosen)
        before = values(by_hand, t - 1, lambda step: step.chosen) if t else np.zeros(3)
        random = np.array([np.mean([steps[t].cells[cell] for cell in sampled_cells[row, t]]) for row, steps in enumerate(by_hand)])
        zeros = values(by_hand, t, lambda step: step.zeros)
        log_gain = np.log(now) - np.log(random)
        alone = np.array([np.mean([steps[t].alone[cell] for cell in sampled_cells[row, t]]) for row, steps in enumerate(by_hand)])
        standalone = np.array([steps[t].alone[ACTIONS[row, t]] for row, steps in enumerate(by_hand)]) - alone
        expected = {
            "random": now - random, "previous": now - before, "confidence": now, "padding": now - zeros, "log_confidence": log_gain,
            "standalone": standalone,
        }[reward]  # fmt: skip
        baseline = {"random": random, "log_confidence": random, "standalone": alone, "padding": zeros}.get(reward, np.zeros(3))
        assert np.allclose(outcome.reward, expected, atol=1e-6, rtol=1e-5)
        assert np.allclose(outcome.baseline, baseline, atol=1e-6, rtol=0)
        assert outcome.reward.dtype == np.float32


def test_random_with_all_cells_is_the_mean_over_all_cells(features, by_hand):
    for t, outcome in enumerate(play(Dynamics(features, 3, reward="random", baseline="all"))):
        expected = values(by_hand, t, lambda step: step.chosen - np.mean(step.cells))
        assert np.allclose(outcome.reward, expected, atol=1e-6, rtol=0)


def test_log_confidence_takes_the_logarithm_of_the_mean_over_all_cells(features, by_hand):
    for t, outcome in enumerate(play(Dynamics(features, 3, reward="log_confidence", baseline="all"))):
        expected = values(by_hand, t, lambda step: np.log(step.chosen) - np.log(np.mean(step.cells)))
        assert np.allclose(outcome.reward, expected, atol=1e-6, rtol=1e-5)


def test_standalone_values_a_patch_alike_whatever_was_seen_before(bank):
    """The first frames of the two clips differ in their patches; the rewards of the last frame do not depend on them."""
    dynamics = Dynamics(bank, 2, reward="standalone", baseline="all")
    dynamics.restart(np.array([5, 5]), np.zeros(dynamics.baseline.shape, np.int64))
    outcomes = [dynamics.step(np.array(cells)) for cells in ([0, 24], [10, 30], [40, 8], [17, 17])]
    assert outcomes[3].confidence[0] != outcomes[3].confidence[1]
    assert outcomes[3].reward[0] == outcomes[3].reward[1]
    assert outcomes[0].reward[0] != outcomes[0].reward[1]


def test_standalone_cannot_value_skipped_frames(bank):
    with pytest.raises(InputError, match="reward='standalone' judges every patch on its own and cannot reward skipped frames"):
        Dynamics(bank, 1, reward="standalone", action=SkipAction(bank.action))


def test_log_confidence_is_finite_for_confidences_of_zero():
    now, baseline = np.array([0, 1, 0.5, 0], np.float32), np.array([1, 0, 0.25, 0], np.float32)
    expected = [np.log(1e-6), -np.log(1e-6), np.log(2), 0]
    value = REWARDS["log_confidence"].value
    assert np.allclose(value(now, baseline, baseline), expected, rtol=1e-6)
    on_tensors = value(*map(torch.from_numpy, (now, baseline, baseline)))
    assert isinstance(on_tensors, torch.Tensor) and np.allclose(on_tensors, expected, rtol=1e-6)


def test_random_with_many_patches_approaches_all_cells(bank, by_hand):
    count = 1000
    exact = Dynamics(bank, 3, reward="random", baseline="all")
    sampled = Dynamics(bank, 3, reward="random", baseline=count)
    sampled_cells = np.random.default_rng(0).integers(49, size=(3, 4, count))
    for t, (a, b) in enumerate(zip(play(exact), play(sampled, sampled_cells), strict=True)):
        deviation = values(by_hand, t, lambda step: np.std(step.cells))
        assert np.all(np.abs(a.reward - b.reward) < 4 * deviation / count**0.5 + 1e-6)


def test_baseline_patches_do_not_change_the_episode(bank):
    one, all_cells = play(Dynamics(bank, 3, baseline=1)), play(Dynamics(bank, 3, baseline="all"))
    for a, b in zip(one, all_cells, strict=True):
        assert np.allclose(a.confidence, b.confidence, atol=1e-6, rtol=0) and np.array_equal(a.prediction, b.prediction)


def test_confidence_of_candidates_equals_that_by_hand_and_changes_nothing(features, by_hand):
    dynamics, undisturbed = Dynamics(features, 3), play(Dynamics(features, 3))
    dynamics.restart(np.array([0, 5, 11]), np.zeros((3, 4, 1), np.int64))
    for t, expected in enumerate(undisturbed):
        every = dynamics.confidence_of_candidates()
        assert every.shape == (3, 49)
        assert np.allclose(every, [steps[t].cells for steps in by_hand], atol=1e-6, rtol=0)
        outcome = dynamics.step(ACTIONS[:, t])
        assert np.array_equal(outcome.confidence, expected.confidence) and np.array_equal(outcome.reward, expected.reward)


def test_rows_can_be_stepped_and_started_apart(bank):
    together = play(Dynamics(bank, 3))
    dynamics = Dynamics(bank, 3)
    baseline = np.zeros((4, 1), np.int64)
    dynamics.start(np.array([2]), [Episode(11, baseline)])
    late = [dynamics.step(ACTIONS[[2], t], np.array([2])) for t in range(2)]
    dynamics.start(np.array([0, 1]), [Episode(0, baseline), Episode(5, baseline)])
    early = [dynamics.step(ACTIONS[:2, t], np.array([0, 1])) for t in range(4)]
    late += [dynamics.step(ACTIONS[[2], t], np.array([2])) for t in range(2, 4)]
    for t in range(4):
        for name in ("reward", "confidence", "prediction", "boxes", "terminated"):
            apart = np.concatenate([getattr(early[t], name), getattr(late[t], name)])
            assert np.allclose(apart, getattr(together[t], name), atol=1e-6, rtol=0), name


def test_the_cost_of_a_step_is_a_glance_a_focus_and_the_head(bank):
    assert Dynamics(bank, 3).step_cost == TINY_COST


def test_a_step_before_the_first_reset_and_after_the_end(bank):
    dynamics = Dynamics(bank, 3)
    with pytest.raises(ResetNeeded, match="clip 0 has no episode running; call reset before step"):
        dynamics.step(ACTIONS[:, 0])
    play(dynamics)
    dynamics.start(np.array([0]), [Episode(0, np.zeros((4, 1), np.int64))])
    with pytest.raises(ResetNeeded, match="clip 1 has no episode running; call reset before step"):
        dynamics.step(ACTIONS[:, 0])


def test_an_action_outside_the_space_changes_nothing(bank):
    expected = play(Dynamics(bank, 3))
    dynamics = Dynamics(bank, 3)
    dynamics.restart(np.array([0, 5, 11]), np.zeros((3, 4, 1), np.int64))
    for t in range(4):
        with pytest.raises(ActionError, match=r"action 49 \(clip 2\) is outside the space"):
            dynamics.step(np.array([0, 1, 49]))
        assert np.array_equal(dynamics.step(ACTIONS[:, t]).reward, expected[t].reward)


def test_samples_cover_all_clips_and_cells_and_follow_the_generator(bank):
    dynamics = Dynamics(bank, 1, baseline=7)
    rng = np.random.default_rng(0)
    episodes = [dynamics.sample_episode(rng) for _ in range(200)]
    assert {episode.clip for episode in episodes} == set(range(12))
    assert set(np.concatenate([episode.baseline.ravel() for episode in episodes]).tolist()) == set(range(49))
    assert episodes[0].baseline.shape == (4, 7)
    again = dynamics.sample_episode(np.random.default_rng(0))
    assert again.clip == episodes[0].clip and np.array_equal(again.baseline, episodes[0].baseline)
    assert dynamics.sample_episode(rng, np.int64(3)).clip == 3


@pytest.mark.parametrize("clip", [-1, 12])
def test_clips_out_of_range(bank, clip):
    with pytest.raises(InputError, match=f"clip must be an integer from 0 to 11, got {clip}"):
        Dynamics(bank, 1).sample_episode(np.random.default_rng(0), clip)


@pytest.mark.parametrize("clip", [1.5, "1", True])
def test_clips_are_integers(bank, clip):
    with pytest.raises(InputError, match=f"clip must be an integer from 0 to 11, got {clip!r}"):
        Dynamics(bank, 1).sample_episode(np.random.default_rng(0), clip)


@pytest.mark.parametrize("baseline", [0, -1, 1.5, True, "every", None])
def test_invalid_baselines(bank, baseline):
    with pytest.raises(InputError, match=f"baseline must be a number of random patches of at least 1, or 'all', got {baseline!r}"):
        Dynamics(bank, 1, baseline=baseline)


def test_no_clips_at_all(bank):
    with pytest.raises(InputError, match="num_envs must be an integer of at least 1, got 0"):
        Dynamics(bank, 0)


def test_unknown_rewards_suggest_the_nearest(bank):
    with pytest.raises(InputError, match=r"reward='randm' is not known; did you mean 'random'\? choose one of \['confidence', "):
        Dynamics(bank, 1, reward="randm")
    with pytest.raises(InputError, match=r"reward='xyz' is not known; choose one of"):
        Dynamics(bank, 1, reward="xyz")


def test_a_patch_geometry_of_another_grid(classifier, clips):
    features = LiveFeatures(classifier, clips, GridAction(3, 96, 24))
    dynamics = Dynamics(features, 1, baseline="all")
    dynamics.restart(np.array([4]), np.zeros((1, 4, 0), np.int64))
    assert dynamics.step(np.array([5])).boxes.tolist() == [[36, 72, 60, 96]]
    assert dynamics.confidence_of_candidates().shape == (1, 9)
