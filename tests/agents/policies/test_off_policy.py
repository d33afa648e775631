"""The spatial network in off-policy algorithms: values of cells, actions that are locations, and critics that read the map at an action."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents.policies.contrib import MaskablePatchPolicy
from agents.policies.off_policy import (
    CellValues,
    LocationActor,
    ReadAtAction,
    SpatialCrossQPolicy,
    SpatialDQNPolicy,
    SpatialQRDQNPolicy,
    SpatialSACPolicy,
    SpatialTD3Policy,
    SpatialTQCPolicy,
    bilinear_weights,
)
from agents.policies.sb3 import ClipReferenceExtractor, PatchActorCriticPolicy, to_network
from agents.policies.spatial import PooledCritic, SpatialActor, SpatialArchitecture, cell_weights
from classifiers.errors import InputError

SHARE = 0.25
ARCHITECTURE = SpatialArchitecture((5, 6, 8), SHARE, width=4)
REFERENCE = spaces.Box(0, 9, (2,))
WITH_COUNT = spaces.Box(0, 9, (3,))
SIZE = 4 * 6 * 8


def maps(number=3):
    return torch.randn(number, SIZE, generator=torch.Generator().manual_seed(0))


def test_bilinear_weights_are_those_of_the_cells():
    axis = torch.linspace(0, 1, 5)
    rows, columns = bilinear_weights(axis, 6, SHARE), bilinear_weights(axis, 8, SHARE)
    outer = torch.einsum("ah,bw->hwab", rows, columns).reshape(48, 25)
    torch.testing.assert_close(outer, cell_weights((6, 8), 5, SHARE))


@pytest.mark.parametrize(("space", "quantiles"), [(REFERENCE, 1), (WITH_COUNT, 1), (WITH_COUNT, 5)])
def test_the_value_of_a_cell_is_the_score_at_its_centre_plus_an_offset(space, quantiles):
    values = CellValues(ARCHITECTURE, space, spaces.Discrete(10), quantiles)
    states = torch.cat([maps(), torch.ones(3, space.shape[0] - 2)], 1)
    found = values(states).unflatten(1, (quantiles, 10))
    scores = values.scores(maps()) @ cell_weights((6, 8), 3, SHARE)
    offsets = found[..., :9] - scores
    torch.testing.assert_close(offsets, offsets[..., :1].expand(-1, -1, 9))
    assert found[..., :9].std(-1).min() > 0 and offsets.std() > 0


def test_the_location_of_an_actor_is_where_the_score_is_highest():
    torch.manual_seed(0)  # two pixels with nearly the same score would have no highest one
    actor = LocationActor(ARCHITECTURE, None, False)
    torch.nn.init.zeros_(actor.scores.layers[-1].bias)
    with torch.no_grad():
        before = actor(maps()).tanh()
        actor.scores.layers[-1].weight.mul_(1e6)
        highest = actor.scores(maps())[:, 0].argmax(1)
        after = (actor(maps()).tanh() + 1) / 2
    assert before.abs().max() < 0.02, "at first the middle"
    centres = (torch.stack([(highest // 8 + 0.5) / 6, (highest % 8 + 0.5) / 8], 1) - SHARE / 2) / (1 - SHARE)
    torch.testing.assert_close(after, 0.5 + 0.99 * (centres.clamp(0, 1) - 0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("space", [REFERENCE, WITH_COUNT])
def test_a_critic_reads_the_map_at_the_action(space):
    reader, counts = ReadAtAction(ARCHITECTURE, space), torch.full((3, space.shape[0] - 2), 2.0)
    row, column = 3, 5  # of a pixel; in [−1, 1] its location is
    action = torch.tensor([(row + 0.5) / 6, (column + 0.5) / 8]).sub(SHARE / 2).div(1 - SHARE).mul(2).sub(1).expand(3, 2)
    states = maps().requires_grad_()
    read = reader(torch.cat([states, counts, action], 1))
    assert read.shape == (3, ReadAtAction.features(ARCHITECTURE, space) + 2)
    torch.testing.assert_close(read[:, :4], reader.layers(states)[:, :, row, column], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read[:, 12:], torch.cat([counts, action], 1))


def test_a_critic_has_a_gradient_with_respect_to_the_action():
    reader = ReadAtAction(ARCHITECTURE, REFERENCE).double()
    states, actions = maps().double(), torch.tensor([[-0.9, 0.13], [0.31, 0.77], [0.05, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda action: reader(torch.cat([states, action], 1)), actions)


def policy(kind, actions, observations=REFERENCE, **kwargs):
    torch.manual_seed(0)
    extractor = {"features_extractor_class": ClipReferenceExtractor, "features_extractor_kwargs": {"architecture": ARCHITECTURE}}
    return kind(observations, actions, lambda _: 1e-3, **extractor, **kwargs)


CELLS, LOCATIONS = spaces.Discrete(10), spaces.Box(0, 1, (3,), np.float32)
ACTOR_CRITICS = (SpatialSACPolicy, SpatialTD3Policy, SpatialTQCPolicy, SpatialCrossQPolicy)


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_an_actor_scores_the_map_and_a_critic_keeps_its_layers(kind):
    made = policy(kind, LOCATIONS, WITH_COUNT, net_arch={"pi": [], "qf": [7]}, n_critics=3)
    assert sum(isinstance(module, LocationActor) for module in made.actor.modules()) == 1
    reader, layers = made.critic.q_networks[2]
    assert made.critic.qf2 is made.critic.q_networks[2] and isinstance(reader, ReadAtAction)
    sizes = [(module.in_features, module.out_features) for module in layers.modules() if isinstance(module, nn.Linear)]
    assert sizes == [(3 * 4 + 1 + 3, 7), (7, 25 if kind is SpatialTQCPolicy else 1)]
    assert len(list(made.critic.parameters())) == sum(len(group["params"]) for group in made.critic.optimizer.param_groups)
    assert len(list(made.actor.parameters())) == sum(len(group["params"]) for group in made.actor.optimizer.param_groups)


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_the_layers_of_an_actor_are_refused(kind):
    message = r"policy_kwargs\.net_arch\.pi must be \[\] with network=spatial, got \[8\]: .*; leave it out, or set network=published"
    with pytest.raises(InputError, match=message):
        policy(kind, LOCATIONS, WITH_COUNT, net_arch=[8])
    assert [type(module).__name__ for module in policy(kind, LOCATIONS).critic.q_networks[0][1]].count("Linear") == 2, "the default"


@pytest.mark.parametrize("kind", [SpatialDQNPolicy, SpatialQRDQNPolicy, MaskablePatchPolicy])
def test_layers_between_map_and_score_map_are_refused(kind):
    with pytest.raises(InputError, match=r"policy_kwargs\.net_arch must be \[\] with network=spatial, got \[8\]"):
        policy(kind, CELLS, net_arch=[8])


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_locations_are_those_of_the_soft_argmax(kind):
    """For any scaling of an algorithm, the action is the soft-argmax, and the third coordinate is the inverse sigmoid of skipping."""
    made = policy(kind, LOCATIONS, WITH_COUNT)
    states = torch.cat([maps(), torch.tensor([[0.0], [1.0], [2.0]])], 1)
    made.actor.extract_features = lambda obs, extractor: states
    (actor,) = (module for module in made.actor.modules() if isinstance(module, SpatialActor))
    nn.init.normal_(actor.scores.layers[-1].weight, std=10)
    with torch.no_grad():
        actions = torch.as_tensor(made.unscale_action(made.actor._predict(torch.zeros(3, 3), deterministic=True).numpy()))
        expected = SpatialActor.forward(actor, states).sigmoid()
    torch.testing.assert_close(actions, expected)
    assert expected[:, :2].std(0).min() > 0.01


@pytest.mark.parametrize("use_sde", [False, True])
def test_the_spread_of_sac_is_learned_from_pooled_features_or_by_gsde(use_sde):
    made = policy(SpatialSACPolicy, LOCATIONS, WITH_COUNT, use_sde=use_sde)
    states = torch.cat([maps(), torch.ones(3, 1)], 1)
    made.actor.extract_features = lambda obs, extractor: states
    if use_sde:
        made.reset_noise(3)
    actions, log_prob = made.actor.action_log_prob(torch.zeros(3, 3))
    log_prob.sum().backward()
    spread = made.actor.log_std if use_sde else made.actor.log_std.weight
    assert actions.shape == (3, 3) and spread.grad.abs().sum() > 0


def test_masked_actions_have_the_actor_and_the_critic_of_the_architecture():
    made = policy(MaskablePatchPolicy, CELLS, WITH_COUNT, net_arch=[])
    assert isinstance(made.action_net, SpatialActor) and isinstance(made.value_net, PooledCritic)
    states = torch.cat([maps(), torch.ones(3, 1)], 1)
    made.pi_features_extractor.forward = lambda obs: states
    masks = np.zeros((3, 10), bool)
    masks[:, 4] = True
    assert (made._predict(torch.zeros(3, 3), action_masks=masks) == 4).all()
    assert {id(each) for each in made.parameters()} == {id(each) for group in made.optimizer.param_groups for each in group["params"]}


def test_a_learned_standard_deviation_is_exported():
    made = policy(PatchActorCriticPolicy, spaces.Box(0, 1, (2,)), std=0.3, learn_std=True)
    assert to_network(made).std == pytest.approx(0.3) and made.log_std.requires_grad
    made.log_std.data = torch.tensor([0.1, 0.3]).log()
    assert to_network(made).std == pytest.approx(0.2)
