"""The implementation of `python -m agents.evaluate`: evaluate a saved classifier and policy on the test clips."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adafocus_env.build import Split, choose_device
from adafocus_env.clips.store import Unreadable
from adafocus_env.dataset_registry import OF_ONE_SET, build_data
from adafocus_env.features.live import Features
from adafocus_env.settings import ActionName
from adafocus_env.videos.dataset import DataSet, with_classes
from agents.config.effect import check_effect
from agents.config.policy import SKIPPING
from agents.config.settings import DataConfig, EnvConfig, Evaluate
from agents.evaluation.budgets import requested_keep, set_threshold
from agents.evaluation.conditional_exit import ExitModel
from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import count_decisions
from agents.pipeline.builders import build_split, check_classes, features_of, in_order_of, inference_classifier
from agents.pipeline.exit_fitting import fit_exit
from agents.policies.networks import PolicyNetwork
from agents.rl.saved_model import Policy, TrainedModel, load_trained
from agents.runs.exit_report import ExitChoice
from agents.runs.progress import Display
from agents.runs.report import report
from agents.runs.run_dir import RunDir
from agents.runs.seeding import make_deterministic
from agents.runs.threads import limit_threads
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError, refuse_if
from classifiers.model_zoo import BUNDLED

SHARED = ("bank", "bank_dtype", "bank_gib", "precision", "compile", "skipped")
"""Keys of the command that have the same name in `EnvConfig`."""


def evaluate_saved(config: Evaluate) -> None:
    """Show the table of all policies; write it and the plots to ``config.out`` if set.

    Raises:
        InputError: If the run is not finished, if a file is missing, if the models and the data do not match, or if a key has no effect.
    """
    make_deterministic()
    check_effect(config, config.typed)
    env = EnvConfig(grid=config.grid, video_div=config.video_div, **{key: getattr(config, key) for key in SHARED})
    if config.run:
        config, env = _of_run(config)
        check_effect(config, config.typed)
    with Display() as display, Unreadable() as unreadable:
        data, device = build_data(config.data), choose_device(config.device)
        refuse_if(
            config.further and not data.further, f"further=true: data={config.data.name} has no further videos; only data=demo has them"
        )
        display.say(data.summary)
        classifier, data = _classifier(config, data, device)
        limit_threads(classifier, data.classes, device)
        policy = load_trained(Path(config.policy), device) if config.policy else None
        _check_policy_keys(policy, config, env)
        size = classifier.architecture.size
        split: Split = "further" if config.further else "test"
        of_data = in_order_of(config.data, classifier.clip_format)
        clips = build_split(data, split, of_data, size, display, unreadable)
        if isinstance(policy, PolicyNetwork):
            env = _env_of(policy, env)
            if classifier.architecture.averages_frames:
                glances = clips.settings.num_glance_frames
                env = replace(env, video_div=count_decisions(classifier, policy, clips.num_frames, glances))
        features = features_of(inference_classifier(classifier, env), clips, env)
        if config.budget is not None or config.keep is not None:
            skipping = check_solvable(config, data, policy)
            val = features_of(features.classifier, build_split(data, "val", of_data, size, display, unreadable), env)
            share = requested_keep(config.budget, config.keep, flops_of(features, env.skipped, skipping.step_macs))
            display.say(set_threshold(skipping, val, share))
        exit = None if config.exit is None else _exit_choice(config.exit, config, features, policy, data, of_data, env, display)
        out = Path(config.out) if config.out else None
        result = report(
            features, policy.on(features) if isinstance(policy, TrainedModel) else policy, out, display, seed=config.seed, data=data.name,
            title=config.data.title, metric=data.metric, skipped=env.skipped, split=split, exit=exit,
        )  # fmt: skip
        if out is not None:
            RunDir(out).write_result(result)


def _exit_choice(
    p: float, config: Evaluate, features: Features, policy: Policy | None, data: DataSet, of_data: DataConfig, env: EnvConfig,
    display: Display,
) -> ExitChoice:  # fmt: skip
    """Return the conditional exit with parameter ``p``. The exit is fitted on training clips.

    Raises:
        InputError: If there is no policy, or the models do not support an exit.
    """
    if policy is None:
        raise InputError(f"exit={p} needs a policy, and there is none; give policy=DIR, or leave exit out")
    model = ExitModel.of(features.classifier, policy, features.clips.num_frames, features.num_steps, skipped=env.skipped)
    fit = fit_exit(features.classifier, policy, config.policy, model, data, of_data, env, display)
    return ExitChoice(fit, p, config.exit_confidence)


def check_solvable(config: Evaluate, data: DataSet, policy: Policy | None) -> PolicyNetwork:
    """Check that a threshold that meets the budget can be computed, and return the policy.

    Raises:
        InputError: If the policy does not skip, or the validation split is empty.
    """
    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    if not isinstance(policy, PolicyNetwork) or not policy.skips:
        raise InputError(f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out")
    if not data.val:
        advice = "set data.val to a share of the training videos" if data.train else "there are no training videos to take it from"
        raise InputError(f"{asked} is solved on the validation split, which is empty: {advice}")
    return policy


def _of_run(config: Evaluate) -> tuple[Evaluate, EnvConfig]:
    """Replace ``run`` by the classifier, the policy and the data of the finished run.

    Return the changed settings and the settings of the run's environment.

    Raises:
        InputError: If the run does not exist, is not finished, or was made with a plugin that the command does not name.
    """
    run = RunDir(config.run)
    refuse_if(
        not run.root.exists(), f"run={config.run} does not exist; give the folder of a finished run (python -m agents.list_runs lists them)"
    )
    refuse_if(not run.finished, f"run={config.run} is not finished; start its command again to finish it")
    of_run = run.config()
    refuse_if(
        (plugin := of_run.get("plugin")) and not config.plugin,
        f"run={config.run} was made with plugin={plugin}, which is imported only if you say so: add plugin={plugin}",
    )
    env = replace(EnvConfig(**of_run["env"]), **{key: getattr(config, key) for key in SHARED if key in config.typed})
    best = run.checkpoints / "best"
    complete = replace(
        config, run="", data=_data_of(of_run["data"], config), seed=config.seed if "seed" in config.typed else of_run["seed"],
        classifier=str(run.checkpoints / "classifier"), policy=str(best) if best.exists() else "",
        **{key: getattr(env, key) for key in SHARED},
    )  # fmt: skip
    complete.typed = config.typed
    return complete, env


def _data_of(of_run: Mapping[str, Any], config: Evaluate) -> DataConfig:
    """Return the run's data settings, in which the values that the user typed replace those of the run.

    If the user typed another data set, the keys in `OF_ONE_SET` get their default values.
    """
    typed = {key.removeprefix("data.") for key in config.typed if key.startswith("data.")} | ({"name"} if "data" in config.typed else set())
    data = DataConfig(**of_run)
    defaults = {key: getattr(DataConfig(), key) for key in OF_ONE_SET} if "name" in typed and config.data.name != data.name else {}
    return replace(data, **{**defaults, **{key: getattr(config.data, key) for key in typed}})


def _classifier(config: Evaluate, data: DataSet, device: torch.device) -> tuple[Classifier, DataSet]:
    """Return the classifier, and the data set with the classifier's classes."""
    name = config.classifier
    if name == "auto":
        refuse_if(
            data.name not in BUNDLED,
            f"classifier=auto: none is bundled for data={data.name}; give classifier=DIR, the folder of a checkpoint",
        )
        name = data.name
    classifier = checkpoint.load(name, device)
    data = with_classes(data, classifier.classes)
    check_classes(classifier, data, name)
    return classifier, data


def _check_policy_keys(policy: Policy | None, config: Evaluate, env: EnvConfig) -> None:
    """Check that the typed keys have an effect with this policy.

    Raises:
        InputError: If a typed key has no effect with this policy. The message names the key.
    """

    def reasons(config: Evaluate) -> Iterator[tuple[str, str]]:
        if isinstance(policy, PolicyNetwork):
            actions = "locations" if policy.grid is None else f"cells of a {policy.grid}×{policy.grid} grid"
            if config.grid != policy.grid:
                yield "grid", f"the policy chooses {actions}; leave it out"
            yield "video_div", "the policy's glance maps say how many decisions there are; leave it out"
        skips = policy.skips if isinstance(policy, PolicyNetwork) else policy is not None and env.action in SKIPPING
        if not skips:
            yield "skipped", "there is no policy that skips frames; leave it out"

    check_effect(config, config.typed, reasons)


def _env_of(policy: PolicyNetwork, env: EnvConfig) -> EnvConfig:
    """Return the settings of the environment, with the policy's kind of action and grid."""
    with_grid: ActionName = "skip" if policy.skips else "grid"
    without: ActionName = "continuous_skip" if policy.skips else "interpolated" if policy.interpolated else "continuous"
    return replace(env, action=with_grid if policy.grid else without, grid=policy.grid or env.grid)
