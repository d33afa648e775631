"""The authors' checkpoints of the ActivityNet family: results equal those of the authors' code, and invalid files are refused."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import released_weights
import torch
from conftest import slow_except
from released_weights import ROUNDING, assert_near, parallel, same_pixels, save

from adafocus_env.action import GridAction
from adafocus_env.reward import REWARDS
from agents import load_policy
from agents.config.command import compose_config, run_command
from agents.config.settings import ImportCheckpoint
from agents.evaluation.inference import infer
from agents.import_checkpoint import main
from agents.released.checkpoint import import_released, read_released
from classifiers import checkpoint
from classifiers.crop import crop_patches
from classifiers.errors import InputError

pytestmark = pytest.mark.slow

T, CLIPS = 16, 2
@pytest.fixture(scope="module")
def content():
    """Return a released dictionary of stage 2; tests must copy it before changes."""
    return released_weights.released()


@pytest.fixture(scope="module")
def stored():
    return released_weights.results()


@pytest.fixture(scope="module")
def frames(stored):
    return released_weights.same_draws(released_weights.frames(CLIPS, T, 224, seed=20210503), stored["input.first64"])


@pytest.fixture(scope="module")
def imported(content, tmp_path_factory):
    """Return the folder that the command writes for a released file."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(content, folder / "file.pth.tar")
    arguments = [f"file={folder / 'file.pth.tar'}", f"out={folder / 'out'}"]
    command = [sys.executable, "-m", "agents.import_checkpoint", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("out: classifier with 200 classes, gru head, patches of 96 pixels; policy on 7×7 cells\n")
    assert not result.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def classifier(imported):
    """Return a classifier with patches of 96 pixels. Weights do not depend on the patch size, so tests may set another one."""
    return checkpoint.load(imported)


@pytest.fixture(scope="module")
def glances(classifier, frames):
    """Return glance maps (B·T, 1280, 7, 7) and vectors (B·T, 1280) in float64."""
    with torch.no_grad():
        return copy.deepcopy(classifier).double().glance(frames.flatten(0, 1).double())


# The authors' results


def test_the_weights_are_those_that_the_results_were_computed_with():
    tensors = released_weights.tensors_of()
    for name, (shape, norm) in released_weights.names().items():
        assert tensors[name].shape == shape and tensors[name].double().norm().item() == pytest.approx(norm, rel=1e-6), name


def test_every_tensor_of_the_file_is_in_the_checkpoint_and_nothing_else(imported, content):
    def sums(dictionaries):
        return sorted((tuple(t.shape), t.double().sum().item()) for tensors in dictionaries for t in tensors.values())

    focuser = {name: tensor for name, tensor in content["focuser"].items() if not name.startswith("policy.")}
    assert sums([checkpoint.load(imported).state_dict()]) == sums([content["glancer"], focuser, content["fc"]])
    assert sums([load_policy(imported).state_dict()]) == sums([content["policy"]])


@pytest.mark.numerical
def test_glances(glances, stored):
    maps, vectors = (part.unflatten(0, (CLIPS, T)) for part in glances)
    assert_near(maps.flatten()[None, :64], stored["global_feat_map.first64"][None], "glance map")
    assert_near(maps.flatten(2).norm(dim=-1), stored["global_feat_map.norm_per_bt"], "norms of glance maps")
    assert_near(vectors[..., :64], stored["global_feat.first64_per_bt"], "glance vector")
    assert_near(vectors.norm(dim=-1), stored["global_feat.norm_per_bt"], "norms of glance vectors")


@pytest.mark.numerical
@pytest.mark.parametrize("patch_size", [96, 128])
def test_policy(imported, glances, stored, patch_size):
    """The fixtures of both patch sizes have the same policy on the same glances.

    Differences are relative to the largest value of all steps, since all values of a step can be near zero, where large terms cancel.
    """
    theirs = {name.split(".", 1)[1]: value for name, value in stored.items() if name.startswith(f"p{patch_size}.")}
    policy = load_policy(imported).double()
    maps = glances[0].unflatten(0, (CLIPS, T))
    cells = policy.act(maps).T
    assert np.array_equal(cells, theirs["greedy_action"])
    assert np.array_equal(GridAction(policy.grid, 224, patch_size).corners[cells], theirs["coords_chosen"])
    hidden = policy.encoder(maps).transpose(0, 1)
    chances = torch.distributions.Categorical(logits=policy.actor(hidden))
    assert_near(chances.probs, theirs["probs"], "action probabilities")
    assert_near(chances.log_prob(cells), theirs["evaluate_logprob"], "log-probability")
    assert_near(chances.entropy(), theirs["evaluate_entropy"], "entropy")
    assert_near(policy.critic(hidden).view(1, T, CLIPS), theirs["evaluate_value"][None], "value")


@pytest.mark.numerical
@pytest.mark.parametrize("patch_size", slow_except([96], [96, 128]))
def test_classifier_and_rewards(classifier, frames, glances, stored, patch_size):
    theirs = {name.split(".", 1)[1]: value for name, value in stored.items() if name.startswith(f"p{patch_size}.")}
    seen = glances[1].float().unflatten(0, (CLIPS, T)).transpose(0, 1)
    by_step = frames.transpose(0, 1).flatten(0, 1)

    def focus(corners):
        corners = torch.from_numpy(corners.astype(np.int64)).flatten(0, 1)
        with torch.no_grad():
            return classifier.focus(crop_patches(by_step, torch.arange(T * CLIPS), corners, patch_size)).unflatten(0, (T, CLIPS))

    chosen, random = focus(theirs["coords_chosen"]), focus(theirs["coords_random"])
    for focus_vectors, name in ((chosen, "local_feat"), (random, "random_local_feat")):
        assert_near(focus_vectors[..., :64], theirs[f"{name}.first64_per_tb"], name, ROUNDING)
        assert_near(focus_vectors.norm(dim=-1), theirs[f"{name}.norm_per_tb"], f"norms of {name}", ROUNDING)

    state, found = classifier.initial_state(CLIPS), {"logits": [], "baseline_random_logits": [], "baseline_zero_logits": []}
    for glance, patch, other in zip(seen, chosen, random, strict=True):
        found["baseline_random_logits"].append(classifier.classify(glance[:, None], other[:, None], state)[0])
        found["baseline_zero_logits"].append(classifier.classify(glance[:, None], torch.zeros_like(other)[:, None], state)[0])
        scores, state = classifier.classify(glance[:, None], patch[:, None], state)
        found["logits"].append(scores)
    logits = {name: torch.stack(steps).squeeze(2) for name, steps in found.items()}
    for name, values in logits.items():
        assert_near(values, theirs[name], name, ROUNDING)

    labels = torch.from_numpy(stored["labels"].astype(np.int64)).expand(T, CLIPS)[..., None]
    now, baseline = (logits[name].softmax(-1).gather(-1, labels)[..., 0] for name in ("logits", "baseline_random_logits"))
    assert_near(now, theirs["confidence"], "confidence")
    assert_near(baseline, theirs["baseline_confidence"], "baseline confidence")
    previous = torch.cat([torch.zeros(1, CLIPS), now[:-1]])
    for ours, name in (("random", "reward_random"), ("previous", "reward_prev"), ("confidence", "reward_conf")):
        assert_near(REWARDS[ours].value(now, previous, baseline)[None], theirs[name][None], name)


@pytest.mark.numerical
@pytest.mark.parametrize("patch_size", [96, 128])
def test_patches(frames, patch_size):
    """The first frame of both clips is cropped at five locations in [0, 1]² between the cells of a grid."""
    stored = released_weights.results("patches")
    theirs = {name.split("get_patch.")[1]: value for name, value in stored.items() if name.startswith(f"p{patch_size}.")}
    assert np.array_equal(np.floor(stored["get_patch.actions"] * (224 - patch_size)), theirs["coords"])
    corners = torch.from_numpy(theirs["coords"].astype(np.int64)).repeat_interleave(CLIPS, 0)
    patches = crop_patches(frames[:, 0], torch.arange(CLIPS).repeat(5), corners, patch_size).unflatten(0, (5, CLIPS))
    assert same_pixels(patches[:, 0].flatten(1)[:, :8], theirs["first8"])
    assert_near(patches.double().flatten(1).norm(dim=1), theirs["norms"], "norms of patches", ROUNDING)


@pytest.mark.numerical
def test_the_whole_pass(imported, classifier, frames, stored):
    found = infer(classifier, load_policy(imported), frames)
    assert np.array_equal(found.actions.T, stored["p96.greedy_action"])
    assert np.array_equal(found.boxes[..., :2].transpose(0, 1), stored["p96.coords_chosen"])
    assert_near(found.logits.transpose(0, 1), stored["p96.logits"], "logits of the whole pass")


# What the command makes


def test_the_cards_say_where_the_weights_come_from(imported):
    card = checkpoint.read_card(imported)
    assert card.classes == tuple(map(str, range(200))) and card.architecture.patch_size == 96
    assert (card.clip_format.num_frames, card.clip_format.glance_frames) == (16, 0)
    assert card.command.startswith("python -m agents.import_checkpoint file=") and card.command.endswith("patch_size=96")
    assert json.loads((imported / "policy.json").read_text())["classifier"] == card.fingerprint


def test_names_with_module_and_the_focusers_copy_of_the_policy_alone(content, tmp_path, classifier):
    read = read_released(save(parallel(content), tmp_path, policy=None), patch_size=160)
    assert read.classifier.fingerprint() == classifier.fingerprint() and read.classifier.architecture.patch_size == 160
    assert torch.equal(read.policy.actor.weight, content["policy"]["actor.0.weight"])


def test_a_file_of_stage_1_gives_a_classifier_alone_and_keeps_off_another_policy(tmp_path):
    file, out = save(released_weights.released(policy=False), tmp_path), tmp_path / "out"
    assert import_released(ImportCheckpoint(str(file), str(out), 192)).endswith("no policy (a file of stage 0 or 1)")
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "classifier.safetensors"]
    (out / "policy.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a policy, and .* has none to replace it; choose another folder"):
        import_released(ImportCheckpoint(str(file), str(out)))


def test_the_linear_head_and_another_grid(content, tmp_path):
    head = {"fc.weight": torch.randn(200, 3328), "fc.bias": torch.randn(200)}
    gru = {name: None for name in content["fc"] if name.startswith("gru.")}
    actor = {"actor.0.weight": torch.zeros(25, 1024), "actor.0.bias": torch.zeros(25)}
    copies = {f"policy.{copy}.{name}": value for copy in ("policy", "policy_old") for name, value in actor.items()}
    read = read_released(save(content, tmp_path, fc=head | gru, policy=actor, focuser=copies))
    assert read.classifier.architecture.head == "linear" and torch.equal(read.classifier.head.fc.weight, head["fc.weight"])
    assert read.policy.grid == 5


def test_class_names_from_a_list(content, tmp_path):
    file, listed = save(content, tmp_path), tmp_path / "classInd.txt"
    listed.write_text("\n".join(f"class {i}" for i in range(200)) + "\n")
    import_released(ImportCheckpoint(str(file), str(tmp_path / "out"), classes=str(listed)))
    assert checkpoint.read_card(tmp_path / "out").classes[::199] == ("class 0", "class 199")
    for text, message in [
        (b"a\nb\n", r"the list has 2 classes, file=.* has 200; give the list that it was trained with"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", r"line 3 names 'a' again \(first in line 1\)"),
        (b"\xff\n", "cannot be read .*UTF-8 text file"),
    ]:
        listed.write_bytes(text)
        with pytest.raises(InputError, match=message):
            import_released(ImportCheckpoint(str(file), str(tmp_path / "out"), classes=str(listed)))


# What is refused


def test_faults_are_listed_all_at_once(content, tmp_path):
    file = save(
        content,
        tmp_path,
        glancer={"net.features.0.0.weight": torch.zeros(32, 3, 5, 5)},
        focuser={"net.bn1.weight": None, "net.extra": torch.zeros(1), "policy.policy_old.extra": torch.zeros(1)},
        policy={"gru.bias_hh_l0": None, "critic.0.bias": torch.zeros(2)},
    )
    with pytest.raises(InputError) as caught:
        read_released(file)
    message = str(caught.value)
    assert message.startswith(f"file={file} is not a released checkpoint of the ActivityNet family: missing focuser.net.bn1.weight; ")
    for fault in (
        "missing policy.gru.bias_hh_l0",
        "unexpected focuser.net.extra",
        "unexpected focuser.policy.policy_old.extra",
        "glancer.net.features.0.0.weight has shape (32, 3, 5, 5) instead of (32, 3, 3, 3)",
        "policy.critic.0.bias has shape (2,) instead of (1,)",
    ):
        assert f"; {fault}" in message
    assert message.count(";") == 5


def test_a_recurrent_head_that_lacks_tensors_is_not_taken_for_a_linear_one(content, tmp_path):
    gru = {name: None for name in content["fc"] if name.startswith("gru.")}
    with pytest.raises(InputError, match=r"missing fc\.gru\.weight_ih_l0; missing fc\.gru\.weight_hh_l0; .*fc\.gru\.bias_hh_l0$"):
        read_released(save(content, tmp_path, fc=gru))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc": None}, r"has no fc; a released checkpoint is a dictionary with glancer, focuser, fc and, from stage 2 on, policy"),
        ({"fc": {"fc.weight": None}}, "missing fc.fc.weight, which gives the number of classes"),
        ({"fc": {"fc.weight": 3}}, r"fc\['fc.weight'\] is a int, not a tensor"),
        ({"policy": [1]}, "policy is a list, not a dictionary of tensors"),
        ({"policy": {"actor.0.bias": torch.zeros(50)}}, r"policy\.actor\.0\.bias must have .*: 16, 25, 36, 49 or 64; got shape \(50,\)"),
        (
            {"focuser": {"net.base_model.0.weight": torch.zeros(64, 3, 7, 7)}, "policy": None},
            r"the ActivityNet family: missing glancer\.net.*; unexpected focuser\.net\.base_model\.0\.weight",
        ),
    ],
)
def test_dictionaries_that_are_refused(tmp_path, changes, message):
    small = {"glancer": {}, "focuser": {}, "fc": {"fc.weight": torch.zeros(3, 4)}, "policy": {"actor.0.bias": torch.zeros(9)}}
    with pytest.raises(InputError, match=message):
        read_released(save(small, tmp_path, **changes))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("zipped", [True, False])
def test_python_objects_are_refused_and_never_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"glancer": Trap()}, "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"other Python objects than tensors \(posix\.mkdir\); they could run code and are not loaded"):
        read_released("file.pth")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused(tmp_path, zipped):
    torch.save({"glancer": {"a": torch.zeros(1000)}}, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "file.pth").read_bytes()
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], whole[:-30], b"<html>not found</html>"):
        (tmp_path / "file.pth").write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot be read: it was not written by torch\.save, or is damaged; download or copy"):
            read_released(tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"file must be a checkpoint that the authors' code saved, got .*, which does not exist"):
        read_released(tmp_path / "nowhere.pth")
    torch.save([1], tmp_path / "file.pth")
    with pytest.raises(InputError, match="holds a list, not a dictionary"):
        read_released(tmp_path / "file.pth")


@pytest.mark.parametrize("patch_size", [0, -1, 225])
def test_patch_sizes_out_of_range(tmp_path, patch_size):
    torch.save({"glancer": {}, "focuser": {}, "fc": {"fc.weight": torch.zeros(3, 4)}}, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"patch_size={patch_size} does not fit frames of 224 pixels; choose a patch_size from 1 to 224"):
        read_released(tmp_path / "file.pth", patch_size=patch_size)


KEYS = "choose one of classes, family, file, out, patch_size"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file=a", "patchsize=96"], f"patchsize is not a setting; did you mean 'patch_size'? {KEYS}"),
        (["a.pth"], "'a.pth' has no '='; arguments are written key=value (--help lists the keys)"),
        (["file=a"], "out is missing: add out=VALUE"),
        (["file=a", "out="], "out is missing: add out=VALUE"),
        (["file=a", "out=b", "patch_size=big"], "patch_size must be an integer of at least 1 or null, got 'big'"),
    ],
)  # fmt: skip
def test_mistyped_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(main, ImportCheckpoint, "import_checkpoint", arguments=arguments)
    assert caught.value.code == 2 and capsys.readouterr().err == message + "\n"


def test_arguments_and_help(capsys):
    given = compose_config(ImportCheckpoint, "import_checkpoint", ["file=a=b c", "out=d", "patch_size=160", "family=ActivityNet"])
    assert given == ImportCheckpoint("a=b c", "d", 160, None, "ActivityNet")
    run_command(main, ImportCheckpoint, "import_checkpoint", arguments=["--help"])
    assert "python -m agents.import_checkpoint file=FILE out=DIR" in capsys.readouterr().out
