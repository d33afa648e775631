"""The authors' checkpoints of the Something-Something family: results equal those of the authors' code, and invalid files are refused."""

import copy

import numpy as np
import pytest
import released_weights
import torch
from released_weights import ROUNDING, assert_near, parallel, same_pixels, save

from adafocus_env.reward import REWARDS
from agents import load_policy
from agents.config.settings import ImportCheckpoint
from agents.evaluation.inference import infer
from agents.policies.networks import PolicyArchitecture
from agents.released.checkpoint import import_released, read_released
from classifiers import checkpoint
from classifiers.backbones.temporal_shift import shift_channels
from classifiers.crop import crop_patches
from classifiers.errors import InputError

pytestmark = pytest.mark.slow

CLIPS, GLANCES, FRAMES, PATCH = 4, 8, 12, 144
MAPS = (GLANCES * 1280, 7, 7)


@pytest.fixture(scope="module")
def content():
    """Return a released dictionary of stage 2; tests must copy it before changes."""
    return released_weights.released("something")


@pytest.fixture(scope="module")
def stored():
    return released_weights.results("something")


@pytest.fixture(scope="module")
def file(content, tmp_path_factory):
    return save(parallel(content), tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def read(file):
    """Return the classifier and the policy in the file."""
    return read_released(file)


@pytest.fixture(scope="module")
def glance_frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, GLANCES, 224, seed=20210504), stored["glancer_input.first64"])


@pytest.fixture(scope="module")
def frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, FRAMES, 224, seed=20210505), stored["focuser_input.first64"])


@pytest.fixture(scope="module")
def glances(read, glance_frames):
    """Return glance maps (B, 8, 1280, 7, 7) and vectors (B, 8, 1280) in float64."""
    with torch.no_grad():
        maps, vectors = copy.deepcopy(read.classifier).double().glance(glance_frames.flatten(0, 1).double(), GLANCES)
    return maps.unflatten(0, (CLIPS, GLANCES)), vectors.unflatten(0, (CLIPS, GLANCES))


@pytest.fixture(scope="module")
def patches(frames):
    """Return the patches (B·12, 3, P, P) at corners (B, 2), at the same location in all frames of a clip."""

    def cut(corners):
        corners = torch.from_numpy(corners.astype(np.int64)).repeat_interleave(FRAMES, 0)
        return crop_patches(frames.flatten(0, 1), torch.arange(CLIPS * FRAMES), corners, PATCH)

    return cut


@pytest.fixture(scope="module")
def focus_vectors(read, patches, stored):
    """Return focus vectors (B·12, 2048) at the chosen and at random locations."""
    with torch.no_grad():
        return tuple(read.classifier.focus(patches(stored[f"coords_{which}"]), FRAMES) for which in ("chosen", "random"))


# The authors' results


def test_the_weights_are_those_that_the_results_were_computed_with():
    tensors = released_weights.tensors_of("something")
    for name, (shape, norm) in released_weights.names("something").items():
        assert tensors[name].shape == shape and tensors[name].double().norm().item() == pytest.approx(norm, rel=1e-6), name


@pytest.mark.numerical
def test_the_shift(stored):
    theirs = stored["tsm_shift_arange_n8_div8"]
    numbers = torch.arange(theirs.size, dtype=torch.float32).view(theirs.shape)
    assert np.array_equal(shift_channels(numbers, 8, 1 / 8), theirs)


def test_every_tensor_of_the_file_is_in_the_networks_and_nothing_else(read, content):
    def sums(dictionaries):
        return sorted((tuple(t.shape), t.double().sum().item()) for tensors in dictionaries for t in tensors.values())

    fc = content["fc"]
    assert sums([read.classifier.state_dict()]) == sums([content["glancer"], content["focuser"], fc, fc])
    assert sums([read.policy.state_dict()]) == sums([content["policy"]])
    ours = read.classifier.state_dict()
    assert torch.equal(ours["focuser.fc.weight"], fc["weight"]) and torch.equal(ours["head.fc.weight"], fc["weight"])


@pytest.mark.numerical
def test_glances(read, glances, stored):
    maps, vectors = glances
    assert_near(maps.flatten()[None, :64], stored["global_feat_map.first64"][None], "glance map")
    assert_near(maps.flatten(2).norm(dim=-1), stored["global_feat_map.norm_per_bt"], "norms of glance maps")
    assert_near(read.classifier.glancer.scores(vectors.float()), stored["global_logits"], "glancer's scores", ROUNDING)


@pytest.mark.numerical
def test_policy(read, glances, stored):
    stacked, policy = glances[0].flatten(1, 2)[:, None], copy.deepcopy(read.policy).double()
    places = policy.act(stacked)[:, 0]
    assert_near(places, stored["action_mean"], "places")
    assert np.array_equal((places * (224 - PATCH)).floor(), stored["coords_chosen"])
    assert_near(policy.critic(policy.encoder(stacked)).view(1, CLIPS), stored["evaluate.value"], "values")


@pytest.mark.numerical
def test_patches_and_focus_vectors(patches, focus_vectors, stored):
    chosen = patches(stored["coords_chosen"])
    assert same_pixels(chosen.flatten()[:64], stored["patches_chosen.first64"])
    assert chosen.double().norm().item() == pytest.approx(stored["patches_chosen.norm"].item(), rel=1e-6)
    for found, name in zip(focus_vectors, ("local_feat", "random_local_feat"), strict=True):
        assert_near(found[:, :64], stored[f"{name}.first64_per_frame"], name, ROUNDING)
        assert_near(found.norm(dim=-1), stored[f"{name}.norm_per_frame"], f"norms of {name}", ROUNDING)


@pytest.mark.numerical
def test_scores_and_reward(read, glances, focus_vectors, stored):
    """There is one decision per video; the input of the head is the mean of 8 glance vectors and the mean of 12 focus vectors."""
    classifier, seen = read.classifier, glances[1].float().mean(1, keepdim=True)
    chosen, random = (
        classifier.classify(seen, part.unflatten(0, (CLIPS, FRAMES)).mean(1, keepdim=True), classifier.initial_state(CLIPS))[0][:, 0]
        for part in focus_vectors
    )
    assert_near(chosen, stored["logits"], "logits", ROUNDING)
    assert_near(chosen, stored["stage3_logits"], "logits of stage 3", ROUNDING)
    assert_near(random, stored["baseline_logits"], "logits of the random patch", ROUNDING)
    labels = torch.from_numpy(stored["labels"])[:, None]
    now, baseline = (scores.softmax(-1).gather(1, labels)[:, 0] for scores in (chosen, random))
    assert_near(now[None], stored["confidence"], "confidence")
    assert_near(baseline[None], stored["baseline_confidence"], "baseline confidence")
    assert_near(REWARDS["random"].value(now, torch.zeros(CLIPS), baseline)[None], stored["reward_random"], "reward")


# What the command makes


@pytest.fixture(scope="module")
def imported(file, tmp_path_factory):
    """Return the folder that the command writes for a released file."""
    out = tmp_path_factory.mktemp("imported")
    message = import_released(ImportCheckpoint(str(file), str(out), family="Something-Something"))
    assert message == (
        f"{out}: classifier with 174 classes, mean head, patches of 144 pixels; "
        "continuous policy on glance maps of 10240 channels per decision"
    )
    return out


def test_the_card(imported):
    card = checkpoint.read_card(imported)
    assert (card.architecture.shift, card.architecture.shift_place, card.architecture.patch_size) == (1 / 8, "blockres", PATCH)
    assert (card.clip_format.num_frames, card.clip_format.glance_frames) == (12, 8)
    assert card.command.endswith("patch_size=144 family=Something-Something")


@pytest.mark.numerical
def test_the_whole_pass_from_the_folder(imported, frames, glance_frames, stored):
    classifier, policy = checkpoint.load(imported), load_policy(imported)
    found = infer(classifier, policy, frames[:1], glance_frames[:1])
    assert_near(found.actions[:, 0], stored["action_mean"][:1], "places")
    assert found.boxes.shape == (1, FRAMES, 4) and (found.boxes[0, :, :2].numpy() == stored["coords_chosen"][0]).all()
    assert_near(found.logits[:, -1], stored["logits"][:1], "logits of the whole pass")


def test_the_policy_reads_the_glances_of_one_decision(content, read, tmp_path):
    assert read.policy.grid is None and read.policy.architecture == PolicyArchitecture(MAPS, channels=64, batch_norm=True)
    half = {"state_encoder.0.weight": torch.zeros(64, 4 * 1280, 1, 1)}
    two_decisions = read_released(save(content, tmp_path, policy=half), patch_size=176)
    assert two_decisions.policy.architecture.map_shape == (4 * 1280, 7, 7) and two_decisions.classifier.architecture.patch_size == 176


def test_a_file_of_stage_1_gives_a_classifier_alone(content, tmp_path):
    file = save(content, tmp_path, policy=None)
    assert import_released(ImportCheckpoint(str(file), str(tmp_path / "out"))).endswith("no policy (a file of stage 0 or 1)")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.json", "classifier.safetensors"]


# What is refused


def test_faults_are_listed_all_at_once(content, tmp_path):
    file = save(
        content,
        tmp_path,
        glancer={"net.features.3.conv.0.net.weight": None, "net.features.3.conv.0.weight": torch.zeros(144, 24, 1, 1)},
        focuser={"net.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1), "net.base_model.1.weight": torch.zeros(3)},
        fc={"gru.bias_ih_l0": torch.zeros(3072), "weight": None},
        policy={"state_encoder.5.running_var": None, "actor.0.bias": torch.zeros(49)},
    )
    with pytest.raises(InputError) as caught:
        read_released(file)
    message = str(caught.value)
    first = "missing glancer.net.features.3.conv.0.net.weight"
    assert message.startswith(f"file={file} is not a released checkpoint of the Something-Something family: {first}; ")
    for fault in (
        "missing fc.weight",
        "missing policy.state_encoder.5.running_var",
        "unexpected glancer.net.features.3.conv.0.weight",
        "unexpected focuser.net.layer1.0.conv1.weight",
        "unexpected fc.gru.bias_ih_l0",
        "focuser.net.base_model.1.weight has shape (3,) instead of (64,)",
        "policy.actor.0.bias has shape (49,) instead of (2,)",
    ):
        assert f"; {fault}" in message
    assert message.count(";") == 7


def test_parts_of_the_other_family(content, tmp_path):
    """The family of a file is that of most of its names; the other names are faults."""
    content, other = {**content, "policy": None}, released_weights.released(policy=False, drawn=False)
    with pytest.raises(InputError, match=r"the Something-Something family: missing fc\.weight.*; unexpected fc\.gru\.weight_ih_l0; "):
        read_released(save({**content, "fc": other["fc"]}, tmp_path))
    with pytest.raises(InputError, match=r"the ActivityNet family: missing fc\.gru\.weight_ih_l0; .*; unexpected fc\.weight; unexpected"):
        read_released(save({**other, "fc": content["fc"]}, tmp_path))


def test_the_family_that_was_asked_for(file):
    with pytest.raises(InputError, match="is of the Something-Something family, not of family=ActivityNet; give another file, or leave"):
        read_released(file, family="ActivityNet")
    with pytest.raises(InputError, match="family='Something' is not known; did you mean 'Something-Something'"):
        read_released(file, family="Something")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc": {"weight": torch.zeros(174)}}, r"fc\.weight has shape \(174,\), which gives the number of classes"),
        ({"fc": {"weight": None}, "glancer": {}}, r"missing fc\.weight, which gives the number of classes"),
        (
            {"policy": {"state_encoder.0.weight": torch.zeros(64, 2000, 1, 1)}},
            r"policy\.state_encoder\.0\.weight must read a multiple of 1280 channels, the glance map's, got shape \(64, 2000, 1, 1\)",
        ),
    ],
)
def test_dictionaries_that_are_refused(tmp_path, changes, message):
    small = {"glancer": {}, "focuser": {}, "fc": {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, "policy": None}
    with pytest.raises(InputError, match=f"is not a released checkpoint of the Something-Something family: {message}"):
        read_released(save(small, tmp_path, **changes))
