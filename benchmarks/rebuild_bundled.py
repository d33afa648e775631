"""Train a bundled classifier again from random weights: ``python -m benchmarks.rebuild_bundled task=track out=DIR``."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from adafocus_env.build import Split, build_features, choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.videos import DEFAULT_TASK, TASKS, TaskName, data_name, demo
from adafocus_env.settings import setting, settings
from agents.config.command import run_command
from agents.config.settings import DEVICE, SEEDS, ClassifierConfig, DataConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.pipeline.builders import Clips, build_split
from agents.pipeline.policy_training import train_classifier
from agents.policies.baselines import Oracle, Predictor, RandomPatch
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import refuse_if
from classifiers.model_zoo import ARCHITECTURES, BUNDLED

SPLITS: tuple[Split, Split] = ("train", "val")


@settings
class RebuildBundled:
    """`python -m benchmarks.rebuild_bundled`."""

    task: TaskName = setting(DEFAULT_TASK, "which demo videos")
    out: str = setting("", "folder of the classifier; empty: the package", path=True)
    seed: int = setting(0, "seed of all random numbers", ge=0, lt=SEEDS)
    device: str = setting("auto", DEVICE)
    workers: int = setting(2, "processes that render and decode", ge=1)
    stages: ClassifierConfig = setting(ClassifierConfig, "how it is trained")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        yield "stages.finetune", "bundled classifiers are trained by stages 0 and 1 only; leave it out"


def main(config: RebuildBundled) -> None:
    """Train the classifier of a task in stages 0 and 1, evaluate it on the validation split and save it."""
    task, name = TASKS[config.task], data_name(config.task)
    refuse_if(not config.out and name not in BUNDLED, f"out is missing: no classifier is bundled for task={config.task}; set out=DIR")
    out = Path(config.out) if config.out else BUNDLED[name]
    with Display() as display, tempfile.TemporaryDirectory() as folder:
        network = replace(ARCHITECTURES["small"], patch_size=task.patch_size)
        data = DataConfig(workers=config.workers)
        videos = demo(task.classifier_training_task, num_workers=config.workers)
        train, val = (build_split(videos, split, data, network.size, display) for split in SPLITS)
        with RunDir.open(folder, asdict(config), force=False) as directory:
            classifier = train_classifier(
                directory, network, Clips(videos, train, val, val), config.stages, display,
                device=choose_device(config.device), seed=config.seed,
            )  # fmt: skip
        metrics = measure(classifier, build_split(demo(task, num_workers=config.workers), "val", data, network.size, display), config.seed)
        checkpoint.save(classifier, out, data=name, metrics=metrics, command=f"python -m benchmarks.rebuild_bundled task={config.task}")
        display.say(f"saved to {out}: {', '.join(f'{key} {value:.1%}' for key, value in metrics.items())}")


def measure(classifier: Classifier, clips: ClipSource, seed: int) -> dict[str, float]:
    """Return the top-1 accuracy on the validation clips with random patches, and with the patches of the oracle."""
    features = build_features(classifier, clips, bank=False)
    policies: dict[str, Predictor] = {"random": RandomPatch(features.action, seed), "oracle": Oracle(features)}
    return {f"val_top1_{name}": float(evaluate_policy(features, policy).correct.mean()) for name, policy in policies.items()}


if __name__ == "__main__":
    run_command(main, RebuildBundled, "rebuild_bundled", config_package="benchmarks.configs")
