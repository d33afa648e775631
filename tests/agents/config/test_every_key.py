"""Every key of every command is honoured or refused by name; a key or a rule without an entry here fails.

For each key a table tells who reads it: a function, and the expression in it. The function must be in a module that the command can
reach by its imports, and the key must pass the command's rules in a state that the table names. The rules have an example each.
"""

import ast
import importlib
import inspect
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agents import check_dataset as check_data
from agents import fill_feature_bank as fill_bank
from agents import import_checkpoint as import_released
from agents import list_runs as runs
from agents.config import arguments
from agents.config.keys import field_types
from agents.config.settings import BenchmarkAlgorithms, Evaluate, RebuildBundled, SkipCurve, Train, TrainPPO, TrainStages
from agents.config.unread import check_read
from agents.config.unread_keys import RULES, STAGES
from benchmarks import published_flops as published_cost
from benchmarks import task_scores
from classifiers.errors import InputError

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Command:
    module: str
    schema: type
    rules: tuple = ()

    def all_keys(self) -> list[str]:
        """All that can be typed: no groups, which are set by the keys below them."""
        if self.module not in SMALL:
            types = field_types(self.schema)
            return [key for key in types if not any(other.startswith(f"{key}.") for other in types)]
        return [arguments._key(field) for field in fields(self.schema)]

    def config(self, state: str = "") -> Any:
        """The schema's defaults, with what ``state`` sets, as ``key=value`` separated by blanks."""
        needed = [field.name for field in fields(self.schema) if field.name in ("classifier", "out", "data", "file")]
        config = self.schema() if self.module not in SMALL else self.schema(**dict.fromkeys(needed, "x"))
        for each in state.split():
            key, _, value = each.partition("=")
            set_key(config, key, ast.literal_eval(value) if value[:1] in "-0123456789[{TFN" else value)
        return config


SMALL = ("agents.fill_feature_bank", "agents.check_dataset", "agents.import_checkpoint", "benchmarks.published_flops")

COMMANDS = {
    command.module: command
    for command in (
        *(
            Command(name, schema, RULES.get(schema, ()))
            for name, schema in (
                ("agents.train_ppo", TrainPPO), ("agents.train", Train), ("agents.train_stages", TrainStages),
                ("agents.evaluate", Evaluate), ("agents.list_runs", runs.Runs),
                ("benchmarks.rebuild_bundled", RebuildBundled), ("benchmarks.compare_algorithms", BenchmarkAlgorithms),
                ("benchmarks.skipping_study", SkipCurve), ("benchmarks.task_scores", task_scores.TaskScores),
            )
        ),
        Command("agents.fill_feature_bank", fill_bank.Arguments, fill_bank.UNREAD),
        Command("agents.check_dataset", check_data.Arguments, check_data.UNREAD),
        Command("agents.import_checkpoint", import_released.Arguments),
        Command("benchmarks.published_flops", published_cost.Arguments),
    )
}  # fmt: skip


def field_of(config: Any, key: str) -> tuple[Any, str]:
    """The object that holds a key, and the name of its field there."""
    lookup = next((f.name for f in fields(config) if arguments._key(f) == key), None)
    if lookup is not None:
        return config, lookup
    *groups, name = key.split(".")
    for group in groups:
        config = getattr(config, group)
    return config, name


def set_key(config: Any, key: str, value: Any) -> None:
    owner, name = field_of(config, key)
    object.__setattr__(owner, name, value)  # some are frozen


# Who reads what: key → (a value that is not the default, "module:function expression", the state in which it has an effect)

POLICY = "agents.rl.ppo"
DATA = {
    "data.name": ("folder", "agents.pipeline.builders:build_data config.name"),
    "data.task": ("hard", "agents.pipeline.builders: demo(config.task"),
    "data.root": ("DIR", "agents.pipeline.builders:_root config.root", "data.name=folder"),
    "data.source": ("videos", "agents.pipeline.builders: source=config.source", "data.name=actnet"),
    "data.val": (0.2, "agents.pipeline.builders: val=config.val"),
    "data.test": (0.3, "agents.pipeline.builders: test=config.test", "data.name=folder"),
    "data.num_frames": (4, "agents.pipeline.builders:build_split config.num_frames"),
    "data.glance_frames": (4, "agents.pipeline.builders:build_split config.glance_frames"),
    "data.views": (2, "agents.pipeline.builders:build_split config.views"),
    "data.sampling": ("released", "agents.pipeline.builders:build_split config.sampling"),
    "data.workers": (1, "agents.pipeline.builders:build_split config.workers"),
}
BANK = {
    "bank": (False, "agents.pipeline.builders:features_of env.bank,"),
    "bank_dtype": ("float16", "agents.pipeline.builders:features_of env.bank_dtype"),
    "bank_gib": (1.0, "agents.pipeline.builders:features_of env.bank_gib"),
    "precision": ("bfloat16", "agents.pipeline.builders:inference_classifier env.precision"),
    "compile": (True, "agents.pipeline.builders:inference_classifier env.compile"),
}
SUPERVISED = {
    "epochs": (3, "agents.supervised.epochs:train_epochs config.epochs"),
    "batch_size": (4, "agents.supervised.epochs:_Training.__init__ config.batch_size"),
    "optimizer": ("sgd", "agents.supervised.epochs:_Training.__init__ config.optimizer"),
    "momentum": (0.5, "agents.supervised.optimizers: momentum=config.momentum", "stages.{stage}.optimizer=sgd"),
    "schedule": ("cosine", "agents.supervised.epochs:_Training.__init__ config.schedule"),
    "milestones": ([2], "agents.supervised.optimizers: config.milestones", "stages.{stage}.schedule=step"),
    "weight_decay": (0.1, "agents.supervised.optimizers: config.weight_decay"),
    "dropout": (0.3, "agents.supervised.stage_model:StageModel._set_dropout self._config.dropout"),
    "accumulate": (2, "agents.supervised.epochs:_Training._train_batch self._config.accumulate"),
    "precision": ("bfloat16", "agents.supervised.stage_model:StageModel.forward self._config.precision"),
    "channels_last": (True, "agents.supervised.stage_model:StageModel.epoch self._config.channels_last"),
    "compile": (True, "agents.supervised.stage_model:StageModel.epoch self._config.compile"),
}
READERS = {
    "glancer": "agents.supervised.warm_up:warm_up", "focuser": "agents.supervised.warm_up:warm_up",
    "random_patches": "agents.supervised.random_patches:train_on_random_patches", "finetune": "agents.supervised.finetune:finetune",
}  # fmt: skip


def stage_table(trained_state: str, stages=STAGES) -> dict[str, tuple]:
    """The keys of supervised stages that are read somewhere."""
    table = {}
    for stage in stages:
        own = {"learning_rate": (0.5, f"{READERS[stage]} config.learning_rate")}
        if stage in ("glancer", "focuser"):
            own["frames"] = (3, "agents.supervised.warm_up:warm_up config.frames")
        else:
            own["head_learning_rate"] = (0.5, f"{READERS[stage]} config.head_learning_rate")
        for name, (value, reader, *state) in {**SUPERVISED, **own}.items():
            table[f"stages.{stage}.{name}"] = (value, reader, " ".join([trained_state, *state]).format(stage=stage).strip())
    return table


TRAINING = {
    "run": ("DIR", "agents.train_ppo:main config.run"),
    "seed": (1, "agents.pipeline.training_run:TrainingRun.train_policy config.seed"),
    "device": ("cpu", "agents.pipeline.training_run:TrainingRun.__init__ config.device"),
    "force": (True, "agents.pipeline.training_run:TrainingRun.open config.force"),
    "trust": (True, "agents.pipeline.training_run:TrainingRun.train_policy config.trust"),
    "plugin": ("json", 'agents.config.launch:run_main getattr(config, "plugin"'),
    "log": ([], "agents.pipeline.training_run:TrainingRun.open config.log"),
    **DATA,
    "classifier": ("small", "agents.pipeline.training_run:TrainingRun.clips config.classifier"),
    "patch_size": (32, "agents.pipeline.training_run:TrainingRun.clips config.patch_size"),
    **{
        f"architecture.{name}": (value, "agents.pipeline.builders:choose_classifier asdict(changes", "classifier=small")
        for name, value in {
            "glancer": "torchvision/resnet18", "focuser": "torchvision/resnet18", "head": "linear", "hidden_size": 8, "dropout": 0.3,
            "size": 128, "glance_size": 64, "shift": 0.125, "weights": "default",
        }.items()
    },
    "architecture.shift_place": ("block", "agents.pipeline.builders:choose_classifier asdict(changes", "classifier=paper_tsm"),
    "policy": ("DIR", "agents.pipeline.training_run:TrainingRun.given_policy self.config.policy"),
    **{
        f"env.{name}": (value, f"{POLICY}:make_environment config.{name}", *state)
        for name, (value, *state) in {
            "num_envs": (3,), "action": ("skip",), "grid": (5,), "video_div": (2,), "reward": ("previous",), "baseline": (2,),
            "cost_weight": (0.1,), "skipped": ("none", "env.action=skip"),
        }.items()
    },
    "env.target_keep": (0.4, "agents.rl.lagrangian:pid_lagrangian env.target_keep", "env.action=skip"),
    "env.target_gflops": (0.4, "agents.rl.lagrangian:pid_lagrangian env.target_gflops", "env.action=skip"),
    "env.cost_weight_rate": (0.1, "agents.rl.lagrangian:pid_lagrangian env.cost_weight_rate", "env.action=skip env.target_keep=0.4"),
    **{f"env.{name}": entry for name, entry in BANK.items()},
    "ppo.total_steps": (5, f"{POLICY}:train_policy ppo.total_steps"),
    "ppo.epochs": (5, f"{POLICY}:in_steps config.epochs"),
    **{
        f"ppo.{name}": (value, f"{POLICY}:new_ppo config.{name}")
        for name, value in {
            "n_steps": 8, "batch_size": 64, "n_epochs": 2, "learning_rate": 0.1, "gamma": 0.1, "gae_lambda": 0.1, "clip_range": 0.1,
            "ent_coef": 0.1, "vf_coef": 0.1, "max_grad_norm": 0.1, "adam_eps": 0.1, "ortho_init": False, "normalize_advantage": False,
            "normalize_returns": True, "batch_statistics": True,
        }.items()
    },
    "ppo.validate_every": (2, f"{POLICY}:Recorder._update_ended self._config.validate_every"),
    "ppo.save_every": (2, f"{POLICY}:Recorder._update_ended self._config.save_every"),
    **{
        f"network.{name}": (value, f"{POLICY}:new_network config.{name}")
        for name, value in {"channels": 4, "features": 4, "hidden": 4, "batch_norm": True, "memory": False}.items()
    },
    "network.std": (0.1, f"{POLICY}:train_policy network.std", "env.action=continuous"),
}  # fmt: skip
ALGORITHM = {
    "run": ("DIR", "agents.train:main config.run"),
    "algo.name": ("dqn", "agents.rl.algorithms:new_model config.name"),
    "algo.total_steps": (5, "agents.rl.trainer:_learn algo.total_steps", "algo.name=dqn"),
    "algo.observation": ("map", "agents.rl.trainer:train_model algo.observation"),
    "algo.settings": ({"gamma": 0.1}, "agents.rl.algorithms:new_model config.settings"),
    "algo.validate_every": (5, "agents.rl.trainer:Recorder._on_training_start self._algo.validate_every", "algo.name=dqn"),
    "algo.save_every": (5, "agents.rl.trainer:Recorder._on_training_start self._algo.save_every", "algo.name=dqn"),
}
JOINT = {
    "run": ("DIR", "agents.train_stages:main config.run"),
    "first": (1, "agents.pipeline.stages:single_pass config.first"),
    "last": (1, "agents.pipeline.stages:single_pass config.last"),
    "rounds": (1, "agents.pipeline.driver:StageDriver.__init__ config.rounds"),
    "joint.patience": (2, "agents.pipeline.driver:StageDriver.run self._config.joint.patience", "rounds=3"),
    **{
        f"joint.{name}": (5, f"agents.pipeline.stages:joint_round joint.{name}", "rounds=1")
        for name in ("total_steps", "policy_learning_rate", "epochs", "learning_rate", "head_learning_rate")
    },
}
MEASURED = {
    "run": ("DIR", "agents.pipeline.evaluate_saved:_of_run config.run"),
    "classifier": ("demo", "agents.pipeline.evaluate_saved:_classifier config.classifier"),
    "policy": ("DIR", "agents.pipeline.evaluate_saved:_policy config.policy"),
    "trust": (True, "agents.pipeline.evaluate_saved:_policy config.trust"),
    "plugin": TRAINING["plugin"],
    **{key: entry for key, entry in DATA.items() if key not in ("data.views", "data.sampling")},
    "data.val": (0.2, "agents.pipeline.builders: val=config.val", "keep=0.5"),
    "grid": (5, "agents.pipeline.evaluate_saved:evaluate_saved config.grid"),
    "video_div": (2, "agents.pipeline.evaluate_saved:evaluate_saved config.video_div"),
    "budget": (0.1, "agents.pipeline.evaluate_saved:_set_threshold config.budget"),
    "keep": (0.5, "agents.pipeline.evaluate_saved:_set_threshold config.keep"),
    **BANK,
    "skipped": ("none", "agents.pipeline.evaluate_saved:evaluate_saved skipped=env.skipped"),
    "seed": (1, "agents.pipeline.evaluate_saved:evaluate_saved config.seed"),
    "device": ("cpu", "agents.pipeline.evaluate_saved:evaluate_saved config.device"),
    "out": ("DIR", "agents.pipeline.evaluate_saved:evaluate_saved config.out"),
}
SMALL_DATA = {
    "data": ("actnet", "{module}:_command given.data"),
    "data.root": ("DIR", "{module}:_root given.root", "data=folder"),
    "data.source": ("videos", "{module}:_published source=given.source", "data=actnet"),
    "data.num_frames": (4, "{module}:_num_frames given.num_frames"),
    "workers": (1, "{module}:_demo given.workers"),
}
HONOURED: dict[str, dict[str, tuple]] = {
    "agents.train_ppo": {**TRAINING, **stage_table("classifier=small", STAGES[:3])},
    "agents.train": {**TRAINING, **stage_table("classifier=small", STAGES[:3]), **ALGORITHM},
    "agents.train_stages": {**TRAINING, **stage_table("classifier=small"), **JOINT},
    "agents.evaluate": MEASURED,
    "benchmarks.rebuild_bundled": {
        **{
            key: (value, f"benchmarks.rebuild_bundled:main config.{key}")
            for key, value in {"task": "hard", "out": "DIR", "seed": 1, "device": "cpu", "workers": 1}.items()
        },
        **stage_table("", STAGES[:3]),
    },
    "benchmarks.compare_algorithms": {
        "id": ("AdaFocus-v0", "benchmarks.compare_algorithms:_run config.id"),
        "algos": (["ppo"], "benchmarks.compare_algorithms:algorithms_of config.algos"),
        "seeds": ([1], "benchmarks.compare_algorithms:check_runs config.seeds"),
        "total_steps": (5, "benchmarks.compare_algorithms:_run config.total_steps"),
        "overrides": (["env.grid=3"], "benchmarks.compare_algorithms:_run config.overrides"),
        "run": ("DIR", "benchmarks.compare_algorithms:main config.run"),
        "device": ("cpu", "benchmarks.compare_algorithms:_run config.device"),
    },
    "benchmarks.skipping_study": {
        "tasks": (["easy"], "benchmarks.skipping_study:check_runs config.tasks"),
        "seeds": ([1], "benchmarks.skipping_study:check_runs config.seeds"),
        "keeps": ([0.5], "benchmarks.skipping_study:measure config.keeps"),
        "overrides": (["env.grid=3"], "benchmarks.skipping_study:_run config.overrides"),
        "run": ("DIR", "benchmarks.skipping_study:main config.run"),
        "device": ("cpu", "benchmarks.skipping_study:_run config.device"),
    },
    "agents.list_runs": {
        key: (value, f"agents.list_runs:main config.{key}") for key, value in {"root": "DIR", "sort": "date", "json": True}.items()
    },
    "benchmarks.task_scores": {
        key: (value, f"benchmarks.task_scores:main config.{key}") for key, value in {"out": "F", "ids": [], "device": "cpu"}.items()
    },
    "agents.fill_feature_bank": {
        **SMALL_DATA,
        "classifier": ("DIR", "agents.fill_feature_bank:_command given.classifier"),
        "out": ("DIR", "agents.fill_feature_bank:_bank given.out"),
        "data.val": ("0.3", "agents.fill_feature_bank:_folder given.val"),
        "data.test": ("0.3", "agents.fill_feature_bank:_folder given.test", "data=folder"),
        "data.glance_frames": (4, "agents.fill_feature_bank:_glance_frames given.glance_frames"),
        "data.views": (2, "agents.fill_feature_bank:_bank views=given.views"),
        "data.sampling": ("released", "agents.fill_feature_bank:_bank sampling=given.sampling"),
        "split": ("test", "agents.fill_feature_bank:_command given.split"),
        "action": ("continuous", "agents.fill_feature_bank:_bank given.action"),
        "grid": (5, "agents.fill_feature_bank:_bank given.grid"),
        "video_div": (2, "agents.fill_feature_bank:_bank given.video_div"),
        "bank_dtype": ("float16", "agents.fill_feature_bank:_bank dtype=given.bank_dtype"),
        "shard": ("0/2", "agents.fill_feature_bank:_command given.shard"),
        "device": ("cpu", "agents.fill_feature_bank:_command given.device"),
        "plugin": ("json", 'agents.config.arguments:run_command getattr(given, "plugin"'),
    },
    "agents.check_dataset": {
        **SMALL_DATA,
        "workers": (1, "agents.check_dataset:_command workers=given.workers"),
        "out": ("FILE", "agents.check_dataset:_command given.out"),
    },
    "agents.import_checkpoint": {
        key: (value, f"agents.import_checkpoint:import_released given.{key}")
        for key, value in {"file": "F", "out": "DIR", "patch_size": 128, "classes": "F", "family": "ActivityNet"}.items()
    },
    "benchmarks.published_flops": {},
}
STAGE_0_HEAD = {f"stages.{stage}.head_learning_rate" for stage in ("glancer", "focuser")}
LATER_FRAMES = {f"stages.{stage}.frames" for stage in ("random_patches", "finetune")}
FINETUNE = {key for key in COMMANDS["agents.train_ppo"].all_keys() if key.startswith("stages.finetune.")}
REFUSED = {
    "agents.train_ppo": STAGE_0_HEAD | LATER_FRAMES | FINETUNE,
    "agents.train": STAGE_0_HEAD | LATER_FRAMES | FINETUNE,
    "agents.train_stages": STAGE_0_HEAD | LATER_FRAMES,
    "benchmarks.rebuild_bundled": STAGE_0_HEAD | LATER_FRAMES | FINETUNE,
    "agents.evaluate": {"data.views", "data.sampling"},
}
"""Keys that come with a group and are never read by the command: they are refused in every state."""


@pytest.mark.parametrize("module", COMMANDS)
def test_the_table_has_every_key_of_the_command(module):
    honoured, refused = set(HONOURED[module]), REFUSED.get(module, set())
    assert honoured | refused == set(COMMANDS[module].all_keys()) and not honoured & refused


@pytest.mark.parametrize("module", COMMANDS)
def test_every_key_is_read_by_what_the_command_can_reach_or_refused(module):
    command, reachable = COMMANDS[module], imported_by(module)
    for key, (value, reader, *state) in HONOURED[module].items():
        place, _, expression = reader.format(module=module).partition(" ")
        where, _, function = place.partition(":")
        assert where in reachable, f"{key}: {module} does not import {where}"
        assert expression in source(where, function), f"{key}: {place} does not read {expression}"
        config = command.config(*state)
        owner, name = field_of(config, key)
        assert getattr(owner, name) != value or key in " ".join(state), f"{key}={value} is what it is anyway"
        set_key(config, key, value)
        check_read(config, {key: f"{key}={value}"}, command.rules)
    for key in REFUSED.get(module, ()):
        for state in ("", "classifier=small") if hasattr(command.schema(), "classifier") else ("",):
            with pytest.raises(InputError, match=rf"^{key}=1 has no effect: .*leave it out|^{key}=1 has no effect: .*; set "):
                check_read(command.config(state), {key: f"{key}=1"}, command.rules)


def source(module: str, function: str) -> str:
    found = importlib.import_module(module)
    for name in filter(None, function.split(".")):
        found = inspect.getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    return inspect.getsource(found.__func__ if isinstance(found, classmethod) else found)


@cache
def imported_by(module: str) -> frozenset[str]:
    """The project's modules that a module imports anywhere, and those that these import."""
    found, left = set(), [module]
    while left:
        if (each := left.pop()) in found or each.split(".")[0] not in ("classifiers", "adafocus_env", "agents", "benchmarks"):
            continue
        found.add(each)
        left += imports(each)
    return frozenset(found)


@cache
def imports(module: str) -> list[str]:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    names = []
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [node.module, *(name for name in below if (ROOT / f"{name.replace('.', '/')}.py").is_file())]
    return names


# What is refused: command, key, state, message. Every rule has an example.


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a test/ subfolder, one without, and one that stands for a trained classifier."""
    root = tmp_path_factory.mktemp("places")
    for name in ("split/test", "plain/cat", "trained"):
        (root / name).mkdir(parents=True)
    return root


PPO, ALGO, ALL, SEEN = "agents.train_ppo", "agents.train", "agents.train_stages", "agents.evaluate"
BANKS, CHECK, SHIP = "agents.fill_feature_bank", "agents.check_dataset", "benchmarks.rebuild_bundled"
UNREAD = [
    (PPO, "data.root", "", r"the data set is demo, .*; add data=folder for your own videos, or a published data set: data=actnet, "),
    (PPO, "data.source", "data.name=folder", r"only published data sets \(data=actnet, .*\) have two sources; leave it out"),
    (PPO, "data.task", "data.name=folder", "it is for the demo videos; leave it out, or add data=demo"),
    (PPO, "data.test", "", "the data set has a test split; leave it out"),
    (PPO, "data.test", "data.name=folder data.root={places}/split", "the folder has a train/ or test/ subfolder"),
    (PPO, "env.grid", "env.action=continuous_skip", "env.action=continuous_skip has no cells; leave it out, or set env.action=grid"),
    (PPO, "env.baseline", "env.reward=confidence", "env.reward=confidence compares with no random patches; leave it out"),
    (PPO, "env.cost_weight_rate", "", "the price stays as it is; set env.target_keep or env.target_gflops"),
    (PPO, "env.skipped", "", "env.action=grid skips no frame; set env.action=skip"),
    (PPO, "env.bank_dtype", "env.bank=False", "with env.bank=false features are kept nowhere; leave it out, or set env.bank=true"),
    (PPO, "network.hidden", "policy=DIR", "policy=DIR has its network already; leave one of them out"),
    (PPO, "network.std", "env.action=skip", "env.action=skip has cells, and the standard deviation is that of places"),
    (PPO, "ppo.total_steps", "ppo.epochs=3", "ppo.epochs=3 counts instead; set that, or ppo.epochs=null"),
    (PPO, "ppo.validate_every", "data.val=0", "data.val=0 leaves nothing to validate on"),
    (PPO, "architecture.shift_place", "classifier=small", "there is no temporal shift; set architecture.shift"),
    (PPO, "architecture.hidden_size", "classifier=paper_tsm", "the head has no hidden state; leave it out, or set architecture.head=gru"),
    (PPO, "stages.finetune.epochs", "classifier=small", r"stage 3 is that of python -m agents\.train_stages"),
    (PPO, "stages.glancer.epochs", "", "classifier=auto is trained already; leave it out, or start from an architecture"),
    (PPO, "stages.random_patches.epochs", "classifier={places}/trained", "trained is trained already"),
    *(
        (ALL, f"stages.{stage}.{key}", f"classifier=small stages.{stage}.{state}", message)
        for stage in STAGES
        for key, state, message in (
            ("batch_size", "epochs=0", rf"with stages\.{stage}\.epochs=0 nothing is trained"),
            ("momentum", "optimizer=adamw", rf"adamw has its own; set stages\.{stage}\.optimizer=sgd"),
        )
    ),
    *(
        (ALL, f"stages.{stage}.{key}", f"classifier={classifier}", message)
        for stage in ("glancer", "focuser")
        for key, classifier, message in (
            ("head_learning_rate", "small", rf"the head is not trained in stage 0; set stages\.{stage}\.learning_rate"),
            ("frames", "paper_tsm", "backbones with temporal shift see all frames of a clip; leave it out"),
        )
    ),
    (ALL, "stages.random_patches.frames", "", r"it is for stage 0 alone \(glancer, focuser\)"),
    (ALL, "stages.finetune.frames", "", r"it is for stage 0 alone \(glancer, focuser\)"),
    (ALGO, "ppo.gamma", "algo.name=dqn", r"algo=dqn .* learns by other keys; set algo\.total_steps, algo\.settings"),
    (ALGO, "ppo", "algo.observation=map", r"algo=ppo algo\.observation=map learns by other keys"),
    (ALGO, "algo.total_steps", "", "with PPO, set the keys of ppo"),
    (ALGO, "algo.save_every", "algo.name=ars", "algo=ars has no state to save between its updates; leave it out"),
    *(
        (ALGO, f"network.{key}", f"algo.name={name} algo.observation={seen}", f"the policy of algo={name} algo.observation={seen} lacks it")
        for key, name, seen in (
            ("channels", "ars", "reference"), ("features", "dqn", "map"), ("hidden", "recurrent_ppo", "reference"),
            ("batch_norm", "dqn", "reference"), ("memory", "recurrent_ppo", "reference"), ("std", "dqn", "reference"),
        )
    ),
    (ALL, "stages", "first=2 last=2", "stage 2 alone is run"),
    (ALL, "stages.glancer.epochs", "first=1", r"stage 0 is not run \(first=1\); leave it out, or set first=0"),
    (ALL, "stages.random_patches.epochs", "first=2", r"stage 1 is not run \(first=2 last=3\)"),
    (ALL, "stages.finetune.epochs", "last=2", r"stage 3 is not run \(last=2\); leave it out, or set last=3"),
    (ALL, "ppo.gamma", "first=3", r"stage 2 is not run \(first=3 last=3\)"),
    (ALL, "env.num_envs", "last=1", r"stage 2 is not run \(first=0 last=1\)"),
    (ALL, "policy", "last=1", "no stage from 0 to last=1 looks with a policy"),
    (ALL, "joint.epochs", "", "there are no joint rounds; set rounds, or leave it out"),
    (ALL, "joint.patience", "rounds=1", "it ends several rounds by their results on the validation split"),
    (ALL, "ppo.total_steps", "first=3 rounds=1 joint.total_steps=5", r"alone \(first=3\), by joint\.total_steps; set that"),
    (ALL, "ppo.epochs", "first=3 rounds=1 joint.total_steps=5", r"alone \(first=3\), by joint\.total_steps; set that"),
    (ALL, "ppo.learning_rate", "first=3 rounds=1 joint.policy_learning_rate=0.1", r"by joint\.policy_learning_rate; set that"),
    (SEEN, "classifier", "run=DIR", "run=DIR has a classifier and a policy; leave it out, or leave run out and give both"),
    (SEEN, "policy", "run=DIR", "run=DIR has a classifier and a policy"),
    (SEEN, "grid", "run=DIR", "run=DIR was made with another one or the same; leave it out, or give classifier and policy instead of run"),
    (SEEN, "data.root", "", "the data set is demo"),
    (SEEN, "data.source", "", "only published data sets"),
    (SEEN, "data.task", "data.name=folder", "it is for the demo videos"),
    (SEEN, "data.test", "", "the data set has a test split"),
    (SEEN, "data.test", "data.name=folder data.root={places}/split", "the folder has a train/ or test/ subfolder"),
    (SEEN, "data.views", "", "it is about training clips, and none is read; leave it out"),
    (SEEN, "data.val", "", "nothing is chosen on the validation split without keep or budget; leave it out"),
    (SEEN, "bank_gib", "bank=False", "with bank=false features are kept nowhere; leave it out, or set bank=true"),
    (SHIP, "stages.finetune.epochs", "", "a bundled classifier is made by stages 0 and 1; leave it out"),
    (BANKS, "data.root", "data=demo", "the data set is demo, .*; add data=folder"),
    (BANKS, "data.source", "data=folder", "only published data sets"),
    (BANKS, "data.test", "data=actnet", "the data set has a test split"),
    (BANKS, "data.test", "data=folder data.root={places}/split", "the folder has a train/ or test/ subfolder"),
    (BANKS, "data.val", "split=test", "split=test has none of the training videos; leave it out"),
    (BANKS, "data.sampling", "split=val", "it is about training clips, and split=val has none; leave it out"),
    (BANKS, "grid", "action=continuous", "action=continuous has no cells; leave it out"),
    (CHECK, "data.root", "data=demo", "the data set is demo, .*; add data=folder"),
    (CHECK, "data.source", "data=demo", "only published data sets"),
]  # fmt: skip
NOT_THERE = {"data.task": (BANKS, CHECK), "data.test": (CHECK,)}
"""Rules of data sets about keys that a small command does not have."""


@pytest.mark.parametrize(("module", "key", "state", "message"), UNREAD, ids=[f"{module}-{key}-{state}" for module, key, state, _ in UNREAD])
def test_a_key_without_an_effect_is_refused_by_name(places, module, key, state, message):
    command = COMMANDS[module]
    with pytest.raises(InputError, match=rf"^{key}=1 has no effect: .*{message}"):
        check_read(command.config(state.format(places=places)), {key: f"{key}=1"}, command.rules)


def test_every_rule_has_an_example(places):
    used = set()
    for module, key, state, _ in UNREAD:
        config = COMMANDS[module].config(state.format(places=places))
        used.add(id(next(rule for rule in COMMANDS[module].rules if rule.names(key) and rule.when(config))))
    for command in COMMANDS.values():
        missing = [rule.keys for rule in command.rules if id(rule) not in used and command.module not in NOT_THERE.get(rule.keys, ())]
        assert not missing, f"{command.module}: {missing}"


def test_a_plain_folder_is_split_by_data_test(places):
    config = COMMANDS[PPO].config(f"data.name=folder data.root={places}/plain")
    check_read(config, {"data.test": "data.test=0.3"}, COMMANDS[PPO].rules)


def test_defaults_and_presets_may_have_no_effect(places):
    config = COMMANDS[PPO].config("env.bank=False env.bank_dtype=float16 ppo.epochs=3 ppo.total_steps=5")
    check_read(config, {"env.bank": "env.bank=false", "ppo.epochs": "ppo.epochs=3"}, COMMANDS[PPO].rules)


def test_stage_3_of_joint_rounds_alone_is_trained():
    config = COMMANDS[ALL].config("rounds=1 joint.epochs=2 stages.finetune.epochs=0")
    check_read(config, {"stages.finetune.batch_size": "stages.finetune.batch_size=4"}, COMMANDS[ALL].rules)


def test_all_keys_without_an_effect_are_named_at_once():
    typed = {"data.root": "data.root=DIR", "env.grid": "env.grid=5", "env.cost_weight_rate": "env.cost_weight_rate=1"}
    with pytest.raises(InputError, match=r"^data\.root=DIR has no effect: [^\n]*\nenv\.cost_weight_rate=1 has no effect: [^\n]*$"):
        check_read(COMMANDS[PPO].config(""), typed, COMMANDS[PPO].rules)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (published_cost, ["seed=1"], "there is no key 'seed'; the command has none\n"),
        (check_data, ["data=demo", "data.root=DIR"], "data.root=DIR has no effect: the data set is demo, "),
        (fill_bank, ["classifier=demo", "out=DIR", "split=test", "data.val=0.3"], "data.val=0.3 has no effect: split=test has none of"),
    ],
)
def test_a_small_command_ends_with_the_message_and_status_2(capsys, command, arguments, message):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(message)
