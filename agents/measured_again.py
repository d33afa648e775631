"""What `python -m agents.evaluate` does: a classifier and a policy from folders, measured on the test clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adafocus_env.build import choose_device
from adafocus_env.clips import ClipSource
from adafocus_env.datasets import DataSet
from adafocus_env.features import Features
from adafocus_env.unreadable import Unreadable
from agents.budgets import asked_share, cost_of
from agents.builders import build_data, check_classes, features_of, part, run_as
from agents.config import DataConfig, EnvConfig, Evaluate
from agents.inference import decisions
from agents.models import CARD, TrainedModel, load_model
from agents.policies import GlancePolicy
from agents.policy_files import load_policy
from agents.progress import Display
from agents.records import to_json
from agents.report import report
from agents.run_folder import RESULT, RunFolder
from agents.session import check_seed, deterministic
from agents.stages.policy import threshold_for
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.files import write_text
from classifiers.registry import SHIPPED


def measure_again(config: Evaluate) -> None:
    """Shows the table of all policies; writes it, and the pictures, to ``config.out`` if that is given.

    Raises:
        InputError: the run is not finished, or what is to be measured is missing or does not fit together.
    """
    check_seed(config.seed)
    deterministic()
    config, env = _of_run(config) if config.run else (config, _environment(config))
    with Display() as display, Unreadable() as unreadable:
        data = build_data(config.data)
        display.say(data.summary)
        classifier = _classifier(config, data)
        policy = _policy(config)
        clips = part(data, "test", config.data, classifier.architecture.size, display, unreadable)
        env = _env_of(policy, classifier, clips, env) if isinstance(policy, GlancePolicy) else env
        features = features_of(run_as(classifier, env), clips, env)
        if config.budget is not None or config.keep is not None:
            _meet_budget(config, data, policy, features, env, display, unreadable)
        out = Path(config.out) if config.out else None
        player = policy.on(features) if isinstance(policy, TrainedModel) else policy
        result = report(features, player, out, display, seed=config.seed, data=data.name, metric=data.metric, skipped=env.skipped)
        if out is not None:
            write_text(out / RESULT, to_json(result, indent=2, sort_keys=True) + "\n")


def check_solvable(config: Evaluate, data: DataSet, policy: GlancePolicy | TrainedModel | None) -> GlancePolicy:
    """The policy, if there is something to meet a budget with and something to solve it on.

    Raises:
        InputError: the policy does not skip, or the validation part is empty.
    """
    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    if not isinstance(policy, GlancePolicy) or not policy.skips:
        raise InputError(f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out")
    if not data.val:
        raise InputError(f"{asked} is solved on the validation part, which is empty: set data.val to a share of the training videos")
    return policy


def _of_run(config: Evaluate) -> tuple[Evaluate, EnvConfig]:
    """The config with what a finished run kept, and the environment of that run."""
    run = RunFolder(config.run)
    if not run.finished:
        raise InputError(f"run={config.run} holds no finished run; start its command again to finish it")
    kept, best = run.config(), run.checkpoints / "best"
    if (plugin := kept.get("plugin")) and not config.plugin:
        raise InputError(f"run={config.run} was made with plugin={plugin}, which is imported only if you say so: add plugin={plugin}")
    classifier, policy = str(run.checkpoints / "classifier"), str(best) if best.exists() else ""
    told = replace(config, data=DataConfig(**kept["data"]), seed=kept["seed"], classifier=classifier, policy=policy)
    return told, EnvConfig(**kept["env"])


def _environment(config: Evaluate) -> EnvConfig:
    return EnvConfig(
        grid=config.grid, video_div=config.video_div, bank=config.bank, bank_dtype=config.bank_dtype, bank_gib=config.bank_gib,
        precision=config.precision, compile=config.compile, skipped=config.skipped,
    )  # fmt: skip


def _classifier(config: Evaluate, data: DataSet) -> Classifier:
    name = config.classifier
    if name == "auto":
        if data.name not in SHIPPED:
            raise InputError(f"classifier=auto: none is shipped for data={data.name}; give classifier=DIR, the folder of a checkpoint")
        name = data.name
    classifier = checkpoint.load(name, choose_device(config.device))
    check_classes(classifier, data, name)
    return classifier


def _policy(config: Evaluate) -> GlancePolicy | TrainedModel | None:
    if not config.policy:
        return None
    device, folder = choose_device(config.device), Path(config.policy)
    return load_model(folder, device, trust=config.trust) if (folder / CARD).is_file() else load_policy(folder, device)


def _env_of(policy: GlancePolicy, classifier: Classifier, clips: ClipSource, env: EnvConfig) -> EnvConfig:
    """The environment that the policy acts in: its kind of action, and as many decisions as its glances make."""
    video_div = env.video_div
    if classifier.architecture.head == "mean":
        video_div = decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)
    looking, skipping = ("continuous", "continuous_skip") if policy.grid is None else ("grid", "skip")
    action = skipping if policy.skips else looking
    return replace(env, action=action, grid=policy.grid or env.grid, video_div=video_div)


def _meet_budget(
    config: Evaluate,
    data: DataSet,
    policy: GlancePolicy | TrainedModel | None,
    features: Features,
    env: EnvConfig,
    display: Display,
    unreadable: Unreadable,
) -> None:
    """Sets the policy's threshold, solved on the validation part for what is asked."""
    skipping = check_solvable(config, data, policy)
    clips = part(data, "val", config.data, features.classifier.architecture.size, display, unreadable)
    share = asked_share(config.budget, config.keep, cost_of(features, skipping, env.skipped))
    skipping.keep_threshold = threshold_for(skipping, features_of(features.classifier, clips, env), share)
    display.say(f"{share:.1%} of the frames are kept: skipping where P(skip) is {skipping.keep_threshold:.4g} or more")
