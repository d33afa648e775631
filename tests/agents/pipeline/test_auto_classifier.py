"""The classifier of `classifier=auto` is trained once per data set, and its training can be stopped or killed at any time."""

import shutil
import signal

import pytest
import torch
from tiny_training import SETTINGS, Crash, crash, make_folder, tiny_networks

from agents.config.command import compose_config
from agents.config.settings import TrainPPO
from agents.pipeline import driver
from agents.pipeline.policy_training import TRAINING, trained_classifier
from agents.pipeline.training_run import TrainingRun
from agents.runs.run_dir import RunDir
from agents.supervised.stages import train_on_random_patches, warm_up
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
FEW = ["stages.glancer.epochs=2", "stages.glancer.dropout=0.3", "stages.glancer.batch_size=3", "stages.random_patches.batch_size=3"]
LINES = 5  # two epochs, one and two


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    """Return the folder of videos, which ``clips`` has rendered."""
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(autouse=True)
def empty(cache):
    shutil.rmtree(cache / "classifiers", ignore_errors=True)


def open_run(folder, root, *overrides):
    config = compose_config(TrainPPO, "train_ppo", [*SETTINGS, *FEW, f"run={folder}", f"data.root={root}", *overrides])
    return TrainingRun.open(config.run, config)


def get_classifier(folder, root, *overrides):
    with open_run(folder, root, *overrides) as run:
        return trained_classifier(run, run.clips())


def cached(cache):
    """Return the weights and the metrics in the only folder of the cache."""
    (folder,) = (path for path in (cache / "classifiers").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {checkpoint.CARD, checkpoint.WEIGHTS, TRAINING}
    assert not (folder / TRAINING / "checkpoints").exists()
    return (folder / checkpoint.WEIGHTS).read_bytes(), (folder / TRAINING / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, root, cache):
    """Return the results of an uninterrupted training."""
    shutil.rmtree(cache / "classifiers", ignore_errors=True)
    get_classifier(tmp_path_factory.mktemp("runs") / "run", root)
    return cached(cache)


def at_line(number, act, log=RunDir.log):
    """Make `RunDir.log` call ``act`` when the metrics have the given number of lines."""

    def logged(self, metrics):
        log(self, metrics)
        if type(self) is RunDir and len(self.metrics()) == number:
            act()

    return logged


def test_the_metrics_are_beside_the_classifier(tmp_path, root, cache, whole):
    assert len(whole[1].splitlines()) == LINES
    get_classifier(tmp_path, root)
    (folder,) = (cache / "classifiers").glob(f"*/{TRAINING}")
    expected = [(0, "glancer", 1), (0, "glancer", 2), (0, "focuser", 1), (1, "random patches", 1), (1, "random patches", 2)]
    assert [(line["stage"], line["part"], line["epoch"]) for line in RunDir(folder).metrics()] == expected


def test_its_stages_are_the_epoch_loops_one_after_the_other(tmp_path, root):
    """Random states (such as for dropout) carry over from stage to stage, and the seed is 0 for any seed of the run."""
    with open_run(tmp_path, root, "seed=3") as run:
        clips, stages = run.clips(), run.config.stages
        classifier = trained_classifier(run, clips)
    torch.manual_seed(0)
    bare = Classifier(classifier.architecture, classifier.classes).freeze()
    for name in ("glancer", "focuser"):
        list(warm_up(bare, name, clips.train, getattr(stages, name), seed=0))
    list(train_on_random_patches(bare, clips.train, stages.random_patches, seed=0))
    assert bare.fingerprint() == classifier.fingerprint()


@pytest.mark.slow
def test_a_training_that_was_stopped_after_every_epoch_ends_as_if_it_had_not_been(tmp_path, root, cache, whole, monkeypatch):
    for number in range(1, LINES + 1):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(RunDir, "log", at_line(number, lambda: signal.raise_signal(signal.SIGTERM)))
            get_classifier(tmp_path / f"{number}", root)
        assert ended.value.code == 130
    get_classifier(tmp_path / "last", root)
    assert cached(cache) == whole


def test_a_training_that_was_killed_after_every_epoch_ends_as_if_it_had_not_been(tmp_path, root, cache, whole, monkeypatch):
    for number in range(1, LINES + 1):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(RunDir, "log", at_line(number, crash))
            get_classifier(tmp_path, root)
    get_classifier(tmp_path, root)
    assert cached(cache) == whole


@pytest.mark.slow
def test_a_training_that_was_killed_after_every_stage_ends_as_if_it_had_not_been(tmp_path, root, cache, whole, monkeypatch):
    write = driver.write_text
    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(driver, "write_text", lambda file, text: (write(file, text), crash()))
            get_classifier(tmp_path, root)
    get_classifier(tmp_path, root)
    assert cached(cache) == whole


def test_force_drops_a_broken_training(tmp_path, root, cache, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(RunDir, "log", at_line(2, crash))
        get_classifier(tmp_path, root)
    for file in (cache / "classifiers").rglob("*.pt"):
        file.write_bytes(b"half")
    with pytest.raises(InputError, match=r"\.pt is not a complete checkpoint of this program .*; force=true starts over"):
        get_classifier(tmp_path, root)
    get_classifier(tmp_path, root, "force=true")
    assert cached(cache) == whole


def test_without_epochs_the_weights_stay_random(tmp_path, root, cache):
    none = [f"stages.{stage}.epochs=0" for stage in ("glancer", "focuser", "random_patches")]
    classifier = get_classifier(tmp_path, root, *none)
    torch.manual_seed(0)
    assert classifier.fingerprint() == Classifier(classifier.architecture, classifier.classes).fingerprint()
