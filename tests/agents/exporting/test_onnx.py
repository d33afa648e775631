"""ONNX files: their content, and the equality of their outputs with PyTorch's. The tests are skipped if the extra is not installed.

The export of one network takes seconds, so tests that export are slow. The tests of the comparison use PyTorch modules instead of files.
"""

import json
from dataclasses import replace

import pytest
import torch
from random_networks import PUBLISHED, SPATIAL, policy_of, tiny
from torch import nn

from agents.config.settings import Export
from agents.exporting import comparison
from agents.exporting.comparison import TOLERANCE, compare, onnx_call
from agents.exporting.export import export
from agents.exporting.modules import signatures
from agents.exporting.onnx_files import METADATA, to_onnx
from agents.policies.networks import PolicyNetwork, load_policy
from agents.policies.spatial import SpatialArchitecture
from classifiers import checkpoint
from classifiers.classifier import Architecture, Classifier, ClipFormat
from classifiers.errors import InputError
from classifiers.heads import HEADS

onnx = pytest.importorskip("onnx", reason="pip install 'adafocus-env[onnx]'")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def differences(classifier, policy, skipped="zeros", names=("glancer", "policy", "focuser", "head")):
    """Return the differences of the given files. Modules replace the other files, which are not exported."""
    modules = signatures(classifier, policy, skipped)
    files = {name: to_onnx(name, modules[name], {}) for name in names}
    calls = {name: comparison.torch_call(each) for name, each in modules.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "onnx_call", lambda file: onnx_call(file) if isinstance(file, bytes) else file)
        return compare(classifier, modules, {**calls, **files})


# The command


@pytest.mark.slow
def test_the_folder_has_four_files_that_check_and_say_what_they_are(demo_as_onnx):
    metadata = json.loads((demo_as_onnx / "metadata.json").read_text())
    assert {file.name for file in demo_as_onnx.iterdir()} == {
        "README.md", "metadata.json", "glancer.onnx", "policy.onnx", "focuser.onnx", "head.onnx"
    }  # fmt: skip
    assert all(each <= TOLERANCE for each in metadata.pop("differences").values())
    for name in ("glancer", "policy", "focuser", "head"):
        model = onnx.load(demo_as_onnx / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key == METADATA} == {METADATA: metadata}
        assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output))
    classifier = checkpoint.load("demo")
    assert metadata["classes"] == list(classifier.classes) and metadata["mean"] == list(classifier.architecture.mean)
    expected = {"num_frames": 8, "glance_frames": 8, "decisions": 8, "size": 96, "short_side": 96, "patch_size": 24, "grid": 7}
    assert {key: metadata[key] for key in expected} == expected and metadata["classifier"] == classifier.fingerprint()
    card = (demo_as_onnx / "README.md").read_text()
    assert "| `policy.onnx` | maps | probabilities, corners, patch_mask |" in card and "Four ONNX files (opset 18)" in card


@pytest.mark.slow
def test_a_file_has_the_weights_of_its_network_alone(demo_as_onnx):
    classifier = checkpoint.load("demo")
    for name in ("glancer", "focuser", "head"):
        numbers = sum(each.numel() for each in getattr(classifier, name).parameters())
        stored = (demo_as_onnx / f"{name}.onnx").stat().st_size
        assert stored < 4 * numbers + 60_000, name


def test_a_file_that_differs_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    monkeypatch.setattr("agents.exporting.export.to_onnx", lambda name, *_: name.encode())
    calls = {name: comparison.torch_call(each) for name, each in signatures(checkpoint.load("demo"), load_policy("demo"), "zeros").items()}
    monkeypatch.setattr(comparison, "onnx_call", lambda file: calls[file.decode()])
    figures = "glancer 0.0e[+]00, policy 0.0e[+]00, focuser 0.0e[+]00, head 0.0e[+]00"
    message = f"the files differ from PyTorch by more than -1 in probabilities: {figures}; nothing was written"
    with pytest.raises(InputError, match=message):
        export(Export(classifier="demo", format="onnx", out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


# What is compared


@pytest.mark.parametrize("name", ["glancer", "policy", "focuser", "head"])
def test_a_wrong_network_is_found(name):
    """A network with opposite signs of the first weights replaces the file."""
    classifier, policy = tiny(), policy_of()
    modules, wrong = (signatures(*each, "zeros") for each in ((classifier, policy), (tiny(), policy_of())))
    weight = next(wrong[name].module.get_submodule(PARTS[name]).parameters())
    weight.mul_(-1)
    calls = {each: comparison.torch_call((wrong if each == name else modules)[each]) for each in modules}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=rf"{name} [1-9]\.\de[-+]"):
        patch.setattr(comparison, "onnx_call", lambda file: file)
        compare(classifier, modules, calls)


PARTS = {"glancer": "classifier.glancer", "policy": "policy.actor", "focuser": "classifier.focuser", "head": "classifier.head"}


@pytest.mark.parametrize("grid", [3, None])
def test_wrong_corners_are_found(grid):
    classifier, policy = tiny(), policy_of(grid=grid, skips=True)
    modules = signatures(classifier, policy, "zeros")
    calls = {name: comparison.torch_call(each) for name, each in modules.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "onnx_call", lambda file: file)
        assert max(compare(classifier, modules, calls).values()) == 0

        def elsewhere(maps):
            chosen, skip, corners, mask = calls["policy"](maps=maps)
            return chosen, skip, torch.where(corners == 0, 72, 0), mask

        def unmasked(maps):
            *rest, mask = calls["policy"](maps=maps)
            return *rest, ~mask

        for wrong in (elsewhere, unmasked):
            with pytest.raises(InputError, match="the files differ from PyTorch"):
                compare(classifier, modules, {**calls, "policy": wrong})


# Networks


@pytest.mark.slow
def test_a_file_gives_what_its_module_gives():
    """This test uses the fastest network."""
    found = differences(tiny(), policy_of(), names=["focuser"])
    assert found.pop("focuser") <= TOLERANCE and set(found.values()) == {0.0}


@pytest.mark.slow
def test_focus_vectors_of_skipped_frames_are_zero():
    """The file also processes clips without any patch."""
    policy = policy_of(replace(SPATIAL, map_shape=(64, 6, 6)))
    focuser = signatures(tiny("mean", shift=0.125, glance_frames=8), policy, "zeros")["focuser"]
    call = onnx_call(to_onnx("focuser", focuser, {}))
    for mask in ([[True, False], [False, True]], [[False, False], [True, False]], [[False, False], [False, False]]):
        mask = torch.tensor(mask)
        [vectors] = call(**{**focuser.inputs, "patch_mask": mask})
        assert torch.equal(vectors.flatten(2).any(-1), mask)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_heads(head):
    assert max(differences(tiny(head), policy_of(), names=["head"]).values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("skipped", ["last", "none"])
@pytest.mark.parametrize("head", ["gru", "max"])
def test_heads_of_policies_that_skip(head, skipped):
    assert max(differences(tiny(head), policy_of(skips=True), skipped, ["head"]).values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [SPATIAL, PUBLISHED], ids=["spatial", "published"])
@pytest.mark.parametrize("grid", [3, None])
@pytest.mark.parametrize("skips", [False, True])
def test_policies(architecture, grid, skips):
    assert max(differences(tiny(), policy_of(architecture, grid, skips=skips), names=["policy"]).values()) <= TOLERANCE


@pytest.mark.slow
def test_interpolated_patches():
    found = differences(tiny(), policy_of(grid=None, interpolated=True), names=["policy", "focuser"])
    assert set(found) == {"glancer", "policy", "focuser", "head"} and max(found.values()) <= TOLERANCE


def test_wrong_patches_are_found():
    classifier, policy = tiny(), policy_of(grid=None, interpolated=True)
    modules = signatures(classifier, policy, "zeros")
    calls = {name: comparison.torch_call(each) for name, each in modules.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "onnx_call", lambda file: file)
        assert max(compare(classifier, modules, calls).values()) == 0

        def rounded(frames, corners, patch_mask):
            return calls["focuser"](frames=frames, corners=corners.floor(), patch_mask=patch_mask)

        with pytest.raises(InputError, match=r"focuser [1-9]\.\de[-+]"):
            compare(classifier, modules, {**calls, "focuser": rounded})


@pytest.mark.slow
def test_a_temporal_shift_with_several_frames_of_a_decision():
    policy = policy_of(replace(SPATIAL, map_shape=(64, 6, 6)))
    found = differences(tiny("mean", shift=0.125, glance_frames=8), policy, names=["glancer", "focuser"])
    assert max(found.values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("glancer", "focuser", "shift", "names"),
    [
        ("efficientnet_lite0", "efficientnet_lite2", 0.0, ("glancer", "policy", "focuser", "head")),
        ("mobilenet_v2", "resnet50", 0.125, ("focuser",)),  # the other networks are like those above
    ],
)
def test_backbones_at_full_size(glancer, focuser, shift, names):
    """The glance maps are large enough for the policy to process them clip by clip in PyTorch."""
    architecture = Architecture(glancer, focuser, "gru", 64, 0.1, size=224, glance_size=224, patch_size=96, shift=shift)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(architecture, ("a", "b", "c")).freeze()
        maps = tuple(classifier.glance(torch.zeros(1, 3, 224, 224))[0].shape[1:])
        policy = PolicyNetwork(SpatialArchitecture(maps, 96 / 224), 7).eval().requires_grad_(False)
    classifier.clip_format = ClipFormat(2)
    assert max(differences(classifier, policy, names=names).values()) <= TOLERANCE


class DataDependent(nn.Linear):
    """A module with data-dependent control flow, which cannot be traced."""

    def forward(self, states):
        return super().forward(states) if states.sum() > 0 else -super().forward(states)


def test_a_network_that_cannot_be_exported_is_named(tmp_path):
    policy = policy_of(PUBLISHED)
    policy.actor = DataDependent(8, 9)
    with pytest.raises(InputError, match=r"format=onnx: policy cannot be exported \(.+\); choose format=folder"):
        to_onnx("policy", signatures(tiny(), policy, "zeros")["policy"], {})
