"""Every setting of every command has an effect or is refused by name.

Small runs of the commands record which settings are read. A setting that a run does not read must be refused if it is typed.
"""

import re
import sys

import pytest
from config_states import config_of
from conftest import TINY
from tiny_training import CLASSES, SETTINGS, make_folder, tiny_networks

from adafocus_env.settings import fields_of, is_settings
from agents import (
    check_dataset,
    evaluate,
    export,
    fill_feature_bank,
    list_runs,
    predict,
    report,
    train,
    train_end_to_end,
    train_ppo,
    train_stages,
    watch,
)  # fmt: skip
from agents.config.command import compose_config
from agents.config.effect import check_effect
from agents.config.settings import (
    ArchitectureConfig,
    CheckDataset,
    ClassifierConfig,
    Evaluate,
    Export,
    FillFeatureBank,
    ListRuns,
    Predict,
    Report,
    Train,
    TrainEndToEnd,
    TrainPPO,
    TrainStages,
    Watch,
)  # fmt: skip
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, save_policy
from agents.rl import algorithms
from benchmarks.rebuild_bundled import RebuildBundled
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
STAGES = tuple(fields_of(ClassifierConfig))


def keys_of(schema, prefix=""):
    """Return all keys with the classes that declare them, without groups, whose settings are keys themselves."""
    for name, field in fields_of(schema).items():
        if is_settings(field.annotation):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", schema, name


def refused(schema, config, key):
    """Return the reason why a key has no effect; empty if it has one."""
    try:
        check_effect(config, {key: f"{key}=1"}, algorithms.without_effect if schema is Train else None)
    except InputError as problem:
        return str(problem)
    return ""


@pytest.fixture
def read(monkeypatch):
    """Return the set of settings (class, name) that are read while a test runs, without copies and comparisons of whole groups."""
    found = set()

    def record(kind):
        names = set(fields_of(kind))

        def get(self, name):
            if name in names:
                reader = sys._getframe(1).f_globals["__name__"]
                whole = reader in ("dataclasses", "copy") and kind is not ArchitectureConfig  # which is read as a whole
                if not whole and not reader.startswith(("agents.config", "pydantic", "adafocus_env.settings", __name__)):
                    found.add((kind, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", get, raising=False)

    for schema in SCHEMAS:
        for _, kind, _ in keys_of(schema):
            if "__getattribute__" not in vars(kind):
                record(kind)
    return found


SCHEMAS = (
    TrainPPO, Train, TrainStages, TrainEndToEnd, Evaluate, Export, FillFeatureBank, CheckDataset, ListRuns, Predict, Report, Watch,
)  # fmt: skip
SGD = [f"stages.{stage}.{each}" for stage in STAGES for each in ("optimizer=sgd", "epochs=1")]
SKIPPING = ["env.action=skip", "env.target_keep=0.5", "env.baseline=1", "ppo.total_steps=32"]
SMALLER = [each for each in SETTINGS if not each.startswith(("ppo.", "stages."))]
SMALLEST = [each for each in SMALLER if not each.startswith("env.")]


def assert_all_read_or_refused(schema, config, read, elsewhere=()):
    left = [key for key, kind, name in keys_of(schema) if (kind, name) not in read and not refused(schema, config, key)]
    assert sorted(left) == sorted(elsewhere)


@pytest.mark.parametrize(
    ("module", "schema", "name", "arguments"),
    [
        (train_ppo, TrainPPO, "train_ppo", [*SETTINGS, "classifier=small"]),
        pytest.param(train_ppo, TrainPPO, "train_ppo", [*SETTINGS, *SKIPPING, "classifier=small"], marks=pytest.mark.slow),
        pytest.param(train, Train, "train", [*SMALLER, "algo=dqn", "algo.total_steps=64", "classifier=small"], marks=pytest.mark.slow),
        pytest.param(
            train_stages, TrainStages, "train_stages", [*SETTINGS, *SGD, "rounds=1", "joint.total_steps=32", "ppo.total_steps=64"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            train_end_to_end, TrainEndToEnd, "train_end_to_end", [*SMALLEST, "learning.epochs=1", "learning.optimizer=sgd"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_what_training_does_not_read_is_refused(tmp_path, clips, read, module, schema, name, arguments):
    unlike_others = f"stages.random_patches.weight_decay={1e-4 + 1e-6 * len(arguments)}"  # no other test has cached its classifier
    unlike = [unlike_others] if "stages" in fields_of(schema) else []
    arguments = [*arguments, *unlike, f"data.root={make_folder(tmp_path / 'videos')}", f"run={tmp_path / 'run'}"]
    config = compose_config(schema, name, arguments)
    with tiny_networks():
        module.main(config)
        assert_all_read_or_refused(schema, config, read, elsewhere=["plugin"])  # which `run_command` imports
        page = Report(run=config.run)
        report.main(page)
        assert_all_read_or_refused(Report, page, read)
        seen = Watch(run=config.run, episodes=1, side=192, out=str(tmp_path / "watch.gif"))
        watch.main(seen)
        assert_all_read_or_refused(Watch, seen, read)


@pytest.mark.slow
def test_what_the_other_commands_do_not_read_is_refused(tmp_path, clips, read):
    folder = make_folder(tmp_path / "videos")
    checkpoint.save(Classifier(TINY, CLASSES), tmp_path / "classifier")
    classifier, policy = f"classifier={tmp_path / 'classifier'}", tmp_path / "policy"
    save_policy(PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=1, features=1, hidden=1), 7), policy, {})
    data = ["data=folder", f"data.root={folder}", "data.num_frames=4"]
    for module, schema, name, arguments in (
        (check_dataset, CheckDataset, "check_dataset", [*data, "workers=1"]),
        (list_runs, ListRuns, "list_runs", [f"root={tmp_path}"]),
        (fill_feature_bank, FillFeatureBank, "fill_feature_bank", [*data, classifier, f"out={tmp_path / 'bank'}"]),
        (evaluate, Evaluate, "evaluate", [*data, classifier]),
        (predict, Predict, "predict", [classifier, f"policy={policy}", f"source={folder}/test", f"out={tmp_path / 'out'}", "save=[json]"]),
        (export, Export, "export", [classifier, f"policy={policy}", f"out={tmp_path / 'export'}"]),
    ):  # fmt: skip
        config = compose_config(schema, name, arguments)
        read.clear()
        module.main(config)
        elsewhere = {"plugin"} & set(fields_of(schema)) if schema not in (Predict, Export) else ()
        assert_all_read_or_refused(schema, config, read, elsewhere)


# What is refused: command, key, state, message


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return the parent of three folders: with a test/ subfolder, without one, and in place of a trained classifier."""
    root = tmp_path_factory.mktemp("places")
    for name in ("split/test", "plain/cat", "trained"):
        (root / name).mkdir(parents=True)
    return root


REFUSED = [
    (TrainPPO, "data.root", "", "data=demo does not read it; leave it out, or choose one of data=folder, "),
    (TrainPPO, "data.source", "data.name=folder", r"data=folder does not read it; leave it out, or choose one of data=actnet, "),
    (TrainPPO, "data.task", "data.name=folder", "data=folder does not read it; leave it out, or choose one of data=demo$"),
    (TrainPPO, "data.flip", "", "data=demo does not read it; leave it out, or choose one of data=folder$"),
    (CheckDataset, "data.flip", "data.name=folder", "the check decodes one test clip per video; leave it out"),
    (TrainPPO, "data.test", "", "data=demo does not read it; leave it out, or choose one of data=folder$"),
    (TrainPPO, "data.test", "data.name=folder data.root={places}/split", "a train/ or test/ subfolder defines the split"),
    (TrainPPO, "env.grid", "env.action=continuous_skip", "env.action=continuous_skip has no cells; leave it out, or set env.action=grid"),
    (TrainPPO, "env.baseline", "env.reward=confidence", "env.reward=confidence has no baseline of random patches; leave it out"),
    (TrainPPO, "env.cost_weight_rate", "", "λ is constant; set env.target_keep or env.target_gflops"),
    (TrainPPO, "env.full_information", "", r"this command learns only from the action taken; use python -m agents\.train algo=expected"),
    (Train, "env.full_information", "algo.name=dqn", "algo=dqn learns only from the action taken; leave it out, or set algo=expected_pg"),
    (Train, "ppo.gae_lambda", "algo.name=expected_pg ppo.gamma=0", r"algo=expected_pg has no critic with ppo\.gamma=0"),
    (Train, "ppo.gamma", "algo.name=imitation", "algo=imitation has neither returns nor clipping; leave it out"),
    (Train, "algo.settings.target_kl", "algo.name=imitation", "algo=imitation has neither returns nor clipping; leave it out"),
    (Train, "algo.settings.clip_range_vf", "algo.name=expected_pg", "algo=expected_pg does not clip the values of its critic"),
    (Train, "ppo.normalize_returns", "algo.name=expected_pg", "algo=expected_pg uses returns only for its critic; leave it out"),
    (TrainPPO, "env.skipped", "", "env.action=grid skips no frame; set env.action=skip"),
    (TrainPPO, "env.bank_dtype", "env.bank=false", "with env.bank=false features are stored nowhere; leave it out, or set env.bank=true"),
    (TrainPPO, "network.hidden", "policy=DIR", "policy=DIR already has a network; leave one of them out"),
    (TrainPPO, "network.hidden", "", "network=spatial does not read it; leave it out, or choose another network"),
    (TrainPPO, "network.width", "network.name=published", "network=published does not read it"),
    (TrainPPO, "network.std", "env.action=skip", "env.action=skip has cells, but the standard deviation is for locations"),
    (TrainPPO, "ppo.total_steps", "ppo.epochs=3", "ppo.epochs=3 overrides it; set that, or ppo.epochs=null"),
    (TrainPPO, "ppo.validate_every", "data.val=0", "with data.val=0 nothing is validated"),
    (TrainPPO, "architecture.shift_place", "classifier=small", "there is no temporal shift; set architecture.shift"),
    (TrainPPO, "architecture.hidden_size", "classifier=paper_tsm", "the head has no hidden state; leave it out, or set architecture"),
    (TrainPPO, "stages.finetune.epochs", "classifier=small", r"only python -m agents\.train_stages runs stage 3"),
    (TrainPPO, "stages.glancer.epochs", "", "classifier=auto is already trained; leave it out, or start from an architecture"),
    (TrainPPO, "stages.random_patches.epochs", "classifier={places}/trained", "trained is already trained"),
    *(
        (TrainStages, f"stages.{stage}.{key}", f"classifier=small stages.{stage}.{state}", message)
        for stage in STAGES
        for key, state, message in (
            ("batch_size", "epochs=0", rf"with stages\.{stage}\.epochs=0 nothing is trained"),
            ("momentum", "optimizer=adamw", rf"adamw does not read it; set stages\.{stage}\.optimizer=sgd"),
        )
    ),
    *(
        (TrainStages, f"stages.{stage}.{key}", f"classifier={classifier}", message)
        for stage in ("glancer", "focuser")
        for key, classifier, message in (
            ("head_learning_rate", "small", rf"the head is not trained in stage 0; set stages\.{stage}\.learning_rate"),
            ("frames", "paper_tsm", "backbones with temporal shift see all frames of a clip; leave it out"),
        )
    ),
    (TrainStages, "stages.random_patches.frames", "", r"only stage 0 \(glancer, focuser\) reads it"),
    (TrainStages, "stages.finetune.frames", "", r"only stage 0 \(glancer, focuser\) reads it"),
    (Train, "ppo.gamma", "algo.name=dqn", r"algo=dqn .* learns by other keys; set algo\.total_steps, algo\.settings"),
    (Train, "ppo", "algo.observation=map", r"algo=ppo algo\.observation=map learns by other keys"),
    (Train, "algo.total_steps", "", "with PPO, set the keys of ppo"),
    *(
        (
            Train, f"network.{key}", f"network.name=published algo.observation={seen} algo.name={name}",
            f"the policy of algo={name.split()[0]} .*lacks it",
        )
        for key, name, seen in (
            ("channels", "ars", "reference"), ("features", "dqn", "map"), ("hidden", "recurrent_ppo", "reference"),
            ("batch_norm", "dqn", "reference"), ("memory", "recurrent_ppo", "reference"), ("std", "sac env.action=continuous", "reference"),
        )
    ),
    (TrainStages, "stages", "first=2 last=2", "only stage 2 is run"),
    (TrainStages, "stages.glancer.epochs", "first=1", r"stage 0 is not run \(first=1\); leave it out, or set first=0"),
    (TrainStages, "stages.random_patches.epochs", "first=2", r"stage 1 is not run \(first=2 last=3\)"),
    (TrainStages, "stages.finetune.epochs", "last=2", r"stage 3 is not run \(last=2\); leave it out, or set last=3"),
    (TrainStages, "ppo.gamma", "first=3", r"stage 2 is not run \(first=3 last=3\)"),
    (TrainStages, "env.num_envs", "last=1", r"stage 2 is not run \(first=0 last=1\)"),
    (TrainStages, "policy", "last=1", "no stage from 0 to last=1 uses a policy"),
    (TrainStages, "joint.epochs", "", "there are no joint rounds; set rounds, or leave it out"),
    (TrainStages, "joint.patience", "rounds=1", "it compares rounds on the validation split"),
    (TrainStages, "ppo.total_steps", "first=3 rounds=1 joint.total_steps=5", r"which read joint\.total_steps; set that"),
    (TrainStages, "ppo.epochs", "first=3 rounds=1 joint.total_steps=5", r"which read joint\.total_steps; set that"),
    (TrainStages, "ppo.learning_rate", "first=3 rounds=1 joint.policy_learning_rate=0.1", r"which read joint\.policy_learning_rate"),
    *(
        (TrainEndToEnd, f"env.{key}", "env.action=continuous", "end-to-end training uses no reinforcement learning, and neither cells nor")
        for key in ("grid", "num_envs", "reward", "baseline", "full_information", "cost_weight", "target_keep", "target_gflops", "skipped")
    ),
    (TrainEndToEnd, "learning.head_ratio", "classifier=paper_v2_tsm", r"the head separate_mean learns with learning\.glancer_ratio"),
    (TrainEndToEnd, "network.std", "", "end-to-end training uses no reinforcement learning and samples no locations; leave it out"),
    (TrainEndToEnd, "network.width", "policy=DIR", "policy=DIR already has a network; leave one of them out"),
    (TrainEndToEnd, "learning.momentum", "learning.optimizer=adamw", r"adamw does not read it; set learning\.optimizer=sgd"),
    *(
        (TrainEndToEnd, f"learning.{name}", "freeze=true", "freeze=true trains only the policy; leave it out, or set freeze=false")
        for name in ("glancer_ratio", "focuser_ratio", "head_ratio", "dropout")
    ),
    (Evaluate, "classifier", "run=DIR", "run=DIR has a classifier and a policy; leave it out, or leave run out and give both"),
    (Evaluate, "policy", "run=DIR", "run=DIR has a classifier and a policy"),
    (Evaluate, "grid", "run=DIR", "run=DIR determines it; leave it out, or give classifier and policy instead"),
    (Evaluate, "data.root", "", "data=demo does not read it"),
    (Evaluate, "data.views", "", "it applies to training clips, and none are read; leave it out"),
    (Evaluate, "data.val", "", "nothing is chosen on the validation split without keep or budget; leave it out"),
    (Evaluate, "bank_gib", "bank=false", "with bank=false features are stored nowhere; leave it out, or set bank=true"),
    (RebuildBundled, "stages.finetune.epochs", "", "bundled classifiers are trained by stages 0 and 1 only; leave it out"),
    (FillFeatureBank, "data.val", "split=test", "split=test has no training videos; leave it out"),
    (FillFeatureBank, "data.sampling", "split=val", "it applies to training clips, and split=val has none; leave it out"),
    (FillFeatureBank, "grid", "action=continuous", "action=continuous has no cells; leave it out"),
    (CheckDataset, "data.workers", "", "set workers"),
    (CheckDataset, "data.views", "", "the check decodes one test clip per video"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "key", "state", "message"), REFUSED, ids=[f"{s.__name__}-{k}-{state}" for s, k, state, _ in REFUSED])
def test_a_key_without_an_effect_is_refused_by_name(places, schema, key, state, message):
    assert re.match(rf"{key}=1 has no effect: .*{message}", refused(schema, config_of(schema, state.format(places=places)), key))


def test_a_plain_folder_is_split_by_data_test(places):
    assert not refused(TrainPPO, config_of(TrainPPO, f"data.name=folder data.root={places}/plain"), "data.test")


def test_defaults_and_presets_may_have_no_effect():
    config = config_of(TrainPPO, "env.bank=false env.bank_dtype=float16 ppo.epochs=3 ppo.total_steps=5")
    check_effect(config, {"env.bank": "env.bank=false", "ppo.epochs": "ppo.epochs=3"})


def test_the_settings_of_a_run_are_checked_when_they_are_known():
    assert not refused(Evaluate, config_of(Evaluate, "run=DIR"), "data.root")


def test_stage_3_of_joint_rounds_alone_is_trained():
    config = config_of(TrainStages, "rounds=1 joint.epochs=2 stages.finetune.epochs=0")
    assert not refused(TrainStages, config, "stages.finetune.batch_size")


def test_all_keys_without_an_effect_are_named_at_once():
    typed = {"data.root": "data.root=DIR", "env.skipped": "env.skipped=none", "env.cost_weight_rate": "env.cost_weight_rate=1"}
    with pytest.raises(InputError, match="^" + "\n".join(rf"{re.escape(each)} has no effect: [^\n]*" for each in typed.values()) + "$"):
        check_effect(TrainPPO(), typed)


def test_a_group_without_an_effect_is_refused_as_a_whole():
    assert "only stage 2 is run" in refused(TrainStages, config_of(TrainStages, "first=2 last=2"), "stages")
