"""`python -m agents.train_stages` with tiny networks: every stage and round runs once, in order, and can be stopped at any time."""

import json
import re
import shutil
import signal

import pytest
import torch
from conftest import needs, slow_except
from tiny_training import NEW, POLICIES, Crash, assert_same, crash, left_by_force, make_folder, result, tiny_networks, train

from adafocus_env.demo.videos import demo
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.videos.class_folders import folder
from agents import evaluate, train_stages
from agents.config.command import compose_config
from agents.config.settings import Evaluate, TrainStages
from agents.pipeline import builders, driver, training_run
from agents.pipeline.training_run import TrainingRun
from agents.runs.run_dir import RunDir
from classifiers import checkpoint
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    """Return the folder of videos, which ``clips`` has rendered."""
    return make_folder(tmp_path_factory.mktemp("videos"))


def stages(*overrides):
    return train(*overrides, command=train_stages, schema=TrainStages, name="train_stages")


def train_all(folder, root, *overrides):
    few = ["ppo.total_steps=64", "stages.finetune.epochs=2", "rounds=1", "joint.total_steps=32", "joint.epochs=1"]
    return stages(f"run={folder}", f"data.root={root}", *few, *overrides)


@pytest.fixture(scope="module")
def all_stages(tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("runs") / "stages"
    return folder, train_all(folder, root)


STAGES = ("stage0-glancer", "stage0-focuser", "stage1", "stage2", "stage3", "round1-stage2", "round1-stage3")


def test_all_stages_and_a_round_run_from_random_weights(all_stages):
    folder, printed = all_stages
    lines = RunDir(folder).metrics()
    wanted = [(0, "glancer"), (0, "focuser"), (1, "random patches"), (1, "random patches"), (2, None), (2, None), (3, "head"), (3, "head")]
    assert [(line["stage"], line.get("part")) for line in lines] == [*wanted, (2, None), (3, "head")]
    assert [line.get("round") for line in lines] == [None] * 8 + [1, 1]
    assert all("val_top1" in line and "val_confidence" in line for line in lines)
    assert "stage 3: head" in printed and "round 1, stage 2: policy" in printed
    for title, epochs in (("stage 0: glancer", 1), ("stage 1: random patches", 2), ("stage 3: head", 2)):
        stage = [line for line in lines if title == f"stage {line['stage']}: {line.get('part')}" and "round" not in line]
        best = max(stage, key=lambda line: (line["val_top1"], line["val_confidence"], line["epoch"]))
        found = re.search(rf"{title}: the best is (.*?), with ([\d.]+)% of 6 validation clips right", printed)
        assert found and len(stage) == epochs
        if title != "stage 3: head" or found[1] != "the one before its first epoch":  # which finetuning may not improve on
            assert (found[1], found[2]) == (f"epoch {best['epoch']} of {epochs}", f"{100 * best['val_top1']:.1f}")
    assert set(result(folder)["policies"]) == POLICIES
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == sorted(["best", "classifier", *STAGES])


def test_each_stage_begins_with_the_best_checkpoint_of_the_one_before(all_stages):
    kept = all_stages[0] / "checkpoints"
    names = [name for name in STAGES if not name.endswith("stage2")]
    cards = [checkpoint.read_card(kept / name / "best") for name in names]
    assert [card.parent for card in cards] == [None, *(card.fingerprint for card in cards[:-1])]
    assert checkpoint.read_card(kept / "classifier").fingerprint in {card.fingerprint for card in cards[3:]}
    for name, card in zip(names, cards, strict=True):
        state = json.loads((kept / name / "done.json").read_text())
        assert state["began"] == card.parent and dict(zip(("val_top1", "val_confidence"), state["score"], strict=True)) == card.metrics
    before, after = (checkpoint.load(kept / name / "best").state_dict() for name in ("stage1", "stage3"))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} <= {"head"}


def test_what_each_stage_adds_is_reported(all_stages):
    folder, printed = all_stages
    rows = result(folder)["ablation"]
    assert [(row["after"], row["patches"]) for row in rows] == [
        ("stage 1: random patches", "random"), ("stage 2: policy", "policy"), ("stage 3: head", "policy"),
        ("round 1, stage 2: policy", "policy"), ("round 1, stage 3: head", "policy"),
    ]  # fmt: skip
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["top1"] == result(folder)["policies"]["learned"]["top1"] and "what each stage adds" in printed


@pytest.mark.slow
def test_stage_2_and_the_rounds_may_learn_by_a_subclass_of_ppo(tmp_path, root, all_stages):
    given = f"classifier={all_stages[0] / 'checkpoints' / 'classifier'}"
    train_all(tmp_path, root, given, "first=2", "algo=expected_pg", "ppo.n_steps=4", "ppo.batch_size=16")
    lines = [line for line in RunDir(tmp_path).metrics() if line["stage"] == 2]
    assert {line.get("round") for line in lines} == {None, 1} and all("value_loss" not in line for line in lines)  # it has no critic


def test_an_algorithm_that_does_not_learn_as_ppo_is_refused(tmp_path, root):
    with pytest.raises(InputError, match=r"algo must be PPO or a subclass, .* got dqn with reference; other algorithms are those of "):
        stages(f"run={tmp_path}", f"data.root={root}", "algo=dqn")


def at_line(number, act):
    """Call ``act`` when the metrics have the given number of lines."""
    log = RunDir.log

    def logged(self, metrics):
        log(self, metrics)
        if type(self) is RunDir and len(self.metrics()) == number:
            act()

    return log, logged


@pytest.mark.slow
def test_a_training_that_crashed_after_every_line_ends_as_if_it_had_not(tmp_path, root, all_stages, monkeypatch):
    for number in range(1, len(RunDir(all_stages[0]).metrics()) + 1):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(RunDir, "log", at_line(number, crash)[1])
            train_all(tmp_path, root)
    train_all(tmp_path, root)
    assert_same(tmp_path, all_stages[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", slow_except([6], [1, 3, 6, 9]))
def test_a_training_that_was_asked_to_stop_goes_on_from_there(tmp_path, root, all_stages, number, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(RunDir, "log", at_line(number, lambda: signal.raise_signal(signal.SIGTERM))[1])
        train_all(tmp_path, root)
    assert ended.value.code == 130
    train_all(tmp_path, root)
    assert_same(tmp_path, all_stages[0])


def test_finished_stages_are_not_run_again(tmp_path, root, all_stages, monkeypatch):
    folder = shutil.copytree(all_stages[0], tmp_path / "run")
    (folder / "result.json").unlink()
    for name in ("warm_up", "train_on_random_patches", "finetune"):
        monkeypatch.setattr(f"agents.pipeline.driver.{name}", lambda *args, **kwargs: pytest.fail("a finished stage is run again"))
    monkeypatch.setattr(TrainingRun, "train_policy", lambda *args, **kwargs: pytest.fail("a finished stage is run again"))
    train_all(folder, root)
    assert_same(folder, all_stages[0])


def test_force_leaves_nothing_of_the_stages(tmp_path, all_stages):
    assert left_by_force(all_stages[0], tmp_path / "copy") == NEW


def test_a_stage_that_started_from_another_classifier_is_refused(tmp_path, root, all_stages):
    folder = shutil.copytree(all_stages[0], tmp_path / "run")
    (folder / "result.json").unlink()
    shutil.copytree(folder / "checkpoints" / "stage0-focuser" / "best", folder / "checkpoints" / "stage1" / "best", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"stage2 started from another classifier than the result of the stage before; force=true"):
        train_all(folder, root)


def test_a_stage_whose_end_cannot_be_read_is_refused(tmp_path, root, all_stages):
    folder = shutil.copytree(all_stages[0], tmp_path / "run")
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "stage1" / "done.json").write_text("{}")
    with pytest.raises(InputError, match=r"done\.json cannot be read \(KeyError\('began'\)\); force=true starts the run over"):
        train_all(folder, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("confidences", "rounds", "best"),
    slow_except([([0.5, 0.4, 0.9], 1, 0)], [([0.5, 0.4, 0.9], 1, 0), ([0.5, 0.6, 0.6], 2, 2), ([0.5, 0.6, 0.5], 2, 1)]),
)
def test_rounds_end_when_one_no_longer_helps(tmp_path, root, trained, monkeypatch, confidences, rounds, best):
    """The scores after the single pass and after each round decide; of equal scores, the later one wins."""
    ends = []
    write = driver.write_text

    def scripted(file, text):
        if file.name == driver.DONE and file.parent.name.endswith("stage3"):
            text = json.dumps({**json.loads(text), "score": [0.5, confidences[len(ends)]]})
            ends.append(file)
        write(file, text)

    monkeypatch.setattr(driver, "write_text", scripted)
    few = ["first=2", "ppo.total_steps=32", "stages.finetune.epochs=1", "rounds=2"]
    stages(f"run={tmp_path}", f"data.root={root}", *few, trained[0])
    assert max(line.get("round", 0) for line in RunDir(tmp_path).metrics()) == rounds
    rows = [row for row in result(tmp_path)["ablation"] if "stage 3" in row["after"]]
    assert [row["chosen"] for row in rows].index(True) == best


@pytest.mark.slow
def test_the_bank_stays_while_only_the_head_learns(tmp_path, root, trained, monkeypatch):
    glanced = []  # the features themselves, since the id of deleted ones may be that of later ones
    glance = LiveFeatures.glance
    monkeypatch.setattr(LiveFeatures, "glance", lambda self, clip: (glanced.append((self, clip)), glance(self, clip))[1])
    banks, make = [], MemoryBank.__init__
    monkeypatch.setattr(MemoryBank, "__init__", lambda self, *args, **kwargs: (make(self, *args, **kwargs), banks.append(self._live))[0])
    few = ["first=2", "ppo.total_steps=64", "stages.finetune.epochs=1", "rounds=1"]
    stages(f"run={tmp_path}", f"data.root={root}", *few, trained[0])
    through_banks = [(live, clip) for live, clip in glanced if live in banks]
    assert len(through_banks) == len(set(through_banks)), "no clip was glanced at twice for one bank"
    assert len(banks) == 3, "of the training, validation and test clips"


@pytest.fixture(scope="module")
def trained(all_stages):
    """Return arguments that name a trained classifier and its policy."""
    kept = all_stages[0] / "checkpoints"
    return f"classifier={kept / 'stage1' / 'best'}", f"policy={kept / 'stage2' / 'best'}"


@pytest.mark.slow
def test_the_last_stage_alone_goes_on_with_what_was_trained(tmp_path, root, all_stages, trained):
    stages(f"run={tmp_path}", f"data.root={root}", "first=3", "stages.finetune.epochs=2", *trained)
    assert [line["stage"] for line in RunDir(tmp_path).metrics()] == [3, 3]
    kept = [checkpoint.load(folder / "checkpoints" / "stage3" / "best").fingerprint() for folder in (tmp_path, all_stages[0])]
    assert kept[0] == kept[1], "the same stage 3 on the same classifier and policy"
    assert "learned" in result(tmp_path)["policies"]
    evaluate.main(compose_config(Evaluate, "evaluate", [f"run={tmp_path}", f"out={tmp_path / 'out'}", "device=cpu"]))
    assert result(tmp_path / "out")["policies"] == result(tmp_path)["policies"]


@pytest.mark.slow
def test_stages_end_with_the_last_one_asked_for(tmp_path, root, trained):
    stages(f"run={tmp_path}", f"data.root={root}", "last=1")
    assert {line["stage"] for line in RunDir(tmp_path).metrics()} == {0, 1}
    assert "learned" not in result(tmp_path)["policies"] and "random" in result(tmp_path)["policies"]
    evaluate.main(compose_config(Evaluate, "evaluate", [f"run={tmp_path}", f"out={tmp_path / 'out'}", "device=cpu"]))
    assert result(tmp_path / "out")["policies"] == result(tmp_path)["policies"]
    classifier = f"classifier={tmp_path / 'checkpoints' / 'classifier'}"
    stages(f"run={tmp_path / 'on'}", f"data.root={root}", "first=1", "last=2", "ppo.total_steps=64", classifier)
    assert {line["stage"] for line in RunDir(tmp_path / "on").metrics()} == {1, 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "is trained already: add first=1, 2 or 3 to continue with it, or start from an architecture"),
        (["first=2", "classifier=small"], r"first=2 needs a trained classifier: classifier=DIR, for example .* agents\.train_stages"),
        (["first=3", "policy="], r"first=3 needs a trained policy: add policy=DIR, for example .* of python -m agents\.train_ppo"),
        (["rounds=1", "first=1", "last=2"], "rounds=1 need last=3, got last=2; leave last out, or set rounds=0"),
        (["first=3", "stages.finetune.epochs=0"], r"no stage from first=3 to last=3 has epochs; set those of stages\.\* above 0"),
        (["first=2", "last=1"], "first must not be greater than last, got first=2 and last=1"),
        (["first=2", "patch_size=32"], "patch_size=32 differs from that of classifier=.*, which was trained with patches of 24 pixels"),
    ],
)
def test_stages_that_lack_something_are_refused(tmp_path, root, trained, overrides, message):
    with pytest.raises(InputError, match=message):
        stages(f"run={tmp_path}", f"data.root={root}", *trained, *overrides)


@pytest.mark.slow
def test_clips_can_be_drawn_anew_in_every_epoch(tmp_path, root, trained, monkeypatch):
    built, build_clips = [], training_run.build_clips
    monkeypatch.setattr(training_run, "build_clips", lambda *what, **how: built.append(build_clips(*what, **how)) or built[-1])
    settings = ["data.views=resample", "env.bank=false", "env.baseline=1", "ppo.epochs=2", "seed=3"]
    stages(f"run={tmp_path}", f"data.root={root}", "first=2", *trained, *settings)
    assert [each.settings.seed for each in (built[0].train, built[0].val, built[0].test)] == [3, 0, 0]
    lines = RunDir(tmp_path).metrics()
    clips = len(folder(root, val=0.25).train)
    assert lines[-1]["stage"] == 3 and max(line.get("steps", 0) for line in lines) >= 2 * clips * 4
    assert "greedy_oracle" not in result(tmp_path)["policies"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.views=resample", "env.bank=true"], "bank=true stores the features of fixed clips, but these are resampled in every epoch"),
        (["env.video_div=2"], "video_div=2 needs a classifier with the head 'mean' or 'separate_mean', got 'gru'"),
        (["env.action=continuous"], "baseline='all' needs a grid"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(tmp_path, root, trained, overrides, message):
    with pytest.raises(InputError, match=message):
        stages(f"run={tmp_path}", f"data.root={root}", "first=2", trained[0], *overrides)


@needs("bfloat16")
def test_frozen_networks_can_run_in_another_precision(tmp_path, root, all_stages):
    kept = all_stages[0] / "checkpoints"
    parts = [f"classifier={kept / 'classifier'}", f"policy={kept / 'best'}", "data=folder", f"data.root={root}", "data.num_frames=4"]
    for precision in ("float32", "bfloat16"):
        out = f"out={tmp_path / precision}"
        evaluate.main(compose_config(Evaluate, "evaluate", [*parts, out, "device=cpu", f"precision={precision}"]))
    one, other = (result(tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert one["classifier"] == other["classifier"], "the weights are the same"
    plain, rounded = (found["policies"]["random"]["confidence"] for found in (one, other))
    assert plain != rounded == pytest.approx(plain, abs=0.05)


def test_a_precision_that_is_not_known_is_refused(tmp_path, root, trained):
    with pytest.raises(InputError, match=r"env\.precision must be 'float32' or .*, got 'float8'"):
        stages(f"run={tmp_path}", f"data.root={root}", "first=2", trained[0], "env.precision=float8")


@pytest.mark.parametrize(("name", "asked", "size"), [("small", 0, 20), ("small", 24, 24), ("paper", 0, 96)])
def test_a_new_classifier_has_the_patches_of_its_task(name, asked, size):
    assert builders.choose_classifier(name, demo("hard@v0"), torch.device("cpu"), patch_size=asked).patch_size == size
