"""Thresholds for predictions: the threshold on P(skip) for a budget, and the thresholds of a conditional exit.

The threshold on P(skip) is computed on the validation split of a run. The thresholds of a conditional exit are fitted on training clips.
"""

from __future__ import annotations

from dataclasses import replace

from adafocus_env.classify import find_skipped
from adafocus_env.dataset_registry import build_data
from adafocus_env.settings import ActionName
from adafocus_env.videos.dataset import with_classes
from agents.config.policy import EnvConfig
from agents.config.settings import DataConfig, Predict
from agents.evaluation.budgets import requested_keep, set_threshold
from agents.evaluation.conditional_exit import ExitFit, ExitModel, ExitThresholds, exit_file
from agents.evaluation.inference import count_decisions
from agents.pipeline.builders import build_split, features_of, in_order_of
from agents.pipeline.exit_fitting import fit_exit
from agents.policies.networks import PolicyNetwork
from agents.prediction.predictor import Predictor
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.classifier import Classifier
from classifiers.errors import refuse_if


def solve_budget(predictor: Predictor, config: Predict, display: Display) -> str:
    """Set the threshold of the predictor's policy for ``budget`` or ``keep``. Return a text that states the threshold.

    Raises:
        InputError: If the policy does not skip, if the run has no validation split, or if the budget is out of range.
    """
    policy, classifier = predictor.policy, predictor.classifier
    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    refuse_if(
        not isinstance(policy, PolicyNetwork) or not policy.skips,
        f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out",
    )
    share = requested_keep(config.budget, config.keep, predictor.flops())
    of_run = DataConfig(**RunDir(config.run).config()["data"])
    data = with_classes(build_data(of_run), classifier.classes)
    refuse_if(not data.val, f"{asked} is solved on the validation split, and run={config.run} has none; leave it out")
    val = build_split(data, "val", in_order_of(of_run, classifier.clip_format), classifier.architecture.size, display)
    return set_threshold(policy, features_of(classifier, val, _env_of(predictor)), share)


def exit_model(classifier: Classifier, policy: PolicyNetwork, skipped: str) -> ExitModel:
    """Return the `ExitModel` of these networks, for clips in the classifier's format.

    Thresholds for predictions must be fitted for this model.

    Raises:
        InputError: If the classifier has a temporal shift.
    """
    frames, glances = classifier.clip_format.num_frames, classifier.clip_format.glance_frames
    return ExitModel.of(classifier, policy, frames, count_decisions(classifier, policy, frames, glances or frames), skipped=skipped)


def find_exit(predictor: Predictor, config: Predict, display: Display) -> ExitThresholds:
    """Return the thresholds of the requested conditional exit.

    If a run is given, the thresholds are fitted on its training clips. If no run is given, the thresholds are computed from the confidences
    that are stored for the policy.

    Raises:
        InputError: If there is no run and no confidences are stored, if the stored confidences were computed with another model, or if
            there are no training videos.
    """
    policy, classifier = predictor.policy, predictor.classifier
    model = exit_model(classifier, policy, predictor.skipped)
    folder = config.policy or (str(RunDir(config.run).checkpoints / "best") if config.run else config.classifier)
    if config.run:
        of_run = DataConfig(**RunDir(config.run).config()["data"])
        data = with_classes(build_data(of_run), classifier.classes)
        env = replace(_env_of(predictor), video_div=model.num_steps if classifier.architecture.averages_frames else None)
        of_run = in_order_of(of_run, classifier.clip_format)
        fit = fit_exit(classifier, getattr(policy, "trained", policy), folder, model, data, of_run, env, display)
    else:
        path = exit_file(folder)
        refuse_if(
            not path.is_file(),
            f"exit={config.exit} needs thresholds fitted on training clips, and {path} does not exist; fit them once: "
            f"python -m agents.evaluate classifier={config.classifier} policy={folder} exit={config.exit} data=…, or give run=DIR",
        )
        fit = ExitFit.load(path)
        fit.model.check(model)
    return fit.thresholds(config.exit or 0.0, config.exit_confidence)


def _env_of(predictor: Predictor) -> EnvConfig:
    """Return the environment settings of the predictor's policy. Features are computed live, without a bank."""
    policy = predictor.policy
    with_grid: ActionName = "skip" if policy.skips else "grid"
    without: ActionName = "continuous_skip" if policy.skips else "interpolated" if policy.interpolated else "continuous"
    grid, env = policy.grid, EnvConfig()
    return replace(env, action=with_grid if grid else without, grid=grid or env.grid, bank=False, skipped=find_skipped(predictor.skipped))
