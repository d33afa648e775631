import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_videos import TRAIN, make_videos
from conftest import random_classifier
from distributed_training import as_process, train, train_all
from safetensors.torch import load_file
from supervised_stages import CONFIG, STAGES
from tiny_training import make_folder
from torch import nn
from two_processes import call_in_two

from adafocus_env import distributed, fill_bank
from adafocus_env.build import choose_device
from adafocus_env.clips.store import ClipStore
from adafocus_env.clips.stream import StreamingClips
from agents.config.settings import ClassifierConfig, SupervisedConfig, TrainStages
from agents.pipeline.stages import check_learning
from agents.runs.run_dir import RunDir
from agents.supervised.stage_model import Batch, load_batch
from classifiers.errors import InputError

TESTS = Path(__file__).parents[2]


def run(stage, videos=12, *, stops=False, **settings):
    return {"stage": stage, "videos": videos, "stops": stops, "settings": settings}


RUNS = [
    run("glancer"),
    run("focuser", 3, batch_size=2),  # the last clip is alone: the other process has none
    run("random patches"),
    run("finetune both", 5, batch_size=4),  # three clips and two: shares differ
    run("finetune head", accumulate=2),
    run("end to end", 5, batch_size=4),
    run("random patches", dropout=None),
    run("random patches", dropout=None, stops=True),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    """Return the folder of videos, which ``clips`` has rendered."""
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def two(tmp_path_factory, root, cache):
    """Return the metrics of `RUNS` in two processes, and the folder of their weights and of complete trainings."""
    shutil.rmtree(cache / "classifiers", ignore_errors=True)  # other tests may have left one
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, str(TESTS / "distributed_training.py"), str(folder), str(root), json.dumps(RUNS)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory, root, two):
    """Return the same for one process, which uses the classifier that two processes have trained and cached."""
    folder = tmp_path_factory.mktemp("one")
    train_all(folder, root)
    return train(folder, RUNS[:6]), folder


def test_two_forked_processes_do_what_one_does(tmp_path):
    """This is the fast form of the test."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    assert call_in_two(as_process, folders[1], RUNS[2]) == [0, 0]
    alone = train(folders[0], [RUNS[2]])
    assert_alike((alone, folders[0]), (json.loads((folders[1] / "measured.json").read_text()), folders[1]), 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_two_processes_do_what_one_does(number, one, two):
    assert_alike(one, two, number)


def assert_alike(one, two, number):
    """Check that both have the same metrics and the same final weights in a run."""
    alone, together = (found[0][number] for found in (one, two))
    assert np.allclose([epoch["loss"] for epoch in alone], [epoch["loss"] for epoch in together], atol=1e-4, rtol=0)
    for key in ("accuracy", "learning_rate"):
        assert [epoch[key] for epoch in alone] == [epoch[key] for epoch in together]
    weights, others = (load_file(found[1] / f"{number}.safetensors") for found in (one, two))
    assert all(torch.allclose(weights[name].float(), others[name].float(), atol=1e-4, rtol=0) for name in weights)
    start = random_classifier().state_dict()
    moved = max(float((weights[name].float() - start[name].float()).abs().max()) for name in weights)
    assert moved > 0.01, "far more than they may differ"


@pytest.mark.slow
def test_two_processes_that_are_stopped_again_and_again_end_as_if_they_had_not_been(two):
    measured, folder = two
    assert measured[6] == measured[7]
    weights, others = (load_file(folder / f"{number}.safetensors") for number in (6, 7))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.slow
def test_two_processes_train_a_policy_as_one_does(one, two):
    alone, together = (RunDir(found[1] / "policy") for found in (one, two))
    assert len(alone.metrics()) == len(together.metrics()) == len(together.timing()) == 4
    for line, other in zip(alone.metrics(), together.metrics(), strict=True):
        assert line == pytest.approx(other, abs=1e-3)
    assert alone.result()["policies"].keys() == together.result()["policies"].keys()


@pytest.mark.slow
def test_two_processes_go_through_all_stages_as_one_does(one, two):
    alone, together = (RunDir(found[1] / "run") for found in (one, two))
    assert len(alone.metrics()) == len(together.metrics()) == 10
    for line, other in zip(alone.metrics(), together.metrics(), strict=True):
        assert line == pytest.approx(other, abs=1e-3)
    assert [line["stage"] for line in together.metrics()] == [0, 0, 1, 1, 2, 2, 3, 3, 2, 3]
    learned = [run.result()["policies"]["learned"] for run in (alone, together)]
    assert learned[0].pop("steps").keys() == learned[1].pop("steps").keys()
    results = [{name: value for name, value in each.items() if not name.endswith("_interval")} for each in learned]
    assert results[0] == pytest.approx(results[1], abs=1e-3)
    assert len(together.timing()) == 10, "one process alone writes to the run folder"


class Activated(nn.BatchNorm2d):
    """A batch norm with a custom forward pass, as some libraries have."""

    def forward(self, inputs):
        return nn.functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        ).relu()


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, affine=False), lambda: Activated(3, momentum=0.3)])
@pytest.mark.parametrize("training", [True, False])
def test_the_batch_norm_of_several_processes_is_that_of_one_where_there_is_one(make, training):
    torch.manual_seed(0)
    values, results = torch.randn(4, 3, 5, 5) * 3 + 7, []
    for mode in (None, distributed.GlobalBatchNorm()):
        norm, inputs = make().train(training), values.clone().requires_grad_()
        if mode is None:
            outputs = norm(inputs)
        else:
            with mode:
                outputs = norm(inputs)
        (outputs * torch.arange(5)).sum().backward()
        results.append([outputs, inputs.grad, *norm.buffers(), *(each.grad for each in norm.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, atol=1e-4), (expected, found)


@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_passing_over_clips_draws_what_loading_them_draws(kind, tmp_path):
    videos = make_videos(tmp_path / "v", 4)
    settings = replace(TRAIN, views=1)
    store = ClipStore(videos, settings, folder=tmp_path / "cache") if kind == "stored" else StreamingClips(videos, settings)
    rngs = [np.random.default_rng(1) for _ in range(2)]
    clips = store.readable_clips(store.epoch(0, np.random.default_rng(0)))
    for clip in clips:
        store.resampled(int(clip), rngs[0])
    store.skip_rng(clips, rngs[1])
    assert rngs[0].random() == rngs[1].random()


def test_what_one_process_cannot_read_the_others_leave_out(tmp_path, monkeypatch):
    clips = StreamingClips(make_videos(tmp_path / "v", 4), replace(TRAIN, views=1))
    monkeypatch.setattr(distributed, "shard", lambda indices: np.array_split(indices, 2))
    monkeypatch.setattr(distributed, "all_gather_counts", lambda count: [count, 1])
    monkeypatch.setattr(distributed, "gather_objects", lambda failures: [failures, [("c0/v2.mp4", "it is cut")]])
    batch, counts = load_batch(clips, np.arange(4), np.random.default_rng(0), torch.device("cpu"))
    assert batch.clips.tolist() == [0, 1] and (counts, batch.total) == ([2, 1], 3)
    assert clips.failures == [("c0/v2.mp4", "it is cut")]


def test_a_part_of_a_batch_gets_its_rows_of_what_is_drawn_for_the_whole():
    def batch():
        frames = torch.arange(5)[:, None]
        return Batch(frames, frames, torch.arange(5), np.arange(5), 2, 9, np.random.default_rng(0))

    whole = np.random.default_rng(0).random((9, 3))
    for part, rows in zip(batch().split(2), (slice(2, 5), slice(5, 7)), strict=True):
        assert part.frames[:, 0].tolist() == part.labels.tolist() == part.clips.tolist() and part.glance_frames is part.frames
        part.rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
        assert np.array_equal(part.sample(lambda rng, total: rng.random((total, 3))), whole[rows])


def as_one_of(monkeypatch, processes, rank=0):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("size", "advice"), [(5, "4 or 6"), (1, "2")])
def test_a_batch_that_cannot_be_shared_out(size, advice, clips, monkeypatch):
    as_one_of(monkeypatch, 2)
    with pytest.raises(InputError, match=rf"batch_size must be a multiple of the 2 processes, got {size}; set it to {advice}$"):
        next(STAGES["glancer"](random_classifier(), clips, replace(CONFIG, batch_size=size), 0))


def test_compiling_is_for_one_process(clips, monkeypatch):
    as_one_of(monkeypatch, 2)
    monkeypatch.setattr("agents.supervised.epochs.check_compiler", lambda: None)
    with pytest.raises(InputError, match=r"compile=true needs a single process, got 2; leave it out, or start"):
        next(STAGES["glancer"](random_classifier(), clips, replace(CONFIG, batch_size=4, compile=True), 0))


def test_all_stages_are_checked_before_the_first_begins(monkeypatch):
    as_one_of(monkeypatch, 4)
    config = TrainStages(stages=ClassifierConfig(finetune=SupervisedConfig(batch_size=30)))
    with pytest.raises(InputError, match=r"stage 3: focuser, head: .* must be a multiple of the 4 processes, got 30; set it to 28 or 32"):
        check_learning(config, torch.device("cpu"))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    as_one_of(monkeypatch, 4, rank=2)
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"process 2 of this machine has no GPU, there are 2: start torchrun with --nproc_per_node=2"):
        choose_device("cuda")


def test_alone_there_is_one_process():
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank(), distributed.is_main()) == (0, 1, 0, True)
    distributed.barrier()
    assert distributed.broadcast_object("value") == "value"
    assert distributed.gather_objects(1) == [1] and distributed.all_gather_counts(3) == [3]
    assert not torch.distributed.is_initialized()


def test_processes_share_what_fills_a_bank(monkeypatch):
    parts = []
    for rank in range(3):
        as_one_of(monkeypatch, 3, rank)
        parts += [fill_bank._of_process(share, 2) for share in (0, 1)]
    assert sorted(number for part, every in parts for number in range(part, 60, every)) == list(range(60))
