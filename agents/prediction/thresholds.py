"""The threshold on P(skip) for a budget, solved on the validation split of the run."""

from __future__ import annotations

from dataclasses import replace

from adafocus_env.dataset_registry import build_data
from adafocus_env.videos.dataset import with_classes
from agents.config.policy import EnvConfig
from agents.config.settings import DataConfig, Predict
from agents.evaluation.budgets import requested_keep, set_threshold
from agents.pipeline.builders import build_split, features_of, in_order_of
from agents.prediction.predictor import Predictor
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.errors import refuse_if


def solve_budget(predictor: Predictor, config: Predict, display: Display) -> str:
    """Set the threshold of a predictor's policy for ``budget`` or ``keep``; return a line about it.

    Raises:
        InputError: The policy does not skip, the run has no validation split, or the budget is out of range.
    """
    policy, classifier = predictor.policy, predictor.classifier
    asked = f"budget={config.budget}" if config.budget is not None else f"keep={config.keep}"
    refuse_if(not policy.skips, f"{asked} is for policies that skip frames; train one with ppo=skip, or leave it out")
    share = requested_keep(config.budget, config.keep, predictor.flops())
    of_run = DataConfig(**RunDir(config.run).config()["data"])
    data = with_classes(build_data(of_run), classifier.classes)
    refuse_if(not data.val, f"{asked} is solved on the validation split, and run={config.run} has none; leave it out")
    env = replace(EnvConfig(), action="skip" if policy.grid else "continuous_skip", grid=policy.grid or EnvConfig().grid, bank=False)
    val = build_split(data, "val", in_order_of(of_run, classifier.clip_format), classifier.architecture.size, display)
    return set_threshold(policy, features_of(classifier, val, env), share)
