"""The saved state of a training, for any algorithm. It consists of tensors and plain values, and no pickle is read."""

import io
import json
import pickle
import random
import re
import shutil
import signal
import zipfile
from collections import defaultdict, deque, namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_classifier
from rich.console import Console
from safetensors.torch import save_file
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from tiny_algorithms import NETWORK, after_line, learn, metrics, settings, stored
from tiny_training import Crash, crash

from adafocus_env.action import ContinuousAction
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.settings import EnvConfig
from agents.policies.sb3 import bind
from agents.rl.algorithms import CONTINUOUS, DISCRETE, new_model
from agents.rl.environment import make_environment
from agents.rl.saved_model import load_model, load_training_state, save_training_state, unsaved_attributes
from agents.runs.interrupts import Stopped
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

Moments = namedtuple("Moments", "mean, count")


class Plain(DQN):
    """A user-defined algorithm with attributes of every type that can be stored."""

    def _setup_model(self):
        super()._setup_model()
        self.moments = Moments(torch.zeros(2), 0)
        self.generators = [np.random.default_rng(1), np.random.RandomState(2), random.Random(3), torch.Generator().manual_seed(4)]
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.Adam([self.weight])
        self.function, self.history = max, None

    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)
        self.optimizer.zero_grad()
        self.weight.square().sum().backward()
        self.optimizer.step()
        self.moments = Moments(self.moments.mean + 1, self.moments.count + 1)
        self.history = {
            1: deque([np.float32(0.1), np.int64(self._n_updates)], maxlen=2), "bits": np.array([True, False]), "none": [None, (1.5, "é")],
            "same": self.weight, "nan": float("nan"), "empty": np.zeros((0, 2)), "first": self.q_net.state_dict(),
        }  # fmt: skip
        numbers = [source.random() for source in self.generators[:1]] + [self.generators[1].rand(), self.generators[2].random()]
        self.logger.record("train/own", sum(numbers) + torch.rand((), generator=self.generators[3]).item() + self.weight.sum().item())


class Teacher:
    """An object with an unknown state."""

    def __init__(self):
        self.lessons = 0


class Stateful(Teacher):
    """An object with a state dict."""

    def state_dict(self):
        return {"lessons": self.lessons}

    def load_state_dict(self, state):
        self.lessons = state["lessons"]


class Taught(DQN):
    """A user-defined algorithm with an attribute that cannot be stored."""

    teacher = Teacher

    def _setup_model(self):
        super()._setup_model()
        self.taught_by = self.teacher()

    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)
        self.taught_by.lessons += 1
        self.logger.record("train/lessons", self.taught_by.lessons)


class TaughtWithState(Taught):
    teacher = Stateful


class TaughtLater(DQN):
    """An algorithm that gets such an attribute in the middle of training."""

    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)
        if self.num_timesteps > 32:
            self.taught_by = Teacher()


class Noisy(TD3):
    """An algorithm whose exploration noise has a state."""

    def __init__(self, *args, **kwargs):
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.5))
        super().__init__(*args, **{**kwargs, "action_noise": noise})


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.fixture(scope="module")
def places(clips):
    """Return a bank for continuous locations."""
    return MemoryBank(random_classifier(), clips, ContinuousAction(96, 24))


def own(kind, base="dqn"):
    return replace(settings(base), name=f"{__name__}.{kind.__name__}")


def fresh(features, algo, kind=DISCRETE):
    """Return a new model with the same settings."""
    env = EnvConfig(num_envs=4, action="grid" if kind == DISCRETE else "continuous", baseline=1)
    model = new_model(make_environment(features, env, "reference"), features, algo, NETWORK, 0)
    bind(model.policy, features, cache=False)
    model.set_logger(configure(None, []))
    return model


def killed_and_resumed(folder, features, algo, kind=DISCRETE):
    """Run the algorithm once without interruption and once killed after its second line, and check that both runs are equal."""
    learn(folder / "whole", features, algo, kind)
    with after_line(2, crash), pytest.raises(Crash):
        learn(folder / "killed", features, algo, kind)
    learn(folder / "killed", features, algo, kind)
    assert metrics(folder / "killed") == metrics(folder / "whole")
    (file,) = (folder / "killed" / "checkpoints").glob("*.safetensors")
    assert stored(file) == stored(folder / "whole" / "checkpoints" / file.name)


# A user's algorithm


@pytest.mark.parametrize("value", [
    object(), {1, 2}, {(1, 2): 3}, b"bytes", 1j, np.array(["text"]), np.array([None]), np.zeros(2, np.complex64),
    torch.zeros(2, 2).to_sparse(), [[Teacher()]], defaultdict(int),
])  # fmt: skip
def test_values_that_cannot_be_stored_are_named(bank, value):
    model = fresh(bank, settings("dqn"))
    model.strange = value
    assert unsaved_attributes(model) == [f"strange ({type(value).__name__})"]


def test_a_list_that_contains_itself_cannot_be_stored(bank):
    model = fresh(bank, settings("dqn"))
    model.strange = [model.q_net]
    model.strange.append(model.strange)
    model.net = torch.nn.Linear(1, 1)
    assert unsaved_attributes(model) == ["strange (list)"]


def test_attributes_of_every_type_that_can_be_stored_are_resumed(tmp_path, bank):
    killed_and_resumed(tmp_path, bank, own(Plain))
    assert [line["own"] for line in RunDir(tmp_path / "whole").metrics()][-1] > 0


def test_stored_attributes_come_back_with_their_types(tmp_path, bank):
    model, restored = fresh(bank, own(Plain)), fresh(bank, own(Plain))
    model.learn(32)
    save_training_state(model, tmp_path, {"best": [0.5]})
    assert load_training_state(restored, tmp_path) == {"best": [0.5]}
    assert isinstance(restored.moments, Moments) and restored.moments.count == model.moments.count > 0
    assert torch.equal(restored.moments.mean, model.moments.mean)
    last, before = restored.history, model.history
    assert list(last) == list(before) and last[1] == before[1] and last[1].maxlen == 2 and type(last[1][0]) is np.float32
    assert last["bits"].dtype == bool and last["bits"].tolist() == [True, False] and last["none"] == [None, (1.5, "é")]
    assert np.isnan(last["nan"]) and last["empty"].shape == (0, 2)
    assert last["same"] is restored.weight and restored.optimizer.param_groups[0]["params"][0] is restored.weight
    assert last["first"]["q_net.0.weight"].data_ptr() == restored.q_net.state_dict()["q_net.0.weight"].data_ptr()
    assert restored.function is max and restored.train_freq == model.train_freq


def test_an_attribute_with_a_state_dict_is_resumed(tmp_path, bank):
    assert unsaved_attributes(fresh(bank, own(TaughtWithState))) == []
    killed_and_resumed(tmp_path, bank, own(TaughtWithState))
    assert RunDir(tmp_path / "whole").metrics()[-1]["lessons"] > 2


def printed(folder, features, algo):
    console = Console(file=io.StringIO(), width=1000)
    learn(folder, features, algo, console=console)
    return console.file.getvalue()


REASON = r"this run cannot be resumed: {} has attributes that cannot be saved, taught_by \(Teacher\); make them tensors or plain values, or"


def test_an_attribute_that_cannot_be_stored_is_named_and_the_algorithm_learns(tmp_path, bank):
    assert unsaved_attributes(fresh(bank, own(Taught))) == ["taught_by (Teacher)"]
    said = printed(tmp_path / "whole", bank, own(Taught))
    assert len(re.findall(REASON.format("Taught"), said)) == 1
    assert not (tmp_path / "whole" / "checkpoints" / "last.json").exists()
    assert len(RunDir(tmp_path / "whole").metrics()) > 2
    with after_line(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped):
        learn(tmp_path / "stopped", bank, own(Taught))
    with pytest.raises(InputError, match=REASON.format("Taught") + ".*; force=true starts the run over"):
        learn(tmp_path / "stopped", bank, own(Taught))
    learn(tmp_path / "stopped", bank, own(Taught), force=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_an_attribute_that_comes_later_is_named_when_it_does(tmp_path, bank):
    assert len(re.findall(REASON.format("TaughtLater"), printed(tmp_path, bank, own(TaughtLater)))) == 1
    assert len(RunDir(tmp_path).metrics()) > 2


def test_noise_with_a_state_is_resumed(tmp_path, places):
    killed_and_resumed(tmp_path, places, own(Noisy, "td3"), CONTINUOUS)


# The files


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, bank):
    """Return a run that was stopped after its first line."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with after_line(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped):
        learn(folder, bank, settings("dqn"))
    return folder


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def replace_in(file, old, new):
    data = file.read_bytes()
    assert data.count(old) > 0
    file.write_bytes(data.replace(old, new, 1))


def test_no_file_is_unpickled(stopped, tmp_path, bank, monkeypatch):
    """Pickles under all names that earlier versions read are never executed, and no pickle is written."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    for name in ("dqn-32.zip", "dqn-32.replay", "best/model.zip", "best/model.pkl"):
        (folder / "checkpoints" / name).write_bytes(pickle.dumps(Trap()))
    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("something was unpickled"))
    learn(folder, bank, settings("dqn"))
    load_model(folder / "checkpoints" / "best", "cpu")
    for path in (*stopped.rglob("checkpoints/*"), *stopped.rglob("best/*")):
        assert path.is_dir() or path.suffix in (".json", ".safetensors")
        assert path.is_dir() or not zipfile.is_zipfile(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), r"dqn-32\.safetensors is missing; force=true starts the run over"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"dqn-32\.safetensors is not a readable safetensors file .*; force=true"),
        (lambda file: file.write_bytes(pickle.dumps(Trap())), r"dqn-32\.safetensors is not a readable safetensors file .*; force=true"),
        (lambda file: save_file({"a": torch.zeros(1)}, file), r"dqn-32\.safetensors is not a readable safetensors file with a"),
        (
            lambda file: (file.parent / "last.json").write_text('{"file": "dqn-32.zip", "signature": ""}'),
            r"dqn-32\.zip was written by an earlier version, whose training states are not read; force=true starts the run over",
        ),
        (lambda file: flip(file, -9), r"dqn-32\.safetensors is not a readable .* \(its checksum is wrong: .*; force=true"),
        (lambda file: replace_in(file, b'"seed', b'"sead'), r"dqn-32\.safetensors is not a readable .* \(its checksum is wrong: .*"),
        (
            lambda file: replace_in(file.parent / "last.json", b'"lines": 1', b'"lines": 0'),
            r"last\.json cannot be read \(its checksum is wrong: some of its bytes have changed\); force=true",
        ),
        (lambda file: replace_in(file.parent / "last.json", b"sha256", b"sha257"), r"last\.json cannot be read \(its checksum is wrong: "),
        (lambda file: replace_in(file.parent / "last.json", b"format", b"forma4"), r"last\.json cannot be read \(its checksum is wrong: "),
        (lambda file: (file.parent / "last.json").write_text("{"), r"last\.json cannot be read \(.*\); force=true starts the run over"),
        (lambda file: (file.parent / "last.json").write_text("{}"), r"last\.json cannot be read \(KeyError\('file'\)\); force=true"),
        (lambda file: (file.parent / "last.json").write_text("[]"), r"last\.json cannot be read \(TypeError"),
        *[
            (
                lambda file, name=name: (file.parent / "last.json").write_text(json.dumps({"file": name})),
                rf"last\.json must name a file beside it, got '{name}'; force=true starts the run over",
            )
            for name in ("../dqn-32.safetensors", "/a/dqn-32.safetensors", "below/dqn-32.safetensors", "")
        ],
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(stopped, tmp_path, bank, spoil, message):
    folder = shutil.copytree(stopped, tmp_path / "run")
    spoil(folder / "checkpoints" / "dqn-32.safetensors")
    with pytest.raises(InputError, match=message):
        learn(folder, bank, settings("dqn"))


def test_a_state_of_an_earlier_version_has_no_checksum_and_is_resumed(stopped, tmp_path, bank):
    folder = shutil.copytree(stopped, tmp_path / "run")
    pointer = folder / "checkpoints" / "last.json"
    content = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({key: value for key, value in content.items() if key not in ("format", "sha256")}))
    learn(folder, bank, settings("dqn"))
    assert len(RunDir(folder).metrics()) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (settings("qrdqn"), "it is of a DQN, the model is a QRDQN"),
        (settings("dqn", policy_kwargs={"net_arch": [3]}), r"policy \(MultiInputPolicy|DQNPolicy\) differs: .*state_dict"),
    ],
)
def test_the_state_of_another_model_is_refused(stopped, bank, other, message):
    with pytest.raises(InputError, match=rf"dqn-32\.safetensors does not fit this run: {message}.*; force=true starts the run over"):
        load_training_state(fresh(bank, other), stopped / "checkpoints")


def test_an_attribute_of_another_class_is_refused(tmp_path, bank):
    model = fresh(bank, own(Plain))
    model.learn(32)
    save_training_state(model, tmp_path, {})
    for name, value, message in [
        ("moments", (0, 0), r"moments \(tuple\) differs: a Moments was saved"),
        ("optimizer", None, r"optimizer \(NoneType\) differs: 'NoneType' object has no attribute 'load_state_dict'"),
        ("generators", [0, 0, 0, 0], r"generators\.0 \(int\) differs: a Generator was saved"),
        ("function", None, r"function is missing: the constructor does not set it"),
        ("replay_buffer", Teacher(), r"replay_buffer \(Teacher\) differs: a ClipReplayBuffer was saved"),
    ]:
        restored = fresh(bank, own(Plain))
        setattr(restored, name, value)
        with pytest.raises(InputError, match=message):
            load_training_state(restored, tmp_path)


def test_a_save_that_is_interrupted_leaves_the_state_before(tmp_path, bank, monkeypatch):
    model = fresh(bank, settings("dqn"))
    model.learn(32)
    save_training_state(model, tmp_path, {"number": 1})
    model.learn(32, reset_num_timesteps=False)
    for place in ("State.write", "write_text"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(f"agents.rl.saved_model.{place}", crash)
            save_training_state(model, tmp_path, {"number": 2})
        restored = fresh(bank, settings("dqn"))
        assert load_training_state(restored, tmp_path) == {"number": 1} and restored.num_timesteps == 32
    save_training_state(model, tmp_path, {"number": 2})
    assert load_training_state(fresh(bank, settings("dqn")), tmp_path) == {"number": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"last.json", "dqn-64.safetensors"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, bank):
    (tmp_path / "file").touch()
    model = fresh(bank, settings("dqn"))
    model.learn(32)
    with pytest.raises(InputError, match=r"cannot write .*dqn-32\.safetensors"):
        save_training_state(model, tmp_path / "file", {})


def test_nothing_that_was_saved_is_no_state(tmp_path, bank):
    assert load_training_state(fresh(bank, settings("dqn")), tmp_path) is None
