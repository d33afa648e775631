"""The fixed benchmark tasks: ids, docstrings, classifiers, and commands."""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY, slow_except
from tiny_training import tiny_networks

import adafocus_env
from adafocus_env import ARGUMENTS, tasks
from adafocus_env.build import DEMO_FRAMES
from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import DEFAULT_TASK, RENDERER_VERSION, TASKS, TaskName, data_name, demo
from adafocus_env.env import AdaFocusEnv
from adafocus_env.settings import EnvSettings
from agents import evaluate, train_ppo
from agents.config.command import compose_config
from agents.config.settings import DataConfig, Evaluate, TrainPPO
from agents.pipeline import builders
from agents.policies.baselines import RULES
from agents.policies.networks import load_policy
from agents.prediction.checkpoints import load_checkpoints
from benchmarks import leaderboard, rebuild_bundled, task_scores
from benchmarks.leaderboard import Leaderboard
from benchmarks.rebuild_bundled import RebuildBundled
from benchmarks.task_scores import TaskScores
from classifiers import checkpoint
from classifiers.errors import InputError
from classifiers.model_zoo import BUNDLED

pytestmark = pytest.mark.usefixtures("in_process")
DOCS = Path(__file__).parents[2] / "docs"
BOARD = json.loads((DOCS / "leaderboard.json").read_text(encoding="utf-8"))
OF_TASKS = {name: arguments["task"] for name, arguments in ARGUMENTS.items() if "task" in arguments}
FIXED = {name: task for name, task in OF_TASKS.items() if not re.fullmatch(r"AdaFocus(Continuous|Skip|)-v0", name)}
HEADINGS = [
    "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Info", "Arguments",
    "Version History",
]  # fmt: skip
RULES_OF_THUMB = ("centre", *RULES)


def entry(name):
    module, cls = gym.spec(name).entry_point.split(":")
    assert module == tasks.__name__
    return getattr(tasks, cls)


@pytest.fixture
def few(monkeypatch):
    """Reduce the tasks to a dozen training videos, which are the first of the real ones."""
    for name, task in TASKS.items():
        monkeypatch.setitem(TASKS, name, dataclasses.replace(task, train_videos=12, val_videos=0, test_videos=4))


def test_every_id_has_both_apis_and_is_described():
    page = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("tasks.md", "tasks_v0.md"))
    for name in ARGUMENTS:
        spec = gym.spec(name)
        module, cls = spec.entry_point.split(":")
        assert spec.vector_entry_point.split(":")[1] == cls.removesuffix("Env") + "VectorEnv" and module.startswith("adafocus_env.")
        assert f"`{name}`" in page
    assert re.findall(r"^## (.*)$", inspect.getdoc(AdaFocusEnv), re.M) == HEADINGS


@pytest.mark.parametrize("task", task_scores.VERSION_1)
def test_a_task_needs_learning(task):
    """Rules do not find the target better than random patches, and a learner closes most of the gap, but only with memory."""
    top1 = {policy: np.mean(row["top1"]) for policy, row in BOARD[task].items()}
    assert top1["oracle"] - top1["random"] >= 0.6
    assert all(top1[rule] <= top1["random"] + 0.1 for rule in RULES) and top1["centre"] <= top1["random"] + 0.05
    anytime = {policy: np.mean(BOARD[task][policy]["top1_anytime"]) for policy in ("random", "oracle")}
    reached = min(BOARD[task]["ppo"]["top1_anytime"])
    assert reached >= anytime["random"] + 0.75 * (anytime["oracle"] - anytime["random"])
    if task == "track":
        assert max(BOARD[task]["memoryless expected_pg"]["top1"]) <= 0.25 and min(BOARD[task]["expected_pg"]["hit_rate"]) >= 0.85


def test_scores_are_normalized_between_random_and_oracle():
    for name in (name for name in ARGUMENTS if name.endswith("-v1")):
        scores = adafocus_env.reference_scores(name)
        assert scores.keys() == {"random", "oracle"}
        for metric in ("top1", "top1_anytime", "return"):
            values = [scores[policy][metric] for policy in ("random", "oracle")]
            assert [adafocus_env.normalized_score(name, value, metric) for value in values] == [0, 1]
            assert adafocus_env.normalized_score(name, np.mean(values), metric) == pytest.approx(0.5)
    track = adafocus_env.reference_scores("AdaFocusTrack-v1")
    assert track["oracle"]["top1"] == pytest.approx(BOARD["track"]["oracle"]["top1"][0])
    assert adafocus_env.reference_scores("AdaFocus-v1") == track, "it is the same problem"
    with pytest.raises(InputError, match=r"id='AdaFocusTrak-v1' is not known; did you mean 'AdaFocusTrack-v1'"):
        adafocus_env.normalized_score("AdaFocusTrak-v1", 0.5)
    with pytest.raises(InputError, match=r"metric='top2' is not known; did you mean 'top1'"):
        adafocus_env.normalized_score("AdaFocusTrack-v1", 0.5, "top2")


def test_the_page_of_the_leaderboard_is_that_of_its_numbers():
    assert (DOCS / "leaderboard.md").read_text(encoding="utf-8") == leaderboard.page(BOARD)
    assert set(BOARD) == set(task_scores.VERSION_1)


def test_shipped_classifiers_belong_to_their_tasks_and_are_small():
    """The fingerprints belong to the version of a task, since another classifier has other scores."""
    cards = {name: checkpoint.read_card(name) for name in BUNDLED}
    bundled = [task for task in TASKS if data_name(task) in BUNDLED]
    assert cards.keys() == {data_name(task) for task in bundled} and set(TASKS) - set(bundled) == {"easy@v0", "memory@v0"}
    for task in bundled:
        card = cards[data_name(task)]
        assert card.data == data_name(task) and card.architecture.patch_size == TASKS[task].patch_size
        assert card.command == f"python -m benchmarks.rebuild_bundled task={task}"
    assert {name: card.fingerprint[:12] for name, card in cards.items()} == {
        "demo": "5b0ccbe19d4b",
        "demo-mover": "2c0c498905c6",
        "demo-sparse": "53d1261ee744",
        "demo-normal@v0": "552a20f020ee",
        "demo-hard@v0": "37f199b7deaf",
        "demo-sparse@v0": "eb24b52d3a5d",
    }
    sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in BUNDLED.items()}
    assert sum(size for name, size in sizes.items() if name.endswith("@v0")) < 2e6 > sum(
        size for name, size in sizes.items() if not name.endswith("@v0")
    )


@pytest.mark.parametrize("task", task_scores.VERSION_1)
def test_bundled_policies_belong_to_their_classifiers(task):
    folder = BUNDLED[data_name(task)]
    card = json.loads((folder / "policy.json").read_text())
    assert card["classifier"] == checkpoint.read_card(data_name(task)).fingerprint
    policy = load_policy(data_name(task))
    assert policy.grid == 7 and not policy.skips and (folder / "policy.safetensors").stat().st_size < 1e5
    loaded, network, _ = load_checkpoints(Path(data_name(task)), None, torch.device("cpu"))
    assert loaded.clip_format.margin == 1 and network.card() == policy.card()


def parameters(name):
    """Return everything that the scores on an id depend on."""
    task = gym.spec(name).kwargs.get("task", DEFAULT_TASK)
    videos = {key: value for key, value in dataclasses.asdict(TASKS[task]).items() if key not in {"val_videos", "test_videos"}}
    return {
        "renderer": RENDERER_VERSION, "videos": videos, "frames": DEMO_FRAMES,
        "val": inspect.signature(demo).parameters["val"].default, "classifier": checkpoint.read_card(data_name(task)).fingerprint,
        **{key: getattr(EnvSettings(), key) for key in ("grid", "reward", "cost_weight")}, **gym.spec(name).kwargs,
    }  # fmt: skip


def test_the_parameters_of_a_version_are_fixed():
    """A change of these requires a new version of the id and new scores."""
    hashes = {
        name: hashlib.sha256(json.dumps(parameters(name), sort_keys=True).encode()).hexdigest()[:12]
        for name in ("AdaFocusTrack-v1", "AdaFocusMover-v1", "AdaFocusSparse-v1")
    }
    assert hashes == {
        "AdaFocusTrack-v1": "2d27730dcbcf",
        "AdaFocusMover-v1": "c5248d4a8688",
        "AdaFocusSparse-v1": "8afe7a3a87d8",
    }


@pytest.mark.parametrize(
    "name", slow_except(["AdaFocusMover-v1"], [name for name in FIXED if data_name(FIXED[name]) in BUNDLED])
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_id_plays_its_own_videos_with_its_own_classifier(few, name):
    task = FIXED[name]
    env = gym.make(name, device="cpu")
    single = env.unwrapped.dynamics
    assert type(env.unwrapped) is entry(name) and single.action.patch_size == TASKS[task].patch_size
    assert single.features.classifier.fingerprint() == checkpoint.read_card(data_name(task)).fingerprint
    observation, info = env.reset(seed=3)
    assert info["name"].startswith(f"demo-{TASKS[task].key}/train/")
    envs = gym.make_vec(name, num_envs=2, vectorization_mode="vector_entry_point", device="cpu")
    observations, infos = envs.reset(seed=3)
    action = env.action_space.sample()
    rewards = envs.step(np.stack([action, action]))[1]
    assert infos["name"][0] == info["name"] and np.array_equal(observations[0], observation)
    assert env.step(action)[1] == pytest.approx(rewards[0], abs=1e-6)


def test_the_classes_alone_are_their_tasks(few):
    assert tasks.AdaFocusMoverEnv.task == tasks.AdaFocusMoverVectorEnv.task == "mover" and tasks.AdaFocusHardV0Env.task == "hard@v0"
    env = tasks.AdaFocusMoverEnv(clips="test", device="cpu")
    assert isinstance(env, AdaFocusEnv) and env.dynamics.features.clips.names[0].startswith(f"demo-{TASKS['mover'].key}/test/")


MAKERS = [gym.make, partial(gym.make_vec, num_envs=2, vectorization_mode="vector_entry_point")]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_task_of_an_id_cannot_be_changed(few, make):
    """Gymnasium lets arguments override registered ones; here, an id would have the scores of another task."""
    message = r"task must be 'mover' for this id, got 'track'; leave task out, or make AdaFocus-v1 with task='track'"
    with pytest.raises(InputError, match=message):
        make("AdaFocusMover-v1", task="track")
    for name, task in FIXED.items():
        other = "track" if task != "track" else "mover"
        with pytest.raises(InputError, match=f"task must be '{task}' for this id, got '{other}'"):
            make(name, task=other)
    make("AdaFocusMover-v1", task="mover", device="cpu").close()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("AdaFocus-v0", "AdaFocusTrack-v1"), ("AdaFocusHard-v0", "AdaFocusTrack-v1"), ("AdaFocusSparse-v0", "AdaFocusSparse-v1"),
        ("AdaFocusMemory-v0", "AdaFocusMover-v1"),
    ],
)  # fmt: skip
def test_an_id_of_version_0_says_what_replaces_it(few, make, name, use, classifier, recwarn):
    make(name, classifier=classifier, grid=3).close()
    assert any(issubclass(each.category, DeprecationWarning) and f"use {use} (docs/tasks.md)" in str(each.message) for each in recwarn)


def test_version_0_without_a_bundled_classifier(few):
    message = r"classifier='auto': none is bundled for task='easy@v0'; train one with python -m benchmarks\.rebuild_bundled task=easy@v0"
    with pytest.raises(InputError, match=message), pytest.warns(DeprecationWarning):
        gym.make("AdaFocusEasy-v0")
    with pytest.raises(InputError, match="out is missing: no classifier is bundled for task=easy@v0; set out=DIR"):
        rebuild_bundled.main(RebuildBundled(task="easy@v0"))


def test_a_task_can_be_named_in_the_general_id(few):
    env = gym.make("AdaFocus-v1", task="sparse@v0", device="cpu").unwrapped
    assert env.reset(seed=0)[1]["name"].startswith(f"demo-{TASKS['sparse@v0'].key}/")
    with pytest.raises(InputError, match=r"task='spare' is not known; did you mean 'sparse'\?"):
        gym.make("AdaFocus-v1", task="spare")


def test_data_task_chooses_videos_classifier_and_name_of_the_run():
    config = compose_config(TrainPPO, "train_ppo", ["data.task=mover"])
    data = build_data(config.data)
    assert data.name == "demo-mover" and data.train[0].name.startswith(f"demo-{TASKS['mover'].key}/")
    classifier = builders.choose_classifier("auto", data, "cpu")
    assert classifier.fingerprint() == checkpoint.read_card("demo-mover").fingerprint
    assert (config.data.label, DataConfig().label) == ("demo-mover", "demo")


def test_a_task_that_there_is_not():
    with pytest.raises(InputError, match=r"data\.task must be 'track' or .*, got 'trakc'; did you mean 'track'"):
        compose_config(TrainPPO, "train_ppo", ["data.task=trakc"])
    assert set(get_args(TaskName)) == set(TASKS)


@pytest.mark.slow
def test_a_bundled_classifier_trains_on_its_training_task_and_is_measured_on_the_task(few, tmp_path):
    """The two tasks differ: the training videos of the classifier have no look-alikes."""
    settings = ["stages.glancer.epochs=1", "stages.focuser.epochs=1", "stages.random_patches.epochs=1", "device=cpu"]
    with tiny_networks(), contextlib.redirect_stdout(io.StringIO()):
        overrides = ["task=mover", f"out={tmp_path}", *settings]
        config = compose_config(RebuildBundled, "rebuild_bundled", overrides, config_package="benchmarks.configs")
        rebuild_bundled.main(config)
    card = checkpoint.read_card(tmp_path)
    assert card.metrics.keys() == {"val_top1_random", "val_top1_oracle"} and card.data == "demo-mover"
    assert card.command == "python -m benchmarks.rebuild_bundled task=mover"
    assert card.architecture == dataclasses.replace(TINY, patch_size=TASKS["mover"].patch_size)
    with pytest.raises(InputError, match=r"task must be 'track' or .*, got 'movr'; did you mean 'mover'\?"):
        compose_config(RebuildBundled, "rebuild_bundled", ["task=movr"], config_package="benchmarks.configs")


@pytest.fixture
def tiny_task(few, monkeypatch, classifier):
    """Reduce the task `mover` to a tiny classifier and four test clips."""
    monkeypatch.setattr(leaderboard, "CLIPS", 4)
    monkeypatch.setattr(task_scores, "CLIPS", 4)
    monkeypatch.setattr(leaderboard.checkpoint, "load", lambda name, device: classifier)
    leaderboard.features_of_task.cache_clear()
    yield
    leaderboard.features_of_task.cache_clear()


def run_quietly(command, settings):
    with contextlib.redirect_stdout(io.StringIO()):
        command.main(settings)


@pytest.mark.slow
def test_task_scores_measure_every_rule_and_every_id_of_the_task(tiny_task, tmp_path):
    out, scores = tmp_path / "board.json", tmp_path / "scores.json"
    out.write_text('{"track": {"random": {"top1": [0.1], "top1_anytime": [0.1]}, "oracle": {"top1": [0.9], "top1_anytime": [0.9]}}}')
    run_quietly(task_scores, TaskScores(out=str(out), scores=str(scores), tasks=["mover"], learners=[], device="cpu"))
    board, of_ids = json.loads(out.read_text()), json.loads(scores.read_text())
    assert {"random", "oracle", "greedy_oracle", "gaussian", *RULES_OF_THUMB} <= set(board["mover"]) and set(board) == {"track", "mover"}
    assert len(board["mover"]["random"]["top1"]) == 5 and len(board["mover"]["oracle"]["top1"]) == 1
    assert set(of_ids) == {"AdaFocusMover-v1", "AdaFocusMoverContinuous-v1", "AdaFocusMoverSkip-v1"}
    assert of_ids["AdaFocusMover-v1"]["oracle"]["top1"] == board["mover"]["oracle"]["top1"][0]
    page = out.with_suffix(".md").read_text()
    assert "## mover" in page and "| oracle | 1 | " in page and "| 90.0 |" in page


def test_an_agent_of_ones_own_joins_the_leaderboard(tiny_task, tmp_path, monkeypatch):
    out = tmp_path / "board.json"
    run_quietly(task_scores, TaskScores(out=str(out), scores=str(tmp_path / "s.json"), tasks=["mover"], learners=[], device="cpu"))
    (tmp_path / "my_agents.py").write_text(
        "from agents.policies.baselines import CentrePatch\n\n\ndef middle(features):\n    return CentrePatch(features.action)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run_quietly(leaderboard, Leaderboard(name="mine", task="mover", agent="my_agents.middle", out=str(out), device="cpu"))
    rows = json.loads(out.read_text())["mover"]
    assert rows["mine"] == rows["centre"] and "| mine | 1 | " in out.with_suffix(".md").read_text()


def test_the_command_line_of_the_leaderboard_takes_several_runs():
    given = ["name=mine", "runs=[runs/wide-0,'runs/sweep/seed=1']"]
    config = compose_config(Leaderboard, "leaderboard", given, config_package="benchmarks.configs")
    assert config.runs == ["runs/wide-0", "runs/sweep/seed=1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either runs, a list of run folders, or agent, a dotted path"),
        ({"runs": ["a"], "agent": "a.b"}, "give either runs, a list of run folders, or agent, a dotted path"),
        ({"runs": ["nowhere"]}, "runs: nowhere is not finished; start its command again to finish it"),
        ({"agent": "no_such.Agent"}, r"agent=no_such\.Agent cannot be imported: .*; give module\.attribute, with the module on PYTHONPATH"),
        ({"agent": "json.Agent"}, r"agent=json\.Agent cannot be imported: .*has no attribute 'Agent'"),
    ],
)
def test_what_cannot_join_the_leaderboard(tiny_task, given, message):
    with pytest.raises(InputError, match=message):
        run_quietly(leaderboard, Leaderboard(name="mine", **given))


@pytest.mark.slow
def test_train_ppo_and_evaluate_on_a_task(few, tmp_path):
    run = tmp_path / "run"
    settings = ["data.task=mover", "data.val=0.3", "device=cpu", f"run={run}", "env.num_envs=4", "env.grid=3", "ppo.total_steps=64"]
    with contextlib.redirect_stdout(io.StringIO()):
        train_ppo.main(compose_config(TrainPPO, "train_ppo", [*settings, "ppo.n_steps=8", "ppo.batch_size=16", "network.memory=false"]))
        evaluate.main(compose_config(Evaluate, "evaluate", ["data.task=mover", "grid=3", f"out={tmp_path / 'bundled'}", "device=cpu"]))
    result, bundled_alone = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "bundled"))
    assert result["data"] == "demo-mover" and result["classifier"] == checkpoint.read_card("demo-mover").fingerprint
    assert not json.loads((run / "checkpoints" / "best" / "policy.json").read_text())["network"]["memory"]
    learned = result["policies"].pop("learned")
    assert bundled_alone["policies"] == result["policies"] and 0 <= learned["top1"] <= 1
