"""AdaFocusV2's checkpoints of the ActivityNet family: results equal those of the authors' code, and invalid files are refused."""

import re

import numpy as np
import pytest
import released_weights
import torch
from conftest import slow_except
from released_weights import assert_near

from adafocus_env.videos.frame_sampling import coarse_to_fine
from agents import load_policy
from agents.config.settings import ImportCheckpoint
from agents.evaluation.inference import infer
from agents.released.checkpoint import import_released, read_released
from classifiers import checkpoint
from classifiers.crop import crop_at_locations
from classifiers.errors import InputError

pytestmark = pytest.mark.slow

CLIPS, T, PLACES = 2, 16, (0, 5, 10, 15)
UNUSED = [f"{network}.{tensor}" for network in ("global_CNN.classifier", "local_CNN.fc") for tensor in ("weight", "bias")]


@pytest.fixture(scope="module")
def content():
    """Return a released dictionary; tests must copy it before changes."""
    return released_weights.released_v2("activitynet_v2")


@pytest.fixture(scope="module")
def stored():
    return released_weights.results("activitynet_v2")


@pytest.fixture(scope="module")
def frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, T, 224, seed=20220614), stored["input.first64"])


@pytest.fixture(scope="module")
def imported(content, tmp_path_factory):
    """Return the folder that the command writes for a released file."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(content, folder / "file.pth.tar")
    said = import_released(ImportCheckpoint(str(folder / "file.pth.tar"), str(folder / "out")))
    assert said == (
        f"left out, because no network uses them: {', '.join(UNUSED)}\n{folder / 'out'}: classifier with 200 classes, max_per_step head, "
        "patches of 96 pixels; continuous policy with interpolated patches on glance maps of 1280 channels per decision"
    )
    return folder / "out"


@pytest.fixture(scope="module")
def classifier(imported):
    """Return a classifier with patches of 96 pixels. Weights do not depend on the patch size."""
    return checkpoint.load(imported)


@pytest.fixture(scope="module")
def policy(imported):
    return load_policy(imported)


@pytest.fixture(scope="module")
def glances(classifier, frames):
    """Return glance maps (B, T, 1280, 7, 7) and vectors (B, T, 1280)."""
    with torch.no_grad():
        return tuple(part.unflatten(0, (CLIPS, T)) for part in classifier.glance(frames.flatten(0, 1)))


# The authors' results


def test_the_weights_are_those_that_the_results_were_computed_with(content):
    for name, (_, norm) in released_weights.names("activitynet_v2").items():
        assert content["state_dict"][f"module.{name}"].double().norm().item() == pytest.approx(norm, rel=1e-6), name


def test_every_tensor_of_the_file_is_in_the_checkpoint_or_named_as_unused(classifier, policy, content):
    def sums(tensors):
        return sorted((tuple(tensor.shape), tensor.double().sum().item()) for tensor in tensors)

    used = [tensor for name, tensor in content["state_dict"].items() if name.removeprefix("module.") not in UNUSED]
    ours = [*classifier.state_dict().values(), *(tensor for name, tensor in policy.state_dict().items() if not name.startswith("critic."))]
    assert sums(ours) == sums(used)
    assert not policy.critic.weight.any() and not policy.critic.bias.any()


def test_the_cards_say_how_patches_are_cropped_and_frames_ordered(classifier, policy):
    assert policy.interpolated and policy.grid is None
    assert (classifier.clip_format.num_frames, classifier.clip_format.order) == (16, "coarse_to_fine")
    assert np.array_equal(coarse_to_fine(16), released_weights.results("activitynet_v2")["order"])


@pytest.mark.numerical
def test_glances_and_their_auxiliary_scores(classifier, glances, stored):
    maps, vectors = glances
    assert_near(maps.flatten()[None, :64], stored["global_feat_map.first64"][None], "glance map")
    assert_near(maps.flatten(2).norm(dim=-1), stored["global_feat_map.norm_bt"], "norms of glance maps", 1e-5)
    assert_near(vectors.norm(dim=-1), stored["global_feat.norm_bt"], "norms of glance vectors", 1e-5)
    assert_near(vectors[0, 0, :64][None], stored["global_feat.first64"][None], "glance vector")
    assert_near(classifier.glancer.scores(vectors), stored["global_logits"], "scores of the glancer", 1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("patch_size", slow_except([96], [96, 128]))
def test_patches_focus_vectors_and_scores(classifier, policy, frames, glances, stored, patch_size):
    theirs = {name.split(".", 1)[1]: value for name, value in stored.items() if name.startswith(f"p{patch_size}.")}
    locations = policy.act(glances[0])
    assert np.allclose(locations, stored["actions"], rtol=0, atol=1e-4)
    # A focuser of random weights amplifies rounding in the locations a hundred times, so that theirs are used here.
    patches = crop_at_locations(frames, torch.from_numpy(stored["actions"]), patch_size)
    assert np.allclose(patches[:, PLACES][:, :, 0, 0, :64], theirs["patch_first64"], rtol=0, atol=3e-4)
    assert np.allclose(patches[:, PLACES][:, :, 2, -1, -16:], theirs["patch_last16"], rtol=0, atol=3e-4)
    assert np.allclose(patches.flatten(2).norm(dim=-1), theirs["patch_mean_norm"][..., 1], rtol=1e-4)
    with torch.no_grad():
        focus_vectors = classifier.focus(patches.flatten(0, 1)).unflatten(0, (CLIPS, T))
        scores, _ = classifier.classify(glances[1], focus_vectors)
    assert_near(focus_vectors.norm(dim=-1), theirs["local_feat.norm_bt"], "norms of focus vectors", 5e-5)
    assert_near(focus_vectors[:, PLACES][..., :64], theirs["local_feat.first64"], "focus vectors", 5e-5)
    assert_near(classifier.focuser.scores(focus_vectors), theirs["local_logits"], "scores of the focuser", 5e-5)
    assert_near(scores, theirs["logits"], "scores", 5e-5)


@pytest.mark.numerical
def test_the_whole_pass(classifier, policy, frames, stored):
    found = infer(classifier, policy, frames)
    assert np.allclose(found.actions, stored["actions"], rtol=0, atol=1e-4)
    assert_near(found.logits, stored["p96.logits"], "scores of the whole pass", 2e-3)
    assert (found.boxes[..., :2] - found.actions.double() * 128).abs().max() <= 0.5 + 1e-3
    assert (found.boxes[..., 2:] - found.boxes[..., :2] == 96).all()


@pytest.mark.slow
@pytest.mark.numerical
def test_the_whole_pass_in_the_released_order_of_frames(imported, policy, frames, stored):
    classifier = read_released(imported.parent / "file.pth.tar", patch_size=128).classifier
    found = infer(classifier, policy, frames[:, torch.from_numpy(coarse_to_fine(T))])
    assert np.allclose(found.actions, stored["p128.sampled_actions"], rtol=0, atol=1e-4)
    assert_near(found.logits, stored["p128.sampled_logits"], "scores in the released order", 2e-3)


def resnet(*, drawn):
    """Return the content of a file with the ResNet-50 glancer."""
    kinds = released_weights.names("activitynet_v2")
    shapes = {name: None for name in kinds if name.startswith("global_CNN.")}
    shapes |= {name.replace("local_CNN.", "global_CNN.", 1): kinds[name][0] for name in kinds if name.startswith("local_CNN.")}
    shapes |= {
        "policy_stn.encoder.0.weight": (64, 2048, 1, 1), "policy_stn.encoder.4.weight": (2048, 576), "global_CNN_fc.1.weight": (200, 2048),
        "classifier.mlp.layers.0.weight": (4096, 4096),
    }  # fmt: skip
    return released_weights.released_v2("activitynet_v2", drawn=drawn, **shapes)


@pytest.mark.slow
@pytest.mark.numerical
def test_the_resnet_glancer_on_small_frames(frames, stored, tmp_path):
    theirs = {name.removeprefix("res50."): value for name, value in stored.items() if name.startswith("res50.")}
    torch.save(resnet(drawn=True), tmp_path / "actnet_p96_res50.pth.tar")
    read = read_released(tmp_path / "actnet_p96_res50.pth.tar")
    assert (read.classifier.architecture.glance_size, read.classifier.architecture.resize) == (96, "align_corners")
    with torch.no_grad():
        maps, vectors = (part.unflatten(0, (CLIPS, T)) for part in read.classifier.glance(frames.flatten(0, 1)))
        found = infer(read.classifier, read.policy, frames)
    assert tuple(maps.shape[2:]) == (2048, 3, 3)
    assert_near(maps.flatten(2).norm(dim=-1), theirs["global_feat_map.norm_bt"], "norms of glance maps", 1e-5)
    assert_near(read.classifier.glancer.scores(vectors), theirs["global_logits"], "scores of the glancer", 1e-5)
    assert np.allclose(found.actions, theirs["actions"], rtol=0, atol=1e-4)
    assert_near(found.logits, theirs["p96.logits"], "scores", 2e-3)


def test_a_file_with_the_resnet_glancer_is_recognized(tmp_path):
    torch.save(resnet(drawn=False), tmp_path / "file.pth")
    read = read_released(tmp_path / "file.pth")
    architecture = read.classifier.architecture
    assert (architecture.glancer, architecture.glance_size, architecture.resize) == ("resnet50", 96, "align_corners")
    assert read.policy.architecture.map_shape == (2048, 3, 3) and read.classifier.head.hidden[0].in_features == 4096
    assert sorted(read.unused) == ["global_CNN.fc.bias", "global_CNN.fc.weight", "local_CNN.fc.bias", "local_CNN.fc.weight"]


def test_a_file_with_four_steps_has_a_head_and_clips_of_four(tmp_path):
    beyond = {name: None for name in released_weights.names("activitynet_v2") if re.match(r"classifier\.classifiers\.([4-9]|1\d)\.", name)}
    read = read_released(hollow(tmp_path, **beyond))
    assert (read.classifier.architecture.head_steps, read.classifier.clip_format.num_frames) == (4, 4)


# What is refused


def hollow(folder, name="file.pth", **changes):
    """Save a file with all names and shapes, no values, and some tensors replaced; None: left out."""
    tensors = released_weights.released_v2("activitynet_v2", drawn=False)["state_dict"]
    tensors |= {f"module.{key}": tensor for key, tensor in changes.items()}
    torch.save({"state_dict": {key: tensor for key, tensor in tensors.items() if tensor is not None}}, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"policy_stn.gru.bias_hh_l0": None}, "AdaFocusV2-ActivityNet family: missing policy_stn.gru.bias_hh_l0"),
        ({"policy_stn.other.weight": torch.zeros(2)}, "unexpected policy_stn.other.weight"),
        ({"policy_stn.fc.0.bias": torch.zeros(3)}, r"policy_stn.fc.0.bias has shape \(3,\) instead of \(2,\)"),
        ({"classifier.classifiers.7.1.bias": None}, "missing classifier.classifiers.7.1.bias"),
        ({"global_CNN_fc.1.weight": torch.zeros(200)}, r"global_CNN_fc.1.weight has shape \(200,\), which gives the number of classes"),
        ({"local_CNN_fc.1.bias": "text"}, r"state_dict\['module.local_CNN_fc.1.bias'\] is a str, not a tensor"),
    ],
)
def test_files_that_do_not_hold_what_they_should(tmp_path, tensors, message):
    with pytest.raises(InputError, match=message):
        read_released(hollow(tmp_path, **tensors))


def test_a_file_without_a_head_is_refused(tmp_path):
    heads = {name: None for name in released_weights.names("activitynet_v2") if "classifier.classifiers." in name}
    with pytest.raises(InputError, match=r"missing classifier.classifiers.0.1.weight, the first linear layer of the head"):
        read_released(hollow(tmp_path, **heads))


def test_another_family_or_patch_size_than_asked_for_is_refused(tmp_path):
    file = hollow(tmp_path, "actnet_p128_mbv2.pth.tar")
    with pytest.raises(InputError, match="is of the AdaFocusV2-ActivityNet family, not of family=ActivityNet; give another file"):
        read_released(file, family="ActivityNet")
    with pytest.raises(InputError, match=r"patch_size must be 128, as in the name of file=.*, got 96; leave it out"):
        read_released(file, patch_size=96)
    assert read_released(file).classifier.architecture.patch_size == 128
    with pytest.raises(InputError, match="patch_size=225 does not fit frames of 224 pixels"):
        read_released(hollow(tmp_path), patch_size=225)
