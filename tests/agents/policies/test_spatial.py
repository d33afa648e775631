"""The spatial policy network: modules compared with PyTorch's, any grid and map size, inside and outside of Stable-Baselines3."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FINE_GRID
from gymnasium import spaces
from torch import nn

from adafocus_env.action import GridAction
from agents.config.settings import NetworkConfig
from agents.evaluation.inference import infer, policy_flops
from agents.policies import spatial
from agents.policies.baselines import LearnedPolicy
from agents.policies.networks import CARD, PolicyNetwork, architecture_of, load_policy, save_policy
from agents.policies.sb3 import ClipReferenceExtractor, PatchActorCriticPolicy, bind, load_network, to_network
from agents.policies.spatial import ConvGRU, SpatialArchitecture, cell_weights, pixel_locations
from classifiers.errors import InputError

pytestmark = FINE_GRID
SMALL = SpatialArchitecture((5, 6, 6), patch_share=1 / 3, width=4)


class Glances:
    """Random glance maps in place of the features of clips."""

    num_steps = 4

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.maps = torch.randn(3, self.num_steps, *shape, generator=torch.Generator().manual_seed(0))

    def glance_maps(self, clips: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        return self.maps[torch.as_tensor(clips), torch.as_tensor(steps)]


@pytest.fixture
def maps():
    return Glances(SMALL.map_shape).maps


def network(architecture: SpatialArchitecture = SMALL, grid: int | None = 5, **settings) -> PolicyNetwork:
    torch.manual_seed(0)
    made = PolicyNetwork(architecture, grid, **settings).eval()
    for parameter in made.parameters():  # a new policy is nearly uniform
        nn.init.normal_(parameter, std=0.3)
    return made


def test_with_kernels_of_one_pixel_it_is_the_gru_of_pytorch_at_every_location(maps):
    ours, theirs = ConvGRU(5, 4, 1), nn.GRU(5, 4, batch_first=True)
    for convolution, weight, bias in ((ours.from_input, "weight_ih_l0", "bias_ih_l0"), (ours.from_state, "weight_hh_l0", "bias_hh_l0")):
        convolution.weight.data = getattr(theirs, weight).data[..., None, None]
        convolution.bias.data = getattr(theirs, bias).data
    pixels = maps.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (N·h·w, D, C)
    expected = theirs(pixels)[0].unflatten(0, (3, 6, 6)).permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(ours(maps), expected)


def test_large_maps_are_read_clip_by_clip_with_the_same_result(maps, monkeypatch):
    results = []
    for limit in (spatial.LARGE_MAP, 1):
        monkeypatch.setattr(spatial, "LARGE_MAP", limit)
        torch.manual_seed(0)
        encoder = SMALL.encoder()
        states = encoder(maps)
        states.square().sum().backward()
        results.append([encoder.clip_by_clip, states, *(parameter.grad for parameter in encoder.parameters())])
    (whole, *expected), (by_clip, *values) = results
    assert not whole and by_clip
    torch.testing.assert_close(values, expected)
    assert torch.equal(encoder(list(maps)), encoder(maps))


def test_the_extractor_reads_large_maps_in_place(bank, monkeypatch):
    monkeypatch.setattr(spatial, "LARGE_MAP", 1)
    reference = spaces.Box(0, 100, (2,), np.int64)
    extractor = ClipReferenceExtractor(reference, SpatialArchitecture(bank.map_shape, patch_share=0.25, width=4))
    extractor.bind(bank)
    states = extractor.encoder(bank.glance_maps(np.array([[2], [5]]), np.arange(bank.num_steps)[None])).detach()
    monkeypatch.setattr(type(bank), "glance_maps", None)
    assert torch.equal(extractor(torch.tensor([[5, 1], [2, 0], [5, 0]])).detach(), states[[1, 0, 1], [1, 0, 0]])


def test_an_actor_that_cannot_skip_is_refused(monkeypatch):
    monkeypatch.setattr(SpatialArchitecture, "actor", lambda architecture, grid, skips: nn.Linear(4 * 36, 25))
    assert PolicyNetwork(SMALL, 5).actor.out_features == 25
    message = r"network=spatial must support skipping with env\.action=skip .*, but Linear, its actor, has no method for_all_counts "
    with pytest.raises(InputError, match=message):
        PolicyNetwork(SMALL, 5, skips=True)
    arguments = {"features_extractor_class": ClipReferenceExtractor, "features_extractor_kwargs": {"architecture": SMALL}}
    with pytest.raises(InputError, match=message):
        PatchActorCriticPolicy(spaces.Box(0, 100, (3,), np.int64), spaces.Discrete(26), lambda _: 1e-3, **arguments)


def test_without_memory_a_decision_does_not_depend_on_earlier_frames(maps):
    other = maps.clone()
    other[:, 0] += 1
    with_memory, without = network(), network(replace(SMALL, memory=False))
    assert torch.equal(without(maps)[:, 1:], without(other)[:, 1:])
    assert not torch.equal(with_memory(maps)[:, 1:], with_memory(other)[:, 1:])


def test_no_decision_depends_on_later_frames(maps):
    other = maps.clone()
    other[:, -1] += 1
    made = network(replace(SMALL, depth=2))
    assert torch.equal(made(maps)[:, :-1], made(other)[:, :-1])


def test_cells_read_the_map_at_the_centres_of_their_patches():
    grid, size, patch = 7, 96, 24
    centres = GridAction(grid, size, patch).corners_of(np.arange(grid**2)) + patch / 2  # pixels of the frame
    rows, columns = torch.meshgrid((torch.arange(8) + 0.5) * 12, (torch.arange(12) + 0.5) * 8, indexing="ij")
    weights = cell_weights((8, 12), grid, patch / size)
    torch.testing.assert_close(weights.sum(0), torch.ones(grid**2))
    for coordinate, axis in ((rows, 0), (columns, 1)):  # a ramp is read without error
        torch.testing.assert_close(coordinate.flatten() @ weights, torch.tensor(centres[:, axis], dtype=torch.float32), atol=1e-3, rtol=0)


def test_the_only_cell_of_a_grid_reads_the_middle():
    assert cell_weights((6, 6), 1, 0.5).reshape(6, 6)[2:4, 2:4].flatten().tolist() == pytest.approx([0.25] * 4)


def test_a_peak_of_the_score_map_is_the_centre_of_the_patch():
    patch = 1 / 3
    locations = pixel_locations((6, 6), patch).reshape(6, 6, 2)
    centres = locations * (1 - patch) + patch / 2  # in fractions of the frame
    assert centres[2, 4].tolist() == pytest.approx([2.5 / 6, 4.5 / 6])
    assert locations.min() == 0 and locations.max() == 1


def test_a_shifted_map_shifts_the_scores():
    made = network(SpatialArchitecture((3, 12, 12), patch_share=1 / 12, width=4), 12)
    glances = torch.zeros(1, 2, 3, 12, 12)
    glances[:, :, :, 5, 5] = 1
    scores, shifted = (made(each)[0, -1].reshape(12, 12) for each in (glances, glances.roll((1, 2), (3, 4))))
    torch.testing.assert_close(scores.roll((1, 2), (0, 1))[4:9, 5:9], shifted[4:9, 5:9])


@pytest.mark.parametrize("grid", [1, 3, 7, 9, None])
@pytest.mark.parametrize("shape", [(1280, 7, 7), (32, 8, 8), (6, 4, 10)])
def test_any_grid_and_any_map(grid, shape, recwarn):
    made = network(SpatialArchitecture(shape, patch_share=0.25), grid)
    output = made(torch.randn(2, 3, *shape))
    assert output.shape == ((2, 3, 2) if grid is None else (2, 3, grid**2)) and output.isfinite().all()
    if grid is None:
        assert ((output >= 0) & (output <= 1)).all()


@pytest.mark.parametrize(("grid", "warned"), [(6, False), (7, True)])
def test_a_grid_finer_than_the_map_is_reported(grid, warned, recwarn):
    network(SMALL, grid)
    expected = ["a 7×7 grid is finer than the 6×6 score map, which cannot distinguish neighbouring cells; set env.grid=6 or less"]
    assert [str(each.message) for each in recwarn] == (expected if warned else [])


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("grid", [5, None])
def test_the_policy_of_stable_baselines3_is_the_same_network(grid, skips):
    glances, outputs = Glances(SMALL.map_shape), 2 if grid is None else grid**2
    observations = spaces.Box(0, 99, (2 + skips,), np.float32)
    actions = spaces.Box(0, 1, (2 + skips,), np.float32) if grid is None else spaces.Discrete(outputs + skips)
    policy = PatchActorCriticPolicy(
        observations, actions, lambda _: 1e-3,
        features_extractor_class=ClipReferenceExtractor, features_extractor_kwargs={"architecture": SMALL},
    )  # fmt: skip
    source = network(SMALL, grid, skips=skips)
    load_network(policy, source)
    bind(policy, glances, cache=False)
    with torch.no_grad():
        expected, states = source(glances.maps), source.encoder(glances.maps)
        for step in range(4):
            counts = torch.full((3, 1), float(step)) if skips else torch.zeros(3, 0)
            reference = torch.cat([torch.tensor([[clip, step] for clip in range(3)]), counts], dim=1)
            distribution = policy.get_distribution(reference).distribution
            found = distribution.mean if grid is None else distribution.logits
            output = expected[:, step, step] if skips else expected[:, step]
            torch.testing.assert_close(found, output if grid is None else output.log_softmax(-1))
            value = source.critic(torch.cat([states[:, step], counts], dim=1))
            torch.testing.assert_close(policy.predict_values(reference), value)
    assert torch.equal(to_network(policy)(glances.maps), expected)


def test_a_new_policy_is_nearly_uniform_and_skips_half_of_the_frames():
    torch.manual_seed(0)
    made = PolicyNetwork(SpatialArchitecture((32, 8, 8), 0.25), 7, skips=True)
    shares = made(torch.randn(2, 3, 32, 8, 8)).softmax(-1)
    assert shares[..., -1].min() > 0.4 and shares[..., -1].max() < 0.6
    assert shares[..., :-1].max() < 2 / 98


def test_with_unit_gain_the_gradient_of_the_location_reaches_the_first_layer():
    torch.manual_seed(0)
    made, glances = PolicyNetwork(SpatialArchitecture((32, 8, 8), 0.25), None), torch.randn(16, 3, 32, 8, 8)
    weight = made.encoder.frame[0].weight
    (small,) = torch.autograd.grad(made(glances).square().sum(), weight)
    made.actor.use_unit_gain()
    (large,) = torch.autograd.grad(made(glances).square().sum(), weight)
    assert large.norm() > 50 * small.norm()


@pytest.mark.parametrize("skips", [False, True])
def test_it_comes_back_as_it_was_saved(skips, maps, tmp_path):
    made = network(SMALL, 5, skips=skips)
    save_policy(made, tmp_path, {})
    loaded = load_policy(tmp_path)
    assert loaded.architecture == SMALL
    assert torch.equal(loaded(maps), made(maps))


def test_a_policy_of_an_unknown_kind_is_refused(tmp_path):
    save_policy(network(), tmp_path, {})
    card = json.loads((tmp_path / CARD).read_text())
    card["network"]["kind"] = "spatail"
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"policy\.json.*network\.kind='spatail' is not known; did you mean 'spatial'\? .* plugin=MODULE"):
        load_policy(tmp_path)


def test_the_settings_name_the_kind_and_its_sizes():
    config = NetworkConfig(width=8, kernel=5, depth=2, memory=False)
    assert architecture_of((5, 6, 6), 0.5, config) == SpatialArchitecture((5, 6, 6), 0.5, 8, 5, 2, memory=False)
    with pytest.raises(InputError, match=r"network\.name='flat' is not known; choose one of \['published', 'published_v2', 'spatial'\]"):
        architecture_of((5, 6, 6), 0.5, NetworkConfig(name="flat"))


def test_at_full_size_it_costs_a_twentieth_of_the_glancer_at_most():
    policy = PolicyNetwork(architecture_of((1280, 7, 7), 96 / 224, NetworkConfig()), 7)
    glancer = 300e6  # MobileNetV2 at 224 pixels; see tests/classifiers/test_flops.py
    assert 0 < policy_flops(policy) <= 0.05 * glancer
    pixels, width = 49, 8
    layers = 1280 * width + 9 * width * 3 * width * 2 + 9 * width * width + width
    assert policy_flops(policy) == pixels * layers + pixels * 49


def test_a_policy_for_patches_of_another_size_is_refused(bank):
    architecture = SpatialArchitecture(bank.map_shape, patch_share=0.5, width=4)
    message = r"the policy was trained with patches of 0\.5 of the frame's side, the classifier's are 24 of 96 pixels; use the policy that"
    with pytest.raises(InputError, match=message):
        LearnedPolicy(network(architecture, 7), bank)
    frames = bank.classifier.normalise(torch.zeros(1, 2, 3, 96, 96, dtype=torch.uint8))
    with pytest.raises(InputError, match=message):
        infer(bank.classifier, network(architecture, 7), frames)
