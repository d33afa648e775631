"""The predictions of the example, without PyTorch, equal those of the predictor."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from predictions import with_targets
from random_networks import SPATIAL, policy_of, tiny
from videos import square_frames, write_video

from adafocus_env.videos.windows import WindowRequest, decode_windows
from agents import Predictor
from agents.config.settings import Export
from agents.exporting.export import export
from agents.policies.networks import save_policy
from classifiers import checkpoint

pytestmark = pytest.mark.usefixtures("in_process")

pytest.importorskip("onnxscript", reason="pip install 'adafocus-env[onnx]'")
pytest.importorskip("onnxruntime")
pytest.importorskip("decord", reason="there are no wheels for this system")

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx_predict.py"
CELLS = [8, 12, 24, 36, 40, 16, 30, 32, 9, 11, 23, 39]
UNEVEN = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.9, 1.0, 2.0, 2.04, 2.5, 3.5]


@pytest.fixture(scope="module")
def example():
    """Return the example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE.parent)
        import onnx_predict

        yield onnx_predict
    del sys.modules["onnx_predict"]


def assert_same_prediction(predict, folder, source, video):
    expected = Predictor.load(source)(video)
    classes, probabilities, boxes = predict(folder, video)
    order = np.argsort(-probabilities[-1], kind="stable")
    assert tuple(classes[order]) == expected.classes
    assert np.allclose(probabilities[-1][order], expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-9)
    return expected


VIDEOS = {
    "wide": ((180, 320), 12, None), "as stored": ((96, 96), 12, None), "tall and short": ((320, 150), 5, None),
    "variable rate": ((120, 160), 12, UNEVEN), "a single frame": ((120, 160), 1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("count", [4, 16])
def test_frames_are_those_of_the_predictor(tmp_path, example, name, count):
    size, length, times = VIDEOS[name]
    video = write_video(tmp_path / "a.mp4", with_targets(CELLS[:length], size), times=times)
    expected = decode_windows(WindowRequest(video, count, 96))
    frames, shown = example.read_frames(str(video), 96, [list(range(count))])
    assert np.array_equal(frames, expected.frames[0]) and shown == expected.size


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_classes_and_boxes_are_those_of_the_predictor(tmp_path, example, demo_as_onnx, name):
    size, length, times = VIDEOS[name]
    video = write_video(tmp_path / "a.mp4", with_targets(CELLS[:length], size), times=times)
    assert_same_prediction(example.predict, demo_as_onnx, "demo", video)


@pytest.mark.slow
def test_skipped_frames_and_decisions_of_several_frames(tmp_path, example):
    """A clip has four frames in two decisions with four glances each, and temporal shift; the second decision is skipped."""
    policy = policy_of(replace(SPATIAL, map_shape=(64, 6, 6)), skips=True)
    policy.actor.skip.weight.zero_()
    policy.actor.skip.bias[:] = torch.tensor([-20.0, 40.0, 0.0])  # P(skip) is low before the first patch, and high after it
    checkpoint.save(tiny("mean", shift=0.125, glance_frames=8), tmp_path / "in")
    save_policy(policy, tmp_path / "in", {"skipped": "last"})
    out = export(Export(classifier=str(tmp_path / "in"), format="onnx", out=str(tmp_path / "out")))
    video = write_video(tmp_path / "a.mp4", square_frames(30, 120, 160))
    expected = assert_same_prediction(example.predict, out, tmp_path / "in", video)
    assert [frame.skipped for frame in expected.frames] == [False, False, True, True]


@pytest.mark.slow
def test_interpolated_patches(tmp_path, example):
    checkpoint.save(tiny(), tmp_path / "in")
    save_policy(policy_of(grid=None, interpolated=True), tmp_path / "in", {})
    out = export(Export(classifier=str(tmp_path / "in"), format="onnx", out=str(tmp_path / "out")))
    assert_same_prediction(example.predict, out, tmp_path / "in", write_video(tmp_path / "a.mp4", square_frames(30, 120, 160)))


@pytest.mark.slow
def test_it_runs_without_pytorch_and_prints_five_classes(tmp_path, demo_as_onnx):
    video = write_video(tmp_path / "a.mp4", square_frames(12, 96, 128))
    code = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "classifiers", "adafocus_env", "agents"]))  # importing them fails
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code, str(EXAMPLE), str(demo_as_onnx), str(video)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(printed) == 5 + 8 and all(line.endswith("%") for line in printed[:5])
