"""Stage 2 in two processes: the same rollouts and updates as in one, resuming, and refused settings."""

import re

import numpy as np
import pytest
import torch
from conftest import FINE_GRID
from distributed_policy import CASES, first_update, first_updates, train
from safetensors.torch import load_file
from two_processes import call_in_two

from adafocus_env import distributed
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import AlgoConfig
from agents.pipeline.builders import Clips
from agents.pipeline.training_run import check_clips
from agents.rl.distributed import SharedVectorEnv, check_processes, owned
from agents.rl.saved_model import selection_of
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = FINE_GRID
QUICK = ["ppo, small minibatches"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory, clips):
    """Return the folder with the first updates of two processes in the quick cases."""
    folder = tmp_path_factory.mktemp("quick")
    assert call_in_two(first_updates, folder, QUICK) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def slow(tmp_path_factory, clips):
    """Return the same for the other cases."""
    folder = tmp_path_factory.mktemp("slow")
    assert call_in_two(first_updates, folder, [name for name in CASES if name not in QUICK]) == [0, 0]
    return folder


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_make_the_first_update_of_one(name, quick):
    assert_alike(first_update(CASES[name]), load_file(quick / f"{name}.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_two_processes_make_any_first_update_of_one(name, slow):
    assert_alike(first_update(CASES[name]), load_file(slow / f"{name}.safetensors"))


def assert_alike(alone, together):
    """Check that clips and actions are equal, and that gradients and everything else differ by less than 1e-5 of their size."""
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[key], together[key]) for key in ("observations", "actions"))
    for key, expected in alone.items():
        tolerance = 1e-5 * float(expected.abs().max()) + 1e-12
        assert float((together[key] - expected).abs().max()) <= tolerance, key
    gradients = [float(alone[key].abs().max()) for key in alone if key[0].isdigit()]
    assert len(gradients) >= 3 and max(gradients) > 1e-4


@pytest.fixture(scope="module")
def whole(tmp_path_factory, clips):
    """Return the folder of a training of two processes that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert call_in_two(train, folder) == [0, 0]
    return folder


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(whole, tmp_path, clips):
    train(tmp_path / "alone")
    lines, others = RunDir(tmp_path / "alone").metrics(), RunDir(whole).metrics()
    assert len(lines) == len(others) == 6
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, abs=1e-3)
    best, other_best = (selection_of(folder / "checkpoints" / "best") for folder in (tmp_path / "alone", whole))
    assert best["steps"] == other_best["steps"] and best["metrics"] == pytest.approx(other_best["metrics"], abs=1e-3)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_training_and_the_same_command_resumes_it(whole, tmp_path, clips):
    assert call_in_two(train, tmp_path, 5) == [2, 9], "the other process does not wait until it is killed"
    assert re.match(
        r"another process has ended or does not answer, and this one cannot go on alone \(.*\); see the message of the process that failed "
        r"first\. The same command resumes$", (tmp_path / "error-0.txt").read_text(),
    )  # fmt: skip
    assert len(RunDir(tmp_path).metrics()) == 4
    assert call_in_two(train, tmp_path) == [0, 0]
    for name in ("metrics.jsonl", "checkpoints/best/policy.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_one_process_resumes_what_two_have_begun(whole, tmp_path, clips):
    assert call_in_two(train, tmp_path, 5) == [2, 9]
    train(tmp_path)
    for line, other in zip(RunDir(tmp_path).metrics(), RunDir(whole).metrics(), strict=True):
        assert line == pytest.approx(other, abs=1e-3)


def as_one_of(monkeypatch, processes, rank=0):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


def test_each_clip_has_one_owner(monkeypatch):
    assert owned(np.arange(4)).all(), "a single process owns all clips"
    masks = []
    for rank in range(3):
        as_one_of(monkeypatch, 3, rank)
        masks.append(owned(np.arange(100)))
    assert (np.sum(masks, axis=0) == 1).all()


@pytest.mark.parametrize(
    "algo", [AlgoConfig("a2c"), AlgoConfig("dqn"), AlgoConfig("stable_baselines3.A2C"), AlgoConfig("ppo", observation="map")]
)
def test_an_algorithm_that_needs_a_single_process(algo, monkeypatch):
    check_processes(algo, 1)
    as_one_of(monkeypatch, 2)
    with pytest.raises(
        InputError,
        match=rf"algo={algo.name} with algo.observation={algo.observation} needs a single process, got 2; start it without torchrun, or "
        "choose one of ppo, expected_pg, imitation with algo.observation=reference$",
    ):
        check_processes(algo, 4)


def test_more_processes_than_environments(monkeypatch):
    as_one_of(monkeypatch, 4)
    check_processes(AlgoConfig("agents.rl.expected_pg.ExpectedPG"), 4)
    with pytest.raises(InputError, match=r"env.num_envs must be at least the number of processes, 4, got 3; raise it, or start fewer"):
        check_processes(AlgoConfig(), 3)


def test_more_processes_than_clips(clips):
    given = Clips(None, clips, None, clips)
    check_clips(given, 12)
    with pytest.raises(InputError, match="13 processes cannot share 12 training clips; start at most one process per clip"):
        check_clips(given, 13)


def test_processes_with_other_clips(clips, monkeypatch):
    other = {"train": "11 clips, fingerprint 0123", "test": f"12 clips, fingerprint {clips.fingerprint[:12]}"}
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, other])
    message = (
        r"all processes must have the same data; give all machines the same files, with the same modification times:\n"
        r"  train: '12 clips, fingerprint \w{12}' in process 0, '11 clips, fingerprint 0123' in process 1$"
    )
    with pytest.raises(InputError, match=message):
        check_clips(Clips(None, clips, None, clips), 2)


def test_a_process_without_clips_has_the_outcomes_of_the_others(bank, monkeypatch):
    envs = [kind(2, bank.classifier, bank.clips, bank=bank) for kind in (AdaFocusVectorEnv, SharedVectorEnv, SharedVectorEnv)]
    sent = []
    for env in envs:
        env.reset(seed=0, options={"clips": [2, 0]})  # of process 0
    expected = envs[0].step(np.array([5, 7]))
    for rank, env in enumerate(envs[1:]):
        as_one_of(monkeypatch, 2, rank)
        monkeypatch.setattr(distributed, "gather_objects", lambda value: sent.append(value) or [sent[0], None])
        found = env.step(np.array([5, 7]))
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
        assert found[4]["prediction"].tolist() == expected[4]["prediction"].tolist()
        assert env.dynamics.step_number.tolist() == env.dynamics.num_patches.tolist() == [1, 1]
    assert sent[0][0].tolist() == [0, 1] and sent[1] is None


def test_what_one_process_cannot_read_is_left_out_by_all(bank, monkeypatch):
    """Process 0 owns the clips 0 and 2. Process 1 can read clip 3, but not clip 1."""
    env, asked, left_out = SharedVectorEnv(4, bank.classifier, bank.clips, bank=bank, clip_order="epoch"), [], []
    as_one_of(monkeypatch, 2)
    monkeypatch.setattr(bank.clips, "readable_clips", lambda clips: asked.append(clips.tolist()) or clips)
    monkeypatch.setattr(bank.clips, "leave_out", left_out.append)
    answers = {list: lambda failures: [failures, [("v1.mp4", "it is cut")]], np.ndarray: lambda ours: [ours, np.array([3])]}
    monkeypatch.setattr(distributed, "gather_objects", lambda value: answers[type(value)](value))
    assert env._readable_clips(np.array([3, 0, 1, 2])).tolist() == [3, 0, 2], "in the order of the epoch"
    assert asked == [[0, 2]]
    assert left_out == [[], [("v1.mp4", "it is cut")]]


def test_a_process_prepares_only_its_clips(bank, monkeypatch):
    env, coming = SharedVectorEnv(4, bank.classifier, bank.clips, bank=bank, clip_order="epoch"), []
    as_one_of(monkeypatch, 2, rank=1)
    monkeypatch.setattr(bank.clips, "prefetch", lambda clips: coming.append(clips.tolist()))
    monkeypatch.setattr(env, "_readable_clips", lambda clips: clips)
    env.reset(seed=3)
    order = AdaFocusVectorEnv(4, bank.classifier, bank.clips, bank=bank, clip_order="epoch")
    order.reset(seed=3)
    assert env.dynamics.clip.tolist() == order.dynamics.clip.tolist()
    assert sorted(coming[0]) == [1, 3, 5, 7, 9, 11] and coming[0] != sorted(coming[0])
