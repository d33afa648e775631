"""Accuracy against cost on the test clips, for a policy and every baseline.

    python -m agents.evaluate run=DIR                            a finished run
    python -m agents.evaluate run=DIR keep=0.47                  the same with 47 % of the frames, where the policy skips
    python -m agents.evaluate classifier=DIR policy=DIR data=demo
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agents.command import run_command
from agents.config import DataConfig, EnvConfig, Evaluate

if TYPE_CHECKING:
    from adafocus_env.clips import ClipSource
    from adafocus_env.datasets import DataSet
    from agents.policies import GlancePolicy
    from classifiers.classifier import Classifier


def main(config: Evaluate) -> None:
    """Repeats the table of a run, or makes one for a classifier and a policy."""
    from adafocus_env.build import choose_device
    from agents.budgets import asked_share, cost_of
    from agents.builders import build_data, check_classes, features_of, part, run_as
    from agents.models import CARD, load_model
    from agents.policy_files import load_policy
    from agents.progress import Display
    from agents.records import to_json
    from agents.report import report
    from agents.run_folder import RESULT, RunFolder
    from agents.session import check_seed, deterministic
    from agents.stages.policy import threshold_for
    from classifiers import checkpoint
    from classifiers.errors import InputError
    from classifiers.files import write_text
    from classifiers.registry import SHIPPED

    check_seed(config.seed)
    deterministic()
    device = choose_device(config.device)
    env = EnvConfig(
        grid=config.grid, video_div=config.video_div, bank=config.bank, bank_dtype=config.bank_dtype, bank_gib=config.bank_gib,
        precision=config.precision, compile=config.compile, skipped=config.skipped,
    )
    if config.run:
        run = RunFolder(config.run)
        if not run.finished:
            raise InputError(f"run={config.run} holds no finished run; start its command again to finish it")
        kept, best = run.config(), run.checkpoints / "best"
        if (plugin := kept.get("plugin")) and not config.plugin:
            raise InputError(f"run={config.run} was made with plugin={plugin}, which is imported only if you say so: add plugin={plugin}")
        config.data, config.seed, env = DataConfig(**kept["data"]), kept["seed"], EnvConfig(**kept["env"])
        config.classifier, config.policy = str(run.checkpoints / "classifier"), str(best) if best.exists() else ""
    model = Path(config.policy) if config.policy and (Path(config.policy) / CARD).is_file() else None
    with Display() as display:
        data = build_data(config.data)
        if config.classifier == "auto":
            if data.name not in SHIPPED:
                raise InputError(f"classifier=auto: none is shipped for data={data.name}; give classifier=DIR, the folder of a checkpoint")
            config.classifier = data.name
        classifier = checkpoint.load(config.classifier, device)
        trained = load_model(model, device, trust=config.trust) if model else None
        policy = load_policy(config.policy, device) if config.policy and not trained else None
        check_classes(classifier, data, config.classifier)
        clips = part(data, "test", config.data, classifier.architecture.size, display)
        env = env_of(policy, classifier, clips, env) if policy else env
        features = features_of(run_as(classifier, env), clips, env)
        if config.budget is not None or config.keep is not None:
            check_solvable(config, data, policy)
            assert policy is not None
            val = features_of(features.classifier, part(data, "val", config.data, classifier.architecture.size, display), env)
            share = asked_share(config.budget, config.keep, cost_of(features, policy, env.skipped))
            policy.keep_threshold = threshold_for(policy, val, share)
            display.say(f"{share:.1%} of the frames are kept: skipping where P(skip) is {policy.keep_threshold:.4g} or more")
        out = Path(config.out) if config.out else None
        player = trained.on(features) if trained else policy
        result = report(features, player, out, display, seed=config.seed, data=data.name, metric=data.metric, skipped=env.skipped)
        if out is not None:
            write_text(out / RESULT, to_json(result, indent=2, sort_keys=True) + "\n")


def check_solvable(config: Evaluate, data: DataSet, policy: GlancePolicy | None) -> None:
    """Checks that there is something to meet a budget with, and something to solve it on.

    Raises:
        InputError: the policy does not skip, or the validation part is empty.
    """
    from classifiers.errors import InputError

    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    if policy is None or not policy.skips:
        raise InputError(f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out")
    if not data.val:
        raise InputError(f"{asked} is solved on the validation part, which is empty: set data.val to a share of the training videos")


def env_of(policy: GlancePolicy, classifier: Classifier, clips: ClipSource, env: EnvConfig) -> EnvConfig:
    """The environment that the policy acts in: its kind of action, and as many decisions as its glances make."""
    from agents.inference import decisions

    video_div = env.video_div
    if classifier.architecture.head == "mean":
        video_div = decisions(classifier, policy, clips.num_frames, clips.settings.num_glance_frames)
    looking, skipping = ("continuous", "continuous_skip") if policy.grid is None else ("grid", "skip")
    action = skipping if policy.skips else looking
    return replace(env, action=action, grid=policy.grid or env.grid, video_div=video_div)


if __name__ == "__main__":
    run_command(main, Evaluate, "evaluate")
