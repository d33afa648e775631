"""What `python -m agents.evaluate` does: a classifier and a policy from folders, measured on the test clips."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adafocus_env.build import choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Features
from adafocus_env.videos.datasets import DataSet, with_classes
from adafocus_env.videos.unreadable import Unreadable
from agents.config.settings import DataConfig, EnvConfig, Evaluate
from agents.config.unread import Unread, check_read
from agents.config.unread_keys import check_config
from agents.evaluation.budgets import asked_share, cost_of
from agents.evaluation.inference import decisions
from agents.pipeline.builders import build_data, check_classes, features_of, part, run_as
from agents.pipeline.session import check_seed, deterministic
from agents.policies.checkpoint import load_policy
from agents.policies.networks import PolicyNetwork
from agents.rl.lagrangian import SKIPPING, threshold_for
from agents.rl.saved_model import CARD, TrainedModel, load_model
from agents.runs.jsonl import to_json
from agents.runs.progress import Display
from agents.runs.report import report
from agents.runs.run_dir import RESULT, RunDir
from agents.runs.threads import limit_threads
from classifiers import checkpoint
from classifiers.atomic_files import write_text
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.model_zoo import BUNDLED

OF_ONE_SET = ("task", "root", "source", "test")
"""Keys of the data that say which videos of one data set, and mean nothing to another."""


def evaluate_saved(config: Evaluate) -> None:
    """Shows the table of all policies; writes it, and the pictures, to ``config.out`` if that is given.

    Raises:
        InputError: the run is not finished, what is to be measured is missing or does not fit together, or a key has no effect.
    """
    check_seed(config.seed)
    deterministic()
    config, env = _of_run(config) if config.run else (config, _environment(config))
    check_config(config, config.typed)
    with Display() as display, Unreadable() as unreadable:
        data = build_data(config.data)
        display.say(data.summary)
        classifier, data = _classifier(config, data)
        limit_threads(classifier, data.classes, classifier.device)
        policy = _policy(config)
        _check_read_by(policy, config, env)
        clips = part(data, "test", config.data, classifier.architecture.size, display, unreadable)
        env = _env_of(policy, classifier, clips, env) if isinstance(policy, PolicyNetwork) else env
        features = features_of(run_as(classifier, env), clips, env)
        if config.budget is not None or config.keep is not None:
            _meet_budget(config, data, policy, features, env, display, unreadable)
        out = Path(config.out) if config.out else None
        player = policy.on(features) if isinstance(policy, TrainedModel) else policy
        about = {"data": data.name, "title": config.data.title, "metric": data.metric}
        result = report(features, player, out, display, seed=config.seed, skipped=env.skipped, **about)
        if out is not None:
            write_text(out / RESULT, to_json(result, indent=2, sort_keys=True) + "\n")


def check_solvable(config: Evaluate, data: DataSet, policy: PolicyNetwork | TrainedModel | None) -> PolicyNetwork:
    """The policy, if there is something to meet a budget with and something to solve it on.

    Raises:
        InputError: the policy does not skip, or the validation part is empty.
    """
    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    if not isinstance(policy, PolicyNetwork) or not policy.skips:
        raise InputError(f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out")
    if not data.val:
        advice = "set data.val to a share of the training videos" if data.train else "there are no training videos to take it from"
        raise InputError(f"{asked} is solved on the validation part, which is empty: {advice}")
    return policy


def _of_run(config: Evaluate) -> tuple[Evaluate, EnvConfig]:
    """The config with what a finished run kept, as if it had been typed without ``run``, and the environment of that run.

    Raises:
        InputError: there is no such run or it is not finished, its plugin is not named, or a key contradicts it.
    """
    check_config(config, config.typed)
    kept, run = _kept(config), RunDir(config.run)
    if (plugin := kept.get("plugin")) and not config.plugin:
        raise InputError(f"run={config.run} was made with plugin={plugin}, which is imported only if you say so: add plugin={plugin}")
    best, env = run.checkpoints / "best", replace(EnvConfig(**kept["env"]), **_shared(config, config.typed))
    complete = replace(
        config, run="", data=_data_of(kept["data"], config), seed=config.seed if "seed" in config.typed else kept["seed"],
        classifier=str(run.checkpoints / "classifier"), policy=str(best) if best.exists() else "", **_shared(env),
    )  # fmt: skip
    return complete, env


def _kept(config: Evaluate) -> dict[str, Any]:
    """The config of the finished run."""
    run = RunDir(config.run)
    if not run.root.exists():
        raise InputError(f"run={config.run} does not exist; give the folder of a finished run (python -m agents.list_runs lists them)")
    if not run.finished:
        raise InputError(f"run={config.run} holds no finished run; start its command again to finish it")
    return run.config()


def _data_of(kept: Mapping[str, Any], config: Evaluate) -> DataConfig:
    """The data of a run, with what was typed in its place. Another data set is not told what the run's own was."""
    typed = {key.removeprefix("data.") for key in config.typed if key.startswith("data.")} | ({"name"} if "data" in config.typed else set())
    of_run = DataConfig(**kept)
    if "name" in typed and config.data.name != of_run.name:
        of_run = replace(of_run, **{key: getattr(DataConfig(), key) for key in OF_ONE_SET})
    return replace(of_run, **{key: getattr(config.data, key) for key in typed})


def _check_read_by(policy: PolicyNetwork | TrainedModel | None, config: Evaluate, env: EnvConfig) -> None:
    """Checks the keys that only some policies have a use for.

    Raises:
        InputError: one was typed, and the policy has none (names it).
    """
    rules = []
    if isinstance(policy, PolicyNetwork):
        chooses = "places" if policy.grid is None else f"cells of a {policy.grid}×{policy.grid} grid"
        rules = [
            Unread("grid", lambda c: c.grid != policy.grid, f"the policy chooses {chooses}; leave it out"),
            Unread("video_div", lambda c: True, "the policy's glance maps say how many decisions there are; leave it out"),
        ]
    skips = policy.skips if isinstance(policy, PolicyNetwork) else policy is not None and env.action in SKIPPING
    rules.append(Unread("skipped", lambda c: not skips, "there is no policy that skips frames; leave it out"))
    check_read(config, config.typed, rules)


SHARED = ("bank", "bank_dtype", "bank_gib", "precision", "compile", "skipped")
"""Keys that are called the same here and in `EnvConfig`."""


def _shared(settings: Evaluate | EnvConfig, keys: Collection[str] = SHARED) -> dict[str, Any]:
    return {key: getattr(settings, key) for key in SHARED if key in keys}


def _environment(config: Evaluate) -> EnvConfig:
    return EnvConfig(grid=config.grid, video_div=config.video_div, **_shared(config))


def _classifier(config: Evaluate, data: DataSet) -> tuple[Classifier, DataSet]:
    """The classifier, and the data set with its classes."""
    name = config.classifier
    if name == "auto":
        if data.name not in BUNDLED:
            raise InputError(f"classifier=auto: none is bundled for data={data.name}; give classifier=DIR, the folder of a checkpoint")
        name = data.name
    classifier = checkpoint.load(name, choose_device(config.device))
    data = with_classes(data, classifier.classes)
    check_classes(classifier, data, name)
    return classifier, data


def _policy(config: Evaluate) -> PolicyNetwork | TrainedModel | None:
    if not config.policy:
        return None
    device, folder = choose_device(config.device), Path(config.policy)
    return load_model(folder, device, trust=config.trust) if (folder / CARD).is_file() else load_policy(folder, device)


def _env_of(policy: PolicyNetwork, classifier: Classifier, clips: ClipSource, env: EnvConfig) -> EnvConfig:
    """The environment that the policy acts in: its kind of action, and as many decisions as its glances make."""
    video_div = env.video_div
    if classifier.architecture.head == "mean":
        video_div = decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)
    patch_action, skipping = ("continuous", "continuous_skip") if policy.grid is None else ("grid", "skip")
    action = skipping if policy.skips else patch_action
    return replace(env, action=action, grid=policy.grid or env.grid, video_div=video_div)


def _meet_budget(
    config: Evaluate,
    data: DataSet,
    policy: PolicyNetwork | TrainedModel | None,
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
