import random
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_classifier
from supervised_stages import CONFIG, LEARNING, STAGES, looking_policy

from agents.runs.interrupts import Stopped, StopRequest
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stages import finetune, train_on_random_patches, warm_up
from classifiers.errors import InputError

RUN = {
    "glancer": lambda network, clips, **given: warm_up(network, "glancer", clips, seed=0, **given),
    "focuser": lambda network, clips, **given: warm_up(network, "focuser", clips, seed=0, **given),
    "random patches": lambda network, clips, **given: train_on_random_patches(network, clips, seed=0, **given),
    "finetune both": lambda network, clips, **given: finetune(network, looking_policy(), clips, seed=0, **given),
}
BATCHES = 6  # two epochs of three


class Dead(BaseException):
    """Raised in place of a kill of the process."""


class Start:
    """One start of a training command, which logs to ``lines``."""

    def __init__(self, folder, lines, *, every=0.0, stop=None):
        self.lines, self.network = lines, random_classifier()
        self.checkpoints = EpochCheckpoint(folder, lambda: len(lines), stop, save_every_seconds=every)
        if self.checkpoints.resumed_lines is not None:
            del lines[self.checkpoints.resumed_lines :]

    def train(self, stage, clips, config=CONFIG):
        for epoch in RUN[stage](self.network, clips, config=config, checkpoints=self.checkpoints):
            self.lines.append(epoch)
            self.checkpoints.extra["seen"] = len(self.lines)
        return self.network.fingerprint(), self.lines


def dying(monkeypatch, batch):
    """Make the process die after it has scored the given batch, counted from now."""
    real, calls = torch.nn.functional.cross_entropy, []

    def cross_entropy(*arguments):
        calls.append(arguments)
        if len(calls) == batch:
            raise Dead
        return real(*arguments)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)


def disturb():
    """Change the random states, as in another process."""
    torch.manual_seed(99), random.seed(99), np.random.seed(99)  # noqa: NPY002


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """Return the weights and lines of each stage without interruption."""

    def run(stage):
        torch.manual_seed(7)  # of the dropout
        return Start(tmp_path_factory.mktemp("whole"), [], every=1e9).train(stage, clips)

    return {stage: run(stage) for stage in RUN}


@pytest.mark.parametrize(
    ("stage", "batch", "every"),
    [
        *(("random patches", batch, 0.0) for batch in range(2, BATCHES + 1)),
        *(("random patches", batch, 1e9) for batch in (4, 5)),
        ("glancer", 3, 0.0), ("focuser", 6, 0.0), ("finetune both", 2, 0.0), ("finetune both", 5, 1e9),
    ],
)  # fmt: skip
def test_a_killed_training_ends_as_if_it_had_not_been(stage, batch, every, clips, whole, tmp_path, monkeypatch):
    lines = []
    torch.manual_seed(7)
    with monkeypatch.context() as patch, pytest.raises(Dead):
        dying(patch, batch)
        Start(tmp_path, lines, every=every).train(stage, clips)
    disturb()
    assert Start(tmp_path, lines, every=every).train(stage, clips) == whole[stage]


def test_killed_again_and_again_and_after_the_end(clips, whole, tmp_path, monkeypatch):
    lines = []
    torch.manual_seed(7)
    for _ in range(BATCHES - 1):
        with monkeypatch.context() as patch, pytest.raises(Dead):
            dying(patch, 2)
            Start(tmp_path, lines).train("random patches", clips)
        disturb()
    for _ in range(2):
        assert Start(tmp_path, lines).train("random patches", clips) == whole["random patches"]
        disturb()


def test_a_line_that_was_logged_before_its_checkpoint_is_logged_again(clips, whole, tmp_path):
    lines = []
    torch.manual_seed(7)
    first = Start(tmp_path, lines, every=1e9)
    epochs = RUN["glancer"](first.network, clips, config=CONFIG, checkpoints=first.checkpoints)
    lines.append(next(epochs))
    lines.append(next(epochs))  # the second epoch is logged, not saved
    disturb()
    again = Start(tmp_path, lines, every=1e9)
    assert again.checkpoints.resumed_lines == 1 and len(lines) == 1
    assert again.train("glancer", clips) == whole["glancer"]


@pytest.mark.parametrize("stage", RUN)
def test_a_stop_is_heeded_between_batches(stage, clips, whole, tmp_path):
    lines, starts = [], 0
    torch.manual_seed(7)
    while True:
        stop, starts = StopRequest(), starts + 1
        stop.requested = True
        try:
            assert Start(tmp_path, lines, every=1e9, stop=stop).train(stage, clips) == whole[stage]
        except Stopped:
            disturb()
        else:
            break
    assert starts == BATCHES + 1


def test_the_callers_values_come_back(clips, tmp_path):
    first = Start(tmp_path, [])
    assert (first.checkpoints.resumed_lines, first.checkpoints.extra) == (None, {})
    first.train("glancer", clips)
    again = Start(tmp_path, first.lines)
    assert (again.checkpoints.resumed_lines, again.checkpoints.extra) == (2, {"seen": 2})


def test_the_last_checkpoints_stay(clips, tmp_path):
    Start(tmp_path, []).train("glancer", clips)
    names = [file.name for file in sorted(tmp_path.iterdir())]
    assert names == ["00001-0000002.pt", "00002-0000000.pt"]


def test_only_what_learns_is_saved(clips, tmp_path):
    Start(tmp_path, []).train("glancer", clips)
    weights = torch.load(max(tmp_path.iterdir()), weights_only=True)["state"]["weights"]
    names = [f"glancer.{name}" for each in weights for name in each]
    assert sorted(names) == sorted(name for name in random_classifier().state_dict() if name.startswith(LEARNING["glancer"]))


def broken(file, how):
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "a bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "other":
        torch.save({"weights": []}, file)
    else:
        torch.save({"identity": {}, "lines": 0, "extra": {}, "state": Path("x")}, file)  # would have to be unpickled


@pytest.mark.parametrize("how", ["torn", "a bit", "other", "pickle"])
def test_a_broken_checkpoint_is_named_and_the_one_before_can_be_used(how, clips, whole, tmp_path):
    lines = []
    torch.manual_seed(7)
    Start(tmp_path, lines).train("glancer", clips)
    broken(max(tmp_path.iterdir()), how)
    advice = r"00002-0000000.pt is not a complete checkpoint .*; remove it to resume from the previous one, or force=true starts over"
    with pytest.raises(InputError, match=advice):
        Start(tmp_path, lines)
    max(tmp_path.iterdir()).unlink()
    assert Start(tmp_path, lines).train("glancer", clips) == whole["glancer"]


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("glancer", {"batch_size": 6}, r"was saved by another training: batch_size was 5 and is 6; force=true starts over"),
        ("focuser", {}, r"was saved by another training: it holds another network: .*; force=true starts over"),
        ("random patches", {}, r"was saved by another training: it holds 1 networks, not 2; force=true starts over"),
    ],
)
def test_a_foreign_checkpoint_is_refused(stage, change, message, clips, tmp_path):
    Start(tmp_path, []).train("glancer", clips)
    start = Start(tmp_path, [{}, {}])
    before = start.network.fingerprint()
    with pytest.raises(InputError, match=message):
        start.train(stage, clips, replace(CONFIG, **change))
    assert start.network.fingerprint() == before


def test_a_full_disk_leaves_the_checkpoint_before(clips, whole, tmp_path):
    lines = []
    torch.manual_seed(7)
    first = Start(tmp_path, lines, every=1e9)
    epochs = RUN["glancer"](first.network, clips, config=CONFIG, checkpoints=first.checkpoints)
    lines.append(next(epochs))
    lines.append(next(epochs))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*00002-0000000.pt: .*; free some space or choose another folder"):
            next(epochs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before != {}
    assert Start(tmp_path, lines).train("glancer", clips) == whole["glancer"]


def test_what_a_killed_writer_left_is_removed(clips, tmp_path):
    Start(tmp_path, []).train("glancer", clips)
    leftover = tmp_path / ".00002-0000000.pt.abc.part"
    leftover.write_bytes(b"half")
    Start(tmp_path, [{}, {}])
    assert not leftover.exists() and len(list(tmp_path.iterdir())) == 2


def losing(monkeypatch, batch, value=float("nan")):
    real, calls = torch.nn.functional.cross_entropy, []

    def cross_entropy(*arguments):
        calls.append(arguments)
        return real(*arguments) * (value if len(calls) == batch else 1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)


def test_a_lost_loss_leaves_the_last_good_checkpoint(clips, whole, tmp_path, monkeypatch):
    lines = []
    torch.manual_seed(7)
    start = Start(tmp_path, lines)
    with monkeypatch.context() as patch:
        losing(patch, 5)
        with pytest.raises(InputError, match=r"the loss is nan in epoch 2, with .*; the last good checkpoint is in ") as caught:
            start.train("glancer", clips)
    assert str(tmp_path) in str(caught.value)
    assert max(tmp_path.iterdir()).name == "00001-0000001.pt"
    assert Start(tmp_path, lines).train("glancer", clips) == whole["glancer"], "the cause is gone"


def test_weights_that_are_lost_are_not_saved(clips, tmp_path, monkeypatch):
    start = Start(tmp_path, [])
    step = torch.optim.AdamW.step

    def poisoned(self, *arguments):
        step(self, *arguments)
        if len(start.lines) == 1:
            next(start.network.glancer.parameters()).data[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    with pytest.raises(InputError, match=r"features.0.0.weight holds values that are not finite in epoch 2, with the clips .*; choose"):
        start.train("glancer", clips)
    assert max(tmp_path.iterdir()).name == "00001-0000000.pt"


def test_stages_are_those_of_the_other_tests():
    assert RUN.keys() <= STAGES.keys()
