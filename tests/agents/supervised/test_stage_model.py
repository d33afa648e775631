"""The execution of networks in training: precision, memory layout, compilation, and steps in several microbatches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import needs, random_classifier
from supervised_stages import CONFIG, STAGES, trained

from adafocus_env.clips.store import ClipStore
from agents.evaluation.inference import classify_crops
from agents.runs.interrupts import Stopped, StopRequest
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stages import train_on_random_patches
from classifiers import optimize as execution
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical

PLAIN = replace(CONFIG, dropout=None, frames=3)


def losses(stage, clips, **settings):
    torch.manual_seed(1)  # of the dropout
    return [epoch["loss"] for epoch in trained(stage, clips, replace(PLAIN, **settings))[1]]


@needs("bfloat16")
@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_learns_as_float32_does(stage, clips):
    plain, mixed = losses(stage, clips), losses(stage, clips, precision="bfloat16")
    assert mixed != plain and mixed == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("precision", [pytest.param(name, marks=needs(name)) for name in ("bfloat16", "float16")])
def test_weights_stay_float32_and_what_chooses_the_patches_computes_as_ever(precision, clips):
    classifier, seen = random_classifier(), set()
    classifier.focuser.features.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    list(STAGES["finetune both"](classifier, clips, replace(PLAIN, precision=precision), 0))
    assert seen == {getattr(torch, precision)}
    assert {tensor.dtype for tensor in classifier.state_dict().values()} == {torch.float32, torch.int64}


@needs("float16")
def test_gradients_that_are_too_large_for_float16_change_nothing_until_the_scale_fits(clips, monkeypatch):
    steps, schedules, scales = [], [], []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), step(self, *args))[1])
    move = torch.optim.lr_scheduler.OneCycleLR.step
    monkeypatch.setattr(torch.optim.lr_scheduler.OneCycleLR, "step", lambda self, *args: (schedules.append(1), move(self, *args))[1])
    update = torch.amp.GradScaler.update
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda self: (update(self), scales.append(self.get_scale()))[0])
    losses("focuser", clips, precision="float16", epochs=5)
    skipped = sum(after < before for before, after in zip([65536, *scales], scales, strict=False))
    assert len(scales) == 15 and 0 < skipped < 15 and len(steps) == 15 - skipped
    assert len(schedules) == len(steps) + 1  # it takes its first step when it is made


@needs("float16")
def test_the_scale_of_float16_is_saved(clips, tmp_path):
    config, results = replace(PLAIN, precision="float16", epochs=3), []
    for stops in (False, True):
        torch.manual_seed(1)
        lines = []
        while True:
            classifier, stop = random_classifier(), StopRequest()
            stop.requested = stops
            checkpoints = EpochCheckpoint(tmp_path / str(stops), lambda lines=lines: len(lines), stop)
            try:
                lines += train_on_random_patches(classifier, clips, config, seed=0, checkpoints=checkpoints)
            except Stopped:
                continue
            break
        results.append(classifier.fingerprint())
    assert results[0] == results[1]


@pytest.mark.parametrize("stage", ["glancer", "random patches"])
def test_channels_last_is_for_the_time_of_learning(stage, clips):
    classifier, seen = random_classifier(), set()
    for network in (classifier.glancer, classifier.focuser):
        network.features.register_forward_hook(
            lambda module, inputs, output: seen.add(output.is_contiguous(memory_format=torch.channels_last))
        )
    torch.manual_seed(1)
    measured = list(STAGES[stage](classifier, clips, replace(PLAIN, channels_last=True), 0))
    assert seen == {True} and [epoch["loss"] for epoch in measured] == pytest.approx(losses(stage, clips), abs=1e-4)
    assert all(tensor.is_contiguous() for tensor in classifier.state_dict().values())


@pytest.mark.parametrize("microbatches", [2, 3, 9])
def test_accumulated_microbatches_make_the_whole_step(microbatches, clips: ClipStore, monkeypatch):
    """Batches of 4 clips are divided into microbatches of 2 and 2; 2, 1 and 1; or 1, 1, 1 and 1. The head has no batch norm."""
    sizes, gradients = [], {}
    step = torch.optim.AdamW.step

    def watched(self, *arguments):
        gradients[accumulate].append([each.grad.clone() for group in self.param_groups for each in group["params"]])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    results = {}
    for accumulate in (1, microbatches):
        gradients[accumulate], classifier = [], random_classifier()
        classifier.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        results[accumulate] = list(STAGES["finetune head"](classifier, clips, replace(PLAIN, dropout=0.0, accumulate=accumulate), 0))
    assert set(sizes[6:]) == {2: {2}, 3: {2, 1}, 9: {1}}[microbatches]
    for whole, accumulated in zip(results[1], results[microbatches], strict=True):
        assert whole == pytest.approx(accumulated, abs=1e-5)
    for whole, accumulated in zip(gradients[1], gradients[microbatches], strict=True):
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(whole, accumulated, strict=True))


def test_microbatches_are_sampled_as_the_whole_step(clips, monkeypatch):
    """Patches and their order are the same for any number of microbatches; the last batch has fewer clips."""
    seen = {1: [], 3: []}

    def focus(classifier, frames, vectors, corners, *skips):
        seen[accumulate].append(corners.numpy())
        return classify_crops(classifier, frames, vectors, corners, *skips)

    monkeypatch.setattr("agents.supervised.stages.classify_crops", focus)
    for accumulate in seen:
        list(STAGES["random patches"](random_classifier(), clips, replace(PLAIN, batch_size=7, accumulate=accumulate), 0))
    assert len(seen[3]) == 3 * len(seen[1])
    assert np.array_equal(np.concatenate(seen[1]), np.concatenate(seen[3]))


def test_networks_are_compiled_for_the_time_of_learning(clips, monkeypatch):
    """PyTorch marks compiled modules; the compiler is tested with frozen networks."""
    try:
        execution.check_compiler()
    except InputError as problem:
        pytest.skip(str(problem))
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    classifier = random_classifier()
    list(STAGES["random patches"](classifier, clips, replace(PLAIN, epochs=1, compile=True), 0))
    assert compiled == [classifier.focuser, classifier.glancer]


def test_a_precision_that_the_device_lacks_is_refused(clips, monkeypatch):
    monkeypatch.setattr(execution, "_works", lambda name, device: name == "float32")
    with pytest.raises(InputError, match=r"precision=bfloat16 is not supported by this cpu; choose"):
        trained("glancer", clips, replace(PLAIN, precision="bfloat16"))


def test_compiling_without_a_compiler_is_refused(clips, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"compile=true needs a C\+\+ compiler, but no-such-compiler was not found"):
        trained("glancer", clips, replace(PLAIN, compile=True))
