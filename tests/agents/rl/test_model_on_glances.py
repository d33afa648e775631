"""Models of all algorithms choose the same actions on given glances as in evaluation."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FINE_GRID, slow_except
from test_algorithms import NETWORKS, locations, named, settings  # noqa: F401  the fixture is asked for by its name
from tiny_algorithms import learn

from agents.evaluation.conditional_exit import ExitModel, ExitThresholds
from agents.evaluation.evaluate import evaluate_policy, policy_macs
from agents.evaluation.inference import infer, policy_flops
from agents.prediction.checkpoints import _load_model as load_for_prediction
from agents.rl.algorithms import CONTINUOUS, DISCRETE
from agents.rl.saved_model import load_model
from classifiers.errors import InputError

pytestmark = FINE_GRID
CPU = torch.device("cpu")
QUICK_CASES = [case for case in NETWORKS if case[0] in ("recurrent_ppo", "dqn") and (case[1] == CONTINUOUS or case[0] == "dqn")]
CLIPS, STEPS = np.arange(12), np.arange(4)


def trained(folder, features, name, kind, network, **env):
    learn(folder, features, settings(name), kind, network=network, **env)
    best = folder / "checkpoints" / "best"
    policy, model = load_for_prediction(best, CPU), load_model(best, "cpu")
    for network in (policy.network, model.model.policy):  # tiny ones may have dead units, which give all cells the same value
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.data += 0.5 * torch.rand(parameter.shape, generator=generator)
    return policy, model


@pytest.mark.parametrize(("name", "kind", "network"), slow_except(QUICK_CASES, NETWORKS), ids=named)
def test_every_model_predicts_as_it_is_evaluated(tmp_path, bank, locations, name, kind, network):  # noqa: F811
    features = bank if kind == DISCRETE else locations
    policy, model = trained(tmp_path, features, name, kind, network)
    played = evaluate_policy(features, model.on(features))
    maps = features.glance_maps(CLIPS[:, None], STEPS[None])
    actions = policy.act(maps)
    assert actions.numpy() == pytest.approx(played.actions, abs=1e-5)
    state = None
    for step in STEPS:
        chosen, state = policy.act_next(maps[:, step], state, torch.zeros(12))
        assert chosen.numpy() == pytest.approx(played.actions[:, step], abs=1e-5)
    frames = features.classifier.normalise(torch.stack([features.clips.frames(clip) for clip in range(12)]))
    found = infer(features.classifier, policy, frames)
    assert found.logits.numpy() == pytest.approx(played.scores, abs=1e-3) and found.patch_mask.all()
    assert 4 * policy_flops(policy) == policy_macs(features, model.on(features))
    early = infer(features.classifier, policy, frames[:3], exit=ExitThresholds(np.array([np.inf, -1, 0, 0]), "softmax", None))
    assert early.processed.sum(1).tolist() == [2, 2, 2] and torch.equal(early.boxes[:, :2], found.boxes[:3, :2])
    of = partial(ExitModel.of, features.classifier, num_frames=4, num_steps=4, skipped="zeros")
    assert of(policy=policy) == of(policy=model), "evaluation and prediction share thresholds"


@pytest.mark.parametrize("name", ["maskable_ppo", pytest.param("a2c", marks=pytest.mark.slow), pytest.param("dqn", marks=pytest.mark.slow)])
def test_models_that_skip_predict_as_they_are_evaluated(tmp_path, bank, name):
    policy, model = trained(tmp_path, bank, name, DISCRETE, NETWORKS[0][2], action="skip", baseline=1, cost_weight=0.05)
    played = evaluate_policy(bank, model.on(bank))
    assert policy.skips and policy.grid == 7
    actions = policy.act(bank.glance_maps(CLIPS[:, None], STEPS[None])).numpy()
    assert np.array_equal(actions != 49, played.patch_mask)
    assert np.array_equal(actions[played.patch_mask], played.actions[played.patch_mask])
    with pytest.raises(InputError, match=r"keep_threshold must be left out with a model of another algorithm .*, got 0\.5; use"):
        policy.act(torch.zeros(1, 1, 16, 6, 6), 0.5)
    with pytest.raises(InputError, match="exit must be left out with a model that skips frames; use a policy network, such as"):
        policy.act_next(torch.zeros(1, 16, 6, 6), None, torch.zeros(1))


def test_a_model_that_reads_more_than_glances_is_refused(tmp_path, bank):
    learn(tmp_path, bank, settings("dqn"))
    card = tmp_path / "checkpoints" / "best" / "model.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "observation": "map"}))
    with pytest.raises(InputError, match=r"must act on glances only for predictions, got .* 'map'; train it with algo\.obs"):
        load_for_prediction(card.parent, CPU)
