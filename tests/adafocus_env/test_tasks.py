"""The fixed benchmark tasks: their ids, their docstrings, their classifiers, and the commands on them."""

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
from conftest import TINY, slow_except
from tiny_training import tiny_networks

from adafocus_env import tasks
from adafocus_env.build import DEMO_FRAMES
from adafocus_env.dataset_registry import TaskName, build_data
from adafocus_env.demo.renderer import RENDERER_VERSION
from adafocus_env.demo.videos import TASKS, data_name, demo
from adafocus_env.env import AdaFocusEnv
from adafocus_env.settings import EnvSettings
from agents import evaluate, train_ppo
from agents.config.command import compose_config
from agents.config.settings import DataConfig, Evaluate, TrainPPO
from agents.pipeline import builders
from benchmarks import rebuild_bundled, task_scores
from benchmarks.rebuild_bundled import RebuildBundled
from benchmarks.task_scores import IDS, TaskScores
from classifiers import checkpoint
from classifiers.errors import InputError
from classifiers.model_zoo import BUNDLED

DOCS = Path(__file__).parents[2] / "docs"
SCORES = json.loads((DOCS / "task_scores.json").read_text(encoding="utf-8"))
HEADINGS = [
    "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Info", "Arguments",
    "Version History",
]  # fmt: skip
ROW = re.compile(r"\| `(AdaFocus\w+-v0)` \| (random|oracle) \| ([\d.]+) % \| (−?[\d.]+) \|")


def entry(name):
    module, cls = gym.spec(name).entry_point.split(":")
    assert module == tasks.__name__
    return getattr(tasks, cls)


@pytest.fixture
def few(monkeypatch):
    """The tasks with a dozen training videos, which are not others than the first of the real ones."""
    for name, task in TASKS.items():
        monkeypatch.setitem(TASKS, name, dataclasses.replace(task, train_videos=12, val_videos=0, test_videos=4))


def test_every_id_has_both_apis_and_is_described():
    of_tasks = {name for name, spec in gym.registry.items() if str(spec.entry_point).startswith(tasks.__name__)}
    assert of_tasks == set(IDS)
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    for name in IDS:
        spec = gym.spec(name)
        assert spec.vector_entry_point == spec.entry_point.removesuffix("Env") + "VectorEnv"
        assert f"| `{name}`" in page or f", `{name}` |" in page
    assert re.findall(r"^## (.*)$", inspect.getdoc(AdaFocusEnv), re.M) == HEADINGS


@pytest.mark.parametrize("name", IDS)
def test_the_scores_of_the_page_are_those_measured(name):
    measured = {
        policy: (f"{100 * score['top1']:.1f}", f"{score['return']:.2f}".replace("-", "−")) for policy, score in SCORES[name].items()
    }
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    assert {policy: (top1, total) for id_, policy, top1, total in ROW.findall(page) if id_ == name} == measured


def test_the_tasks_are_worth_learning():
    top1 = {name: {policy: score["top1"] for policy, score in of.items()} for name, of in SCORES.items()}
    assert set(top1) == set(IDS)
    assert all(of["oracle"] - of["random"] >= 0.25 for of in top1.values())
    assert top1["AdaFocusHard-v0"]["random"] >= 0.15 and top1["AdaFocusHard-v0"]["oracle"] >= 0.85
    assert top1["AdaFocusMemory-v0"]["oracle"] >= 0.85


def test_shipped_classifiers_belong_to_their_tasks_and_are_small():
    """Their fingerprints are part of a task's version: another classifier gives other scores."""
    cards = {name: checkpoint.read_card(name) for name in BUNDLED}
    assert cards.keys() == {data_name(task) for task in TASKS}
    for task in TASKS:
        card = cards[data_name(task)]
        assert card.data == data_name(task) and card.architecture.patch_size == TASKS[task].patch_size
        assert card.command in {f"python -m benchmarks.rebuild_bundled task={task}", "python -m benchmarks.rebuild_bundled"}
    assert {name: card.fingerprint[:12] for name, card in cards.items()} == {
        "demo": "552a20f020ee",
        "demo-easy": "f9ef96ce51e9",
        "demo-hard": "37f199b7deaf",
        "demo-sparse": "eb24b52d3a5d",
        "demo-memory": "e694526fa68e",
    }
    size = sum(file.stat().st_size for folder in BUNDLED.values() for file in folder.iterdir())
    assert size < 3e6


def parameters(name):
    """Everything that the scores on an id depend on."""
    task = gym.spec(name).kwargs["task"]
    videos = {key: value for key, value in dataclasses.asdict(TASKS[task]).items() if key != "val_videos"}  # which no score depends on
    return {
        "renderer": RENDERER_VERSION, "videos": videos, "frames": DEMO_FRAMES,
        "val": inspect.signature(demo).parameters["val"].default, "classifier": checkpoint.read_card(data_name(task)).fingerprint,
        **{key: getattr(EnvSettings(), key) for key in ("grid", "reward", "cost_weight")}, **gym.spec(name).kwargs,
    }  # fmt: skip


def test_the_parameters_of_a_version_are_fixed():
    """Where they change, so does the version of the id, and its scores are measured anew."""
    hashes = {name: hashlib.sha256(json.dumps(parameters(name), sort_keys=True).encode()).hexdigest()[:12] for name in IDS}
    assert hashes == {
        "AdaFocusEasy-v0": "09c9dad4f91c",
        "AdaFocusEasyContinuous-v0": "ced9d7160341",
        "AdaFocusNormal-v0": "1942aaec1ecc",
        "AdaFocusHard-v0": "7e8437dd2b12",
        "AdaFocusSparse-v0": "248e5c88aeec",
        "AdaFocusMemory-v0": "6ec13a556a91",
    }


@pytest.mark.parametrize("name", slow_except(["AdaFocusHard-v0"], IDS))
def test_an_id_plays_its_own_videos_with_its_own_classifier(few, name):
    task = gym.spec(name).kwargs["task"]
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
    assert tasks.AdaFocusHardEnv.task == tasks.AdaFocusHardVectorEnv.task == "hard"
    env = tasks.AdaFocusHardEnv(clips="test", device="cpu")
    assert isinstance(env, AdaFocusEnv) and env.dynamics.features.clips.names[0].startswith(f"demo-{TASKS['hard'].key}/test/")


@pytest.mark.parametrize("make", [gym.make, partial(gym.make_vec, num_envs=2, vectorization_mode="vector_entry_point")])
def test_the_task_of_an_id_cannot_be_changed(few, make):
    """Gymnasium lets an argument override what is registered, and here it would put another task's scores under this one's name."""
    message = r"task must be 'hard' for this id, got 'easy'; leave task out, or make AdaFocus-v0 with task='easy'"
    with pytest.raises(InputError, match=message):
        make("AdaFocusHard-v0", task="easy")
    for name in IDS:
        other = "hard" if gym.spec(name).kwargs["task"] != "hard" else "easy"
        with pytest.raises(InputError, match=f"task must be '{gym.spec(name).kwargs['task']}' for this id, got '{other}'"):
            make(name, task=other)
    make("AdaFocusHard-v0", task="hard", device="cpu").close()


def test_a_task_can_be_named_in_the_general_id(few):
    env = gym.make("AdaFocus-v0", task="sparse", device="cpu").unwrapped
    assert env.reset(seed=0)[1]["name"].startswith(f"demo-{TASKS['sparse'].key}/")
    with pytest.raises(InputError, match=r"task='spare' is not known; did you mean 'sparse'\?"):
        gym.make("AdaFocus-v0", task="spare")


def test_data_task_chooses_videos_classifier_and_name_of_the_run():
    config = compose_config(TrainPPO, "train_ppo", ["data.task=hard"])
    data = build_data(config.data)
    assert data.name == "demo-hard" and data.train[0].name.startswith(f"demo-{TASKS['hard'].key}/")
    classifier = builders.choose_classifier("auto", data, "cpu")
    assert classifier.fingerprint() == checkpoint.read_card("demo-hard").fingerprint
    assert (config.data.label, DataConfig().label) == ("demo-hard", "demo")


def test_a_task_that_there_is_not():
    with pytest.raises(InputError, match=r"data\.task must be 'easy' or .*, got 'hrad'; did you mean 'hard'"):
        compose_config(TrainPPO, "train_ppo", ["data.task=hrad"])
    assert set(get_args(TaskName)) == set(TASKS)


@pytest.mark.slow
def test_a_bundled_classifier_trains_on_its_training_task_and_is_measured_on_the_task(few, tmp_path):
    """In memory the two differ: the classifier learns from videos without look-alikes."""
    settings = ["stages.glancer.epochs=1", "stages.focuser.epochs=1", "stages.random_patches.epochs=1", "device=cpu"]
    with tiny_networks(), contextlib.redirect_stdout(io.StringIO()):
        overrides = ["task=memory", f"out={tmp_path}", *settings]
        config = compose_config(RebuildBundled, "rebuild_bundled", overrides, config_package="benchmarks.configs")
        rebuild_bundled.main(config)
    card = checkpoint.read_card(tmp_path)
    assert card.metrics.keys() == {"val_top1_random", "val_top1_oracle"} and card.data == "demo-memory"
    assert card.command == "python -m benchmarks.rebuild_bundled task=memory"
    assert card.architecture == dataclasses.replace(TINY, patch_size=TASKS["memory"].patch_size)
    with pytest.raises(InputError, match=r"task must be 'easy' or .*, got 'memry'; did you mean 'memory'\?"):
        compose_config(RebuildBundled, "rebuild_bundled", ["task=memry"], config_package="benchmarks.configs")


def test_scores_are_measured_on_every_test_clip(few, tmp_path):
    out = tmp_path / "scores.json"
    out.write_text('{"other": 1}')
    with contextlib.redirect_stdout(io.StringIO()):
        task_scores.main(TaskScores(out=str(out), ids=["AdaFocusEasyContinuous-v0"], device="cpu"))
    scores = json.loads(out.read_text())
    assert scores["other"] == 1
    random, oracle = (scores["AdaFocusEasyContinuous-v0"][policy] for policy in ("random", "oracle"))
    assert oracle["top1"] in (0, 0.25, 0.5, 0.75, 1) and oracle["return"] > random["return"]
    with pytest.raises(InputError, match=r"ids='AdaFocusHard-v1' is not known; did you mean 'AdaFocusHard-v0'"):
        task_scores.main(TaskScores(ids=["AdaFocusHard-v1"]))


@pytest.mark.slow
def test_train_ppo_and_evaluate_on_a_task(few, tmp_path):
    run = tmp_path / "run"
    settings = ["data.task=memory", "data.val=0.3", "device=cpu", f"run={run}", "env.num_envs=4", "env.grid=3", "ppo.total_steps=64"]
    with contextlib.redirect_stdout(io.StringIO()):
        train_ppo.main(compose_config(TrainPPO, "train_ppo", [*settings, "ppo.n_steps=8", "ppo.batch_size=16", "network.memory=false"]))
        evaluate.main(compose_config(Evaluate, "evaluate", ["data.task=memory", "grid=3", f"out={tmp_path / 'bundled'}", "device=cpu"]))
    result, bundled_alone = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "bundled"))
    assert result["data"] == "demo-memory" and result["classifier"] == checkpoint.read_card("demo-memory").fingerprint
    assert not json.loads((run / "checkpoints" / "best" / "policy.json").read_text())["network"]["memory"]
    learned = result["policies"].pop("learned")
    assert bundled_alone["policies"] == result["policies"] and 0 <= learned["top1"] <= 1
