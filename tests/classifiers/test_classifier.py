import copy
import dataclasses
import errno
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_COST, random_classifier
from safetensors.torch import load_file, save_file

from adafocus_env.demo.videos import CLASSES
from classifiers import checkpoint
from classifiers.backbones.backbone import BACKBONES
from classifiers.backbones.temporal_shift import shift_channels
from classifiers.checkpoint import CARD, WEIGHTS, read_card
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup
from classifiers.flops import classifier_flops
from classifiers.heads import LinearHead, MaxHead, MeanHead
from classifiers.model_zoo import ARCHITECTURES

pytestmark = pytest.mark.numerical

SMALL = ARCHITECTURES["small"]
RESNET50 = [(4, 3), (5, 4), (6, 6), (7, 3)]
"""The layers that have blocks, by their place in the trunk, and how many."""


@pytest.fixture(scope="module")
def paper():
    return Classifier(ARCHITECTURES["paper"], [f"class {i}" for i in range(200)]).freeze()


@pytest.fixture
def saved(tmp_path, classifier):
    """Return a folder with a checkpoint of the small classifier."""
    checkpoint.save(classifier, tmp_path / "saved", metrics={"top1": 0.5}, command="none", data="demo", parent="0" * 64)
    return tmp_path / "saved"


def change_card(folder, **values):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **values}))


# Networks


@pytest.mark.parametrize("architecture", [SMALL, TINY])
def test_shapes(architecture):
    classifier = Classifier(architecture, "0123456789").freeze()
    glancer, focuser, state_size = classifier.glancer, classifier.focuser, classifier.head.state_size
    maps, vectors = classifier.glance(torch.zeros(5, 3, 96, 96))
    assert maps.shape[:2] == (5, glancer.map_channels) and maps.shape[2] == maps.shape[3] > 1
    assert vectors.shape == (5, glancer.vector_size)
    focus_vectors = classifier.focus(torch.zeros(5, 3, 24, 24))
    assert focus_vectors.shape == (5, focuser.vector_size)
    scores, state = classifier.classify(vectors[None], focus_vectors[None], classifier.initial_state(1))
    assert scores.shape == (1, 5, 10) and state.shape == (1, state_size) == (1, architecture.hidden_size)
    assert glancer.scores(vectors).shape == focuser.scores(focus_vectors).shape == (5, 10)


def test_the_papers_pair_at_its_sizes(paper):
    assert (paper.architecture.size, paper.architecture.patch_size) == (224, 96)
    with torch.no_grad():
        maps, vectors = paper.glance(torch.randn(1, 3, 224, 224))
        focus_vectors = paper.focus(torch.randn(1, 3, 96, 96))
        scores, state = paper.classify(vectors[None], focus_vectors[None])
    assert maps.shape == (1, 1280, 7, 7) and vectors.shape == (1, 1280) and focus_vectors.shape == (1, 2048)
    assert torch.allclose(vectors, maps.mean((2, 3)), atol=1e-6)
    assert scores.shape == (1, 1, 200) and state.shape == (1, 1024)
    assert (paper.head.gru.input_size, paper.head.gru.hidden_size, paper.head.gru.num_layers) == (3328, 1024, 1)
    assert (paper.glancer.fc.in_features, paper.focuser.fc.in_features, paper.head.fc.in_features) == (1280, 2048, 1024)
    low, high = paper.glancer.map_bounds
    assert (low, high) == (0, 6) and maps.min() >= low and maps.max() <= high


def test_the_small_glance_map_stays_within_its_declared_bounds():
    classifier = random_classifier()
    classifier.glancer.features[-1][0].weight.mul_(1000)
    maps, _ = classifier.glance(torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    low, high = classifier.glancer.map_bounds
    assert maps.min() == low and maps.max() == high


def test_pooling_by_mean_and_by_maximum(classifier):
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    maps, vectors = classifier.glancer(images)
    assert maps.shape == (2, 16, 6, 6) and torch.allclose(vectors, maps.flatten(2).mean(-1))
    maps, vectors = classifier.focuser(images)
    assert maps.shape == (2, 32, 6, 6) and torch.equal(vectors, maps.flatten(2).max(-1).values)


def test_normalise_uses_the_mean_and_deviation_of_the_architecture(classifier):
    frames = torch.randint(0, 256, (2, 4, 3, 5, 5), dtype=torch.uint8)
    normal = classifier.normalise(frames)
    assert normal.shape == frames.shape and normal.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(TINY.mean, TINY.std, strict=True)):
        assert torch.allclose(normal[:, :, channel], (frames[:, :, channel].float() / 255 - mean) / std)


def test_normalise_takes_numpy_arrays_and_keeps_the_memory_layout(classifier):
    frames = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    normal = classifier.normalise(frames)
    array = frames.numpy()
    array.setflags(write=False)
    assert torch.equal(classifier.normalise(array), normal)
    assert torch.equal(classifier.normalise(array[..., ::-1]), normal.flip(-1))
    images = frames.contiguous(memory_format=torch.channels_last)
    for given in (images, np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)):
        found = classifier.normalise(given)
        assert torch.equal(found, normal) and found.is_contiguous(memory_format=torch.channels_last)
    assert classifier.normalise(frames.to("meta")).device.type == "meta", "it stays where it is, and no value is looked at"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8), r"have the shape .…, 3, H, W., got .2, 4, 8, 8, 3.; .*: frames\.movedim.-1, -3."),
        (np.zeros((8, 8, 3), np.uint8), r"must have the shape .…, 3, H, W., got .8, 8, 3.; .*: np\.moveaxis.frames, -1, -3."),
        (np.zeros((4, 1, 8, 8), np.uint8), r"must have the shape .…, 3, H, W., got .4, 1, 8, 8.$"),
        (np.zeros((3, 8), np.uint8), r"must have the shape .…, 3, H, W., got .3, 8.$"),
        (torch.zeros(4, 3, 8, 8), "must be uint8, pixels from 0 to 255, got float32; floats may lie in 0-1 or in 0-255"),
        (np.zeros((4, 3, 8, 8)), "must be uint8, pixels from 0 to 255, got float64; floats"),
        (np.zeros((4, 3, 8, 8), np.int64), "must be uint8, pixels from 0 to 255, got int64$"),
    ],
)
def test_normalise_refuses_other_axes_and_types(classifier, frames, message):
    with pytest.raises(InputError, match=message):
        classifier.normalise(frames)


def test_the_head_step_by_step_equals_the_whole_sequence(classifier):
    generator = torch.Generator().manual_seed(0)
    glances, focus_vectors = torch.randn(3, 6, 16, generator=generator), torch.randn(3, 6, 32, generator=generator)
    whole, last = classifier.classify(glances, focus_vectors)
    state = classifier.initial_state(3)
    assert state.shape == (3, 20) and not state.any()
    for t in range(6):
        scores, state = classifier.classify(glances[:, t : t + 1], focus_vectors[:, t : t + 1], state)
        assert torch.allclose(scores[:, 0], whole[:, t], atol=1e-4, rtol=1e-5)
    assert torch.allclose(state, last, atol=1e-6)


def test_the_linear_head_averages_the_probabilities_of_the_steps_so_far():
    head = LinearHead(6, 3, dropout=0.5).eval()
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    each = head.fc(features).softmax(-1)
    whole, last = head(features)
    for t in range(4):
        assert torch.allclose(whole[:, t].softmax(-1), each[:, : t + 1].mean(1), atol=1e-6)
    _, state = head(features[:, :2], torch.zeros(2, head.state_size))
    scores, state = head(features[:, 2:], state)
    assert torch.allclose(scores, whole[:, 2:], atol=1e-6) and torch.allclose(state, last)


def test_the_mean_head_adds_the_mean_scores_of_patches_and_of_the_glancer():
    classifier = shifted(head="mean", shift=0.0)
    generator = torch.Generator().manual_seed(0)
    glances, focus_vectors = torch.randn(3, 6, 16, generator=generator), torch.randn(3, 6, 32, generator=generator)
    patch_scores, glance_scores = classifier.head.fc(focus_vectors), classifier.glancer.scores(glances)
    whole, last = classifier.classify(glances, focus_vectors)
    for t in range(6):
        assert torch.allclose(whole[:, t], patch_scores[:, : t + 1].mean(1) + glance_scores[:, : t + 1].mean(1), atol=1e-6)
    _, state = classifier.classify(glances[:, :2], focus_vectors[:, :2], classifier.initial_state(3))
    scores, state = classifier.classify(glances[:, 2:], focus_vectors[:, 2:], state)
    assert torch.allclose(scores, whole[:, 2:], atol=1e-6) and torch.allclose(state, last)


def test_decisions_of_equal_length_end_at_the_mean_over_all_frames():
    """A published video has 12 patches and 8 glances, here in 4 decisions of 3 and 2."""
    classifier = shifted(head="mean", shift=0.0)
    glances, focus_vectors = torch.randn(1, 8, 16), torch.randn(1, 12, 32)
    scores, _ = classifier.classify(glances.unflatten(1, (4, 2)).mean(2), focus_vectors.unflatten(1, (4, 3)).mean(2))
    published = classifier.head.fc(focus_vectors).mean(1) + classifier.glancer.scores(glances).mean(1)
    assert torch.allclose(scores[:, -1], published, atol=1e-6)


def test_the_mean_head_drops_focus_vectors_alone_in_training():
    head = MeanHead(3 + 400, 3, dropout=0.5)
    glanced, focus_vectors = torch.randn(1, 1, 3), torch.ones(1, 1, 400)
    torch.nn.init.zeros_(head.fc.weight)
    assert torch.allclose(head(torch.cat([glanced, focus_vectors], -1))[0], glanced + head.fc.bias)
    torch.nn.init.ones_(head.fc.weight)
    dropped = head(torch.cat([torch.zeros(1, 1, 3), focus_vectors], -1))[0] - head.fc.bias
    assert (dropped % 2 == 0).all() and 0 < dropped.max() < 800


def test_the_max_head_scores_the_highest_that_each_number_has_been():
    head = MaxHead(6, 3, hidden_size=5, dropout=0.5).eval()
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    each = head.hidden(features).relu()
    whole, last = head(features)
    for t in range(4):
        assert torch.allclose(whole[:, t], head.fc(each[:, : t + 1].amax(1)), atol=1e-6)
    assert torch.equal(last, each.amax(1)) and (last >= 0).all()
    _, state = head(features[:, :2], torch.zeros(2, head.state_size))
    scores, state = head(features[:, 2:], state)
    assert torch.allclose(scores, whole[:, 2:], atol=1e-6) and torch.equal(state, last)


def test_the_order_of_steps_makes_no_difference_to_the_max_head():
    head = MaxHead(6, 3, hidden_size=5).eval()
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(features)[0][:, -1], head(features.flip(1))[0][:, -1], atol=1e-6)


# Temporal shift


def shifted(**changes):
    """Return the tiny classifier, which has no residual blocks, with a shift."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(dataclasses.replace(TINY, **{"shift": 1 / 8, "shift_place": "block", **changes}), CLASSES).freeze()


@pytest.mark.parametrize(("fraction", "moved"), [(1 / 8, 1), (1 / 4, 2), (0.5, 4), (0.3, 2), (0.1, 0), (0.0, 0)])
def test_the_shift_moves_channels_within_clips(fraction, moved):
    features = torch.arange(2 * 3 * 8.0).view(6, 8, 1, 1) + 1
    before, after = features.view(2, 3, 8), shift_channels(features, 3, fraction).view(2, 3, 8)
    assert torch.equal(after[:, :2, :moved], before[:, 1:, :moved]) and not after[:, 2, :moved].any()
    assert torch.equal(after[:, 1:, moved : 2 * moved], before[:, :2, moved : 2 * moved]) and not after[:, 0, moved : 2 * moved].any()
    assert torch.equal(after[..., 2 * moved :], before[..., 2 * moved :])


def test_a_shift_adds_no_tensor_and_mixes_the_frames_of_a_clip_only():
    plain, moving = random_classifier(), shifted()
    assert list(moving.state_dict()) == list(plain.state_dict())
    moving.load_state_dict(plain.state_dict())
    frames = torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    changed = frames.clone()
    changed[2] += 1
    for part, other in ((moving.glance, plain.glance), (lambda *a: (moving.focus(*a),), lambda *a: (plain.focus(*a),))):
        differs = (part(frames, 3)[0] != part(changed, 3)[0]).flatten(1).any(1)
        assert differs.tolist() == [False, True, True, False, False, False]  # its neighbour in the clip and itself
        assert not torch.equal(part(frames, 3)[0], part(frames, 2)[0])
        assert torch.equal(other(frames, 3)[0], other(frames, 2)[0])
        assert torch.allclose(part(frames, 3)[0][3:], part(frames[3:], 3)[0], atol=1e-6)


def test_a_copy_shifts_by_itself():
    """Counting costs copies a classifier, and the number of frames of one call must not affect another network."""
    classifier = shifted()
    copied = copy.deepcopy(classifier)
    assert copied.glancer.shift is not classifier.glancer.shift
    frames = torch.randn(4, 3, 24, 24)
    alone = classifier.focus(frames, 4)
    copied.focus(frames, 2)
    assert classifier.focuser.shift.num_frames == 4 and torch.equal(copied.focus(frames, 4), alone)


def test_a_shifted_classifier_comes_back_as_it_was_saved(tmp_path):
    classifier = shifted(head="mean")
    checkpoint.save(classifier, tmp_path)
    loaded = checkpoint.load(tmp_path)
    frames = torch.randn(4, 3, 24, 24)
    assert loaded.architecture == classifier.architecture and torch.equal(loaded.focus(frames, 4), classifier.focus(frames, 4))


def test_cards_without_a_shift_still_load(saved):
    old = {name: value for name, value in dataclasses.asdict(TINY).items() if not name.startswith("shift")}
    change_card(saved, architecture=old)
    assert checkpoint.load(saved).architecture == TINY


@pytest.mark.parametrize(
    ("name", "place", "places"),
    [
        ("mobilenet_v2", "blockres", [f"{block}.conv.0.0" for block in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]),
        ("mobilenet_v2", "block", [str(block) for block in range(1, 18)]),
        ("resnet50", "blockres", [f"{layer}.{block}.conv1" for layer, blocks in RESNET50 for block in range(blocks)]),
        ("resnet50", "block", [f"{layer}.{block}" for layer, blocks in RESNET50 for block in range(blocks)]),
        ("small_glancer", "block", ["1"]),
        ("small_focuser", "block", ["1", "2"]),
    ],
)
def test_where_the_shift_is(name, place, places):
    with torch.device("meta"):
        backbone = BACKBONES[name](10)
        names = list(backbone.state_dict())
        backbone.insert_shift(1 / 8, place)
    assert list(backbone.shift.modules) == places and list(backbone.state_dict()) == names


def test_a_shift_inside_residual_blocks_needs_some():
    with pytest.raises(InputError, match=r"shift_place='blockres': the network has no residual blocks .*; choose shift_place='block'"):
        shifted(shift_place="blockres")


@pytest.mark.parametrize("fraction", [-0.1, 0.51, 1, math.nan])
def test_a_shift_out_of_range(fraction):
    with pytest.raises(InputError, match=rf"shift={fraction} is out of range; choose a share of the channels from 0 to 0\.5"):
        dataclasses.replace(TINY, shift=fraction)


def test_an_unknown_place_of_the_shift():
    with pytest.raises(InputError, match="shift_place='blocks' is not known; did you mean 'block'"):
        dataclasses.replace(TINY, shift=0.1, shift_place="blocks")


@pytest.mark.parametrize("num_frames", [3, 0, -2, 8])
@pytest.mark.parametrize("network", [random_classifier, shifted])
def test_a_number_of_frames_that_does_not_divide_the_images(network, num_frames):
    classifier, images = network(), torch.zeros(4, 3, 24, 24)
    for call in (classifier.glance, classifier.focus):
        with pytest.raises(InputError, match=f"num_frames={num_frames} does not divide 4 images; give whole clips of num_frames images"):
            call(images, num_frames)


# Frozen


def test_freeze_stops_gradients_and_training_mode():
    classifier = Classifier(TINY, "0123456789")
    assert classifier.training and all(p.requires_grad for p in classifier.parameters())
    assert classifier.freeze() is classifier
    assert not any(module.training for module in classifier.modules())
    assert not any(p.requires_grad for p in classifier.parameters())


def test_batch_norm_statistics_stay_in_a_frozen_classifier_and_move_in_training():
    classifier = random_classifier()
    images = torch.randn(4, 3, 24, 24)
    before = classifier.fingerprint()
    classifier.glance(images)
    classifier.focus(images)
    assert classifier.fingerprint() == before
    classifier.train().focus(images)
    assert classifier.fingerprint() != before


def test_the_fingerprint_tells_every_parameter_and_every_buffer():
    classifier = random_classifier()
    seen = {classifier.fingerprint()}
    buffers = {name for name, _ in classifier.named_buffers()}
    assert any("running_var" in name for name in buffers) and any("num_batches_tracked" in name for name in buffers)
    for tensor in [*classifier.parameters(), *classifier.buffers()]:
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(classifier.fingerprint())
    assert len(seen) == 1 + len(classifier.state_dict())


def test_the_fingerprint_is_that_of_the_weights_alone():
    one, same, other = random_classifier(1), random_classifier(1), random_classifier(2)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    other.load_state_dict(one.state_dict())
    assert other.fingerprint() == one.fingerprint()


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_saved(saved, classifier):
    loaded = checkpoint.load(saved)
    assert loaded.fingerprint() == classifier.fingerprint()
    assert loaded.architecture == classifier.architecture and loaded.classes == classifier.classes
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    frames = classifier.normalise(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    assert all(torch.equal(a, b) for a, b in zip(loaded.glance(frames), classifier.glance(frames), strict=True))
    assert sorted(path.name for path in saved.iterdir()) == [CARD, WEIGHTS]


def test_the_card_tells_what_the_weights_are(saved, classifier):
    card = read_card(saved)
    assert card.architecture == TINY and card.classes == tuple("0123456789") and card.fingerprint == classifier.fingerprint()
    assert (card.parent, card.data, card.metrics, card.command) == ("0" * 64, "demo", {"top1": 0.5}, "none")
    stored = json.loads((saved / CARD).read_text())
    assert stored["architecture"]["mean"] == [0.485, 0.456, 0.406] and stored["architecture"]["patch_size"] == 24


def test_shipped_classifiers_are_found_by_name(saved, monkeypatch):
    monkeypatch.setitem(checkpoint.BUNDLED, "other", saved)
    assert {"demo", "other"} <= set(checkpoint.list_classifiers())
    assert checkpoint.load("other").fingerprint() == read_card("other").fingerprint


def test_weights_of_another_architecture_are_refused_and_the_tensors_listed(saved):
    change_card(saved, architecture={**dataclasses.asdict(TINY), "hidden_size": 8, "glancer": "tiny_focuser"})
    with pytest.raises(InputError) as caught:
        checkpoint.load(saved)
    message = str(caught.value)
    assert message.startswith(f"{saved / WEIGHTS} does not fit the architecture on its card: ")
    assert "glancer.features.1.0.weight has shape (16, 8, 3, 3) instead of (32, 8, 3, 3)" in message
    assert "head.gru.weight_hh_l0 has shape (60, 20) instead of (24, 8)" in message


def test_missing_and_unexpected_tensors_are_listed(saved):
    tensors = load_file(saved / WEIGHTS)
    tensors["policy.weight"] = tensors.pop("head.fc.bias")
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(InputError, match=r"missing head\.fc\.bias; unexpected policy\.weight"):
        checkpoint.load(saved)


def test_weights_with_another_number_of_classes_are_refused(saved):
    change_card(saved, classes=["a", "b", "c"])
    with pytest.raises(InputError, match=r"head\.fc\.weight has shape \(10, 20\) instead of \(3, 20\)"):
        checkpoint.load(saved)


def test_a_classifier_needs_two_classes(saved):
    change_card(saved, classes=["a"])
    with pytest.raises(InputError, match=r"card\.json: classes has 1 entries; a classifier needs two or more"):
        checkpoint.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_refused(saved, keep):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(InputError, match=rf"{WEIGHTS} is not a readable safetensors file \(.+\); train or copy the checkpoint again"):
        checkpoint.load(saved)


def test_a_flipped_bit_in_the_weights_is_named(saved):
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-50] ^= 4
    (saved / WEIGHTS).write_bytes(data)
    advice = r"\(its checksum is wrong: some of its bytes have changed\); train or copy the checkpoint again"
    with pytest.raises(InputError, match=rf"{WEIGHTS} is not a readable safetensors file {advice}"):
        checkpoint.load(saved)


def test_weights_of_earlier_versions_have_no_checksum_and_are_read(saved, classifier):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS)
    assert checkpoint.load(saved).fingerprint() == classifier.fingerprint()


def test_metadata_is_part_of_the_checksum(tmp_path):
    tensors = {"a": torch.arange(3)}
    checkpoint.write_checked(tensors, tmp_path / "x", {"values": "12"})
    read, metadata = checkpoint.read_checked(tmp_path / "x")
    assert torch.equal(read["a"], tensors["a"]) and metadata == {"values": "12"}
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(b'"12"', b'"13"'))
    with pytest.raises(InputError, match="its checksum is wrong"):
        checkpoint.read_checked(tmp_path / "x")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(pickle.dumps(Trap())), lambda path: torch.save({"a": Trap()}, path)])
def test_pickles_are_refused_and_never_run(saved, write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint\.pth is a file; a checkpoint is a folder .*\(pickles are not read\)"):
        checkpoint.load(tmp_path / "checkpoint.pth")
    write(saved / WEIGHTS)
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        checkpoint.load(saved)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, rf"holds no {CARD}; give the folder of a checkpoint \(bundled classifiers: \['demo'.*\]\)"),
        ("{", rf"{CARD} is not valid JSON \(.+\); train or copy the checkpoint again"),
        ("[" * 100_000, rf"{CARD} is not valid JSON"),
        (b"\xff\xfe\x00", rf"{CARD} is not valid JSON"),
        ("[]", rf"{CARD} holds a list, not an object"),
        ("{}", rf"{CARD}: .*missing .*'glancer'"),
        ('{"architecture": null}', rf"{CARD}: architecture is a NoneType, not an object"),
    ],
)
def test_cards_that_cannot_be_read(saved, content, message):
    if content is None:
        (saved / CARD).unlink()
    else:
        (saved / CARD).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flavour": 1, "colour": 2}, r"card\.json: unknown fields \['colour', 'flavour'\]"),
        ({"architecture": {**dataclasses.asdict(TINY), "depth": 3}}, r"card\.json: unknown fields \['depth'\]"),
        ({"classes": ["a", 2]}, r"card\.json: classes=\('a', 2\) is not of type tuple\[str, \.\.\.\]"),
        ({"parent": 5}, r"card\.json: parent=5 is not of type str \| None"),
        ({"metrics": [1]}, r"card\.json: metrics=\(1,\) is not of type .*Mapping\[str, float\]"),
        ({"fingerprint": "0" * 64}, r"classifier\.safetensors does not hold the weights that card\.json describes"),
    ],
)
def test_cards_that_do_not_fit(saved, change, message):
    change_card(saved, **change)
    with pytest.raises(InputError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch_size", 97, r"patch_size=97 does not fit frames of 96"),
        ("head", "lstm", r"head='lstm' is not known; choose one of \['gru', 'linear', 'max', 'max_per_step', 'mean', 'separate_mean'\]"),
        ("patch_size", "24", r"patch_size='24' is not of type int; train or copy"),
        ("size", True, r"size=True is not of type int"),
        ("head", None, r"head=None is not of type str"),
        ("shift", [1, 8], r"shift=\(1, 8\) is not of type float"),
        ("mean", [0.5, 0.5], r"mean=\(0\.5, 0\.5\) is not of type tuple\[float, float, float\]"),
        ("hidden_size", 0, r"hidden_size=0 is too small; choose 1 or more"),
        ("dropout", 1.5, r"dropout=1\.5 is out of range; choose a share from 0 to 1"),
        ("resize", "area", r"resize='area' is not known; choose one of \['align_corners', 'antialias'\]"),
        ("head_steps", 4, r"head_steps=4 does not suit head='gru'; set architecture.head_steps to the frames of a clip with head="),
        ("shift", 0.6, r"shift=0\.6 is out of range"),
    ],
)
def test_architectures_that_cannot_be(saved, field, value, message):
    change_card(saved, architecture={**dataclasses.asdict(TINY), field: value})
    with pytest.raises(InputError, match=rf"card\.json: {message}"):
        checkpoint.load(saved)


def test_weights_that_are_not_those_of_the_card(saved, classifier):
    tensors = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    tensors["glancer.features.0.1.running_var"][3] += 1e-3
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(InputError, match=r"does not hold the weights that card\.json describes"):
        checkpoint.load(saved)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=rf"classifier={tmp_path / 'none'} holds no card\.json"):
        checkpoint.load(tmp_path / "none")


def test_saving_where_a_file_is_in_the_way(tmp_path, classifier):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"cannot write {tmp_path / 'file'}.*; free some space or choose another folder"):
        checkpoint.save(classifier, tmp_path / "file")
    with pytest.raises(InputError, match=rf"cannot write {tmp_path / 'file' / 'below'}"):
        checkpoint.save(classifier, tmp_path / "file" / "below")


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["classifiers.checkpoint.save_file", "pathlib.Path.write_text", "os.fsync"])
def test_a_save_that_fails_leaves_the_old_checkpoint_as_it_was(saved, monkeypatch, broken):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(InputError, match=f"cannot write {saved}.*No space left on device; free some space"):
        patch.setattr(broken, fail)
        checkpoint.save(random_classifier(5), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    checkpoint.load(saved)


def test_a_card_that_cannot_be_written_as_json_leaves_the_old_checkpoint_as_it_was(saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(random_classifier(5), saved, metrics={"top1": torch.tensor(0.5)})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


# Architectures


@pytest.mark.parametrize("patch_size", [0, -1, 97])
def test_a_patch_must_fit_the_frame(patch_size):
    with pytest.raises(InputError, match=f"patch_size={patch_size} does not fit frames of 96 pixels; choose a patch_size from 1 to 96"):
        dataclasses.replace(TINY, patch_size=patch_size)


def test_unknown_networks_are_refused_with_those_that_are_known():
    with pytest.raises(InputError, match=r"glancer='mobilenet_v3' is not known; did you mean 'mobilenet_v2'\? choose one of"):
        dataclasses.replace(TINY, glancer="mobilenet_v3")


def test_unknown_architectures_suggest_the_nearest():
    assert lookup("classifier", "paper", ARCHITECTURES) is ARCHITECTURES["paper"]
    message = r"classifier='papr' is not known; did you mean 'paper'\? choose one of \['efficientnet_lite', 'paper', 'paper_tsm', "
    with pytest.raises(InputError, match=message):
        lookup("classifier", "papr", ARCHITECTURES)
    with pytest.raises(InputError, match="classifier='zzz' is not known; choose one of"):
        lookup("classifier", "zzz", ARCHITECTURES)


# Cost


def test_cost_counted_by_hand(classifier):
    cost = classifier_flops(classifier)
    assert cost.glance == 12**2 * 3 * 3**2 * 8 + 6**2 * 8 * 3**2 * 16
    assert cost.focus == 12**2 * 3 * 3**2 * 8 + 6**2 * 8 * 3**2 * 32
    assert cost.focus_frame == 16 * cost.focus
    assert cost.head == 3 * 20 * ((16 + 32) + 20) + 20 * 10
    assert cost.glance + cost.focus + cost.head == TINY_COST


def test_cost_of_the_papers_pair_is_the_published_one(paper):
    cost = classifier_flops(paper)
    assert math.isclose(cost.glance, 0.3e9, rel_tol=0.01)
    assert math.isclose(cost.focus, 0.75e9, rel_tol=0.01)
    assert math.isclose(cost.focus_frame, 4.09e9, rel_tol=0.01)
    assert cost.head == 3 * 1024 * (3328 + 1024) + 1024 * 200


def test_counting_changes_nothing_and_does_not_depend_on_precision():
    classifier = random_classifier()
    before, cost = classifier.fingerprint(), classifier_flops(classifier)
    assert classifier.fingerprint() == before
    assert classifier_flops(random_classifier().half()) == cost


@pytest.mark.parametrize("head", ["gru", "linear", "mean", "max", "max_per_step", "separate_mean"])
def test_comparing_focus_vectors_equals_one_step_with_each(head):
    torch.manual_seed(0)
    classifier = Classifier(dataclasses.replace(TINY, head=head, head_steps=3 * (head == "max_per_step")), CLASSES).freeze()
    state = classifier.classify(torch.randn(5, 2, 16), torch.randn(5, 2, 32))[1]
    glances, focus_vectors = torch.randn(5, 16), torch.randn(3, 5, 32)
    scores, after = classifier.compare(glances, focus_vectors, state)
    for number, focus in enumerate(focus_vectors):
        wanted, states = classifier.classify(glances[:, None], focus[:, None], state)
        torch.testing.assert_close(scores[number], wanted[:, 0])
        if number == 0:
            torch.testing.assert_close(after, states)
