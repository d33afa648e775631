"""The spatial network of the off-policy algorithms: values of cells, locations as actions, critics that read the map at the action."""

import pytest
import torch
from gymnasium import spaces

from agents.policies.off_policy import CellValues, LocationActor, ReadAtAction, bilinear_weights
from agents.policies.spatial import SpatialArchitecture, cell_weights

SHARE = 0.25
ARCHITECTURE = SpatialArchitecture((5, 6, 8), SHARE, width=4)
REFERENCE = spaces.Box(0, 9, (2,))
WITH_COUNT = spaces.Box(0, 9, (3,))
SIZE = 4 * 6 * 8


def maps(number=3):
    return torch.randn(number, SIZE, generator=torch.Generator().manual_seed(0))


def test_bilinear_weights_are_those_of_the_cells():
    axis = torch.linspace(0, 1, 7)
    rows, columns = bilinear_weights(axis, 6, SHARE), bilinear_weights(axis, 8, SHARE)
    outer = torch.einsum("ah,bw->hwab", rows, columns).reshape(48, 49)
    torch.testing.assert_close(outer, cell_weights((6, 8), 7, SHARE))


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
    actor = LocationActor(ARCHITECTURE, None, False)
    torch.nn.init.zeros_(actor.scores.layers[-1].bias)
    with torch.no_grad():
        before = actor(maps()).tanh()
        actor.scores.layers[-1].weight.mul_(1e6)
        highest = actor.scores(maps())[:, 0].argmax(1)
        after = (actor(maps()).tanh() + 1) / 2
    assert before.abs().max() < 0.02, "at first the middle"
    centres = (torch.stack([(highest // 8 + 0.5) / 6, (highest % 8 + 0.5) / 8], 1) - SHARE / 2) / (1 - SHARE)
    torch.testing.assert_close(after, centres.clamp(0.005, 0.995), atol=1e-4, rtol=0)


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
