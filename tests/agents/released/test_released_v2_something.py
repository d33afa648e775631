"""AdaFocusV2's checkpoints of the Something-Something family: results equal those of the authors' code, and invalid files are refused."""

import numpy as np
import pytest
import released_weights
import torch
from conftest import slow_except
from released_weights import assert_near

from agents.config.settings import ImportCheckpoint
from agents.evaluation.inference import infer
from agents.released.checkpoint import import_released, read_released
from classifiers.crop import crop_at_locations
from classifiers.errors import InputError

pytestmark = pytest.mark.slow

CLIPS, GLANCES, FRAMES = 4, 8, 12


@pytest.fixture(scope="module")
def content():
    """Return a released dictionary; tests must copy it before changes."""
    return released_weights.released_v2("something_v2")


@pytest.fixture(scope="module")
def stored():
    return released_weights.results("something_v2")


@pytest.fixture(scope="module")
def file(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "file.pth.tar"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def read(file):
    """Return the classifier and the policy in the file, with patches of 128 pixels."""
    return read_released(file)


@pytest.fixture(scope="module")
def glance_frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, GLANCES, 224, seed=20220616), stored["input.first64"])


@pytest.fixture(scope="module")
def frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, FRAMES, 224, seed=20220617), stored["input_focus.first64"])


@pytest.fixture(scope="module")
def glances(read, glance_frames):
    """Return glance maps (B, 8, 1280, 7, 7) and vectors (B, 8, 1280)."""
    with torch.no_grad():
        return tuple(part.unflatten(0, (CLIPS, GLANCES)) for part in read.classifier.glance(glance_frames.flatten(0, 1), GLANCES))


# The authors' results


def test_the_weights_are_those_that_the_results_were_computed_with(content):
    for name, (_, norm) in released_weights.names("something_v2").items():
        assert content["state_dict"][f"module.{name}"].double().norm().item() == pytest.approx(norm, rel=1e-6), name


def test_every_tensor_of_the_file_is_in_the_networks(read, content):
    def sums(tensors):
        return sorted((tuple(tensor.shape), tensor.double().sum().item()) for tensor in tensors)

    policy = [tensor for name, tensor in read.policy.state_dict().items() if not name.startswith("critic.")]
    assert sums([*read.classifier.state_dict().values(), *policy]) == sums(content["state_dict"].values())
    assert not read.unused


def test_what_is_imported(file, tmp_path):
    assert import_released(ImportCheckpoint(str(file), str(tmp_path / "out"), 144)) == (
        f"{tmp_path / 'out'}: classifier with 174 classes, separate_mean head, patches of 144 pixels; continuous policy with interpolated "
        "patches on glance maps of 10240 channels per decision"
    )


@pytest.mark.numerical
def test_glances_and_scores_of_the_glancer(read, glances, stored):
    maps, vectors = glances
    assert_near(maps.flatten(2).norm(dim=-1), stored["global_feat_map.norm_bt"], "norms of glance maps", 1e-5)
    assert_near(vectors.norm(dim=-1), stored["global_feat.norm_bt"], "norms of glance vectors", 1e-5)
    assert_near(read.classifier.glancer.scores(vectors).mean(1), stored["global_aux_logits"], "auxiliary scores of the glancer", 1e-5)
    assert_near(read.classifier.head.glance_fc(vectors).mean(1), stored["global_logits"], "scores of the glances", 1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("patch_size", slow_except([128], [128, 144]))
def test_patches_focus_vectors_and_scores(read, frames, glances, stored, patch_size):
    """All frames of a video have the same location."""
    theirs = {name.split(".", 1)[1]: value for name, value in stored.items() if name.startswith(f"p{patch_size}.")}
    locations = read.policy.act(glances[0].flatten(1, 2)[:, None])
    assert np.allclose(locations[:, 0], stored["action"], rtol=0, atol=1e-4)
    exact = crop_at_locations(frames, torch.from_numpy(stored["action"])[:, None], patch_size)
    assert np.allclose(exact[:, [0, 6], 0, 0, :64], theirs["patch_first64"], rtol=0, atol=3e-4)
    assert np.allclose(exact.flatten(2).norm(dim=-1), theirs["patch_mean_norm"][..., 1], rtol=1e-4)
    with torch.no_grad():
        focus_vectors = read.classifier.focus(crop_at_locations(frames, locations, patch_size).flatten(0, 1), FRAMES)
    focus_vectors = focus_vectors.unflatten(0, (CLIPS, FRAMES))
    assert_near(focus_vectors.norm(dim=-1), theirs["local_feat.norm_bt"], "norms of focus vectors", 2e-3)
    assert_near(focus_vectors[:, [0, 6], :64], theirs["local_feat.first64"], "focus vectors", 2e-3)
    assert_near(read.classifier.focuser.scores(focus_vectors).mean(1), theirs["local_aux_logits"], "auxiliary scores of the focuser", 2e-3)
    assert_near(read.classifier.head.focus_fc(focus_vectors).mean(1), theirs["local_logits"], "scores of the patches", 2e-3)
    vectors = glances[1].mean(1, keepdim=True).expand(-1, FRAMES, -1)
    scores, _ = read.classifier.classify(vectors, focus_vectors)
    assert_near(scores[:, -1], theirs["logits"], "scores", 2e-3)


@pytest.mark.slow
@pytest.mark.numerical
def test_the_whole_pass(read, frames, glance_frames, stored):
    found = infer(read.classifier, read.policy, frames, glance_frames)
    assert np.allclose(found.actions[:, 0], stored["action"], rtol=0, atol=1e-4)
    assert_near(found.logits[:, -1], stored["p128.logits"], "scores", 2e-3)
    assert (found.boxes == found.boxes[:, :1]).all()


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_stn.10.bias": None}, "AdaFocusV2-Something-Something family: missing policy_stn.10.bias"),
        ({"local_CNN.new_fc.weight": (174, 2047)}, r"local_CNN.new_fc.weight has shape \(174, 2047\) instead of \(174, 2048\)"),
        ({"policy_stn.0.weight": (64, 1281, 1, 1)}, r"policy_stn\.0\.weight must read a multiple of 1280 .*, got shape \(64, 1281, 1, 1\)"),
        ({"global_CNN.base_model.other": (3,)}, "unexpected global_CNN.base_model.other"),
    ],
)
def test_files_that_do_not_hold_what_they_should(tmp_path, changes, message):
    torch.save(released_weights.released_v2("something_v2", drawn=False, **changes), tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        read_released(tmp_path / "file.pth")


def test_the_other_family_is_refused(tmp_path):
    torch.save(released_weights.released_v2("something_v2", drawn=False), tmp_path / "file.pth")
    with pytest.raises(InputError, match="is of the AdaFocusV2-Something-Something family, not of family=AdaFocusV2-ActivityNet"):
        read_released(tmp_path / "file.pth", family="AdaFocusV2-ActivityNet")
