"""The implementation of `python -m agents.train_ppo` and `python -m agents.train`."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch

from adafocus_env.cache_dir import cache_folder, exclusive
from adafocus_env.clips.stream import StreamingClips
from agents.config.settings import ClassifierConfig, EnvConfig, TrainPPO, TrainStages
from agents.pipeline.builders import Clips
from agents.pipeline.driver import StageDriver, patch_score
from agents.pipeline.training_run import TrainingRun
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers import checkpoint
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import refuse_if


def train_and_report(path: str | Path, config: TrainPPO) -> None:
    """Train a policy in the run directory ``path``, or resume its training; evaluate the policy on the test clips.

    Raises:
        InputError: If a setting, the data or the directory cannot be used.
    """
    with TrainingRun.open(path, config) as run:
        if run.show_if_finished():
            return
        clips = run.clips()
        classifier = trained_classifier(run, clips)
        start = time.perf_counter()
        policy = run.train_policy(classifier, clips)
        run.finish(classifier, policy, clips, start)


TRAINING = "training"
"""Subfolder of a cached classifier with the run directory of its training."""


def trained_classifier(run: TrainingRun, clips: Clips) -> Classifier:
    """Return the given classifier, or the classifier that is cached for the architecture and the clips.

    If no classifier is given or cached, train one. An interrupted training resumes with the next run on the same clips.

    Raises:
        InputError: If a classifier must be trained although the clips are resampled every epoch, or if the cache cannot be written.
        Stopped: If the user asked to stop; everything is saved.
    """
    given, config, display = run.classifier_or_architecture, cast(TrainPPO, run.config), run.display
    if isinstance(given, Classifier):
        return given
    refuse_if(
        isinstance(clips.train, StreamingClips),
        "data.views=resample needs a trained classifier: train one with python -m agents.train_stages, and give it as classifier=DIR",
    )
    origin = {
        "architecture": asdict(given), "classes": clips.data.classes, "clips": clips.train.fingerprint,
        "stages": {stage: settings for stage, settings in asdict(config.stages).items() if stage != "finetune"},
        "video_div": config.env.video_div,
    }  # fmt: skip
    folder = cache_folder("classifiers") / hashlib.sha256(json.dumps(list(origin.values())).encode()).hexdigest()[:16]
    with exclusive(folder.with_suffix(".lock"), f"the classifier in {folder}"):
        if (folder / checkpoint.CARD).exists():
            display.say(f"classifier: the one trained before on this data set ({folder})")
        else:
            display.say("classifier: none fits this data set; stages 0 and 1 train one now, and it is cached for the next run")
            with RunDir.open(folder / TRAINING, origin, force=config.force) as directory:
                classifier = train_classifier(
                    directory, given, clips, config.stages, display, device=run.device, video_div=config.env.video_div
                )
            checkpoint.save(classifier, folder, data=clips.data.name)
        shutil.rmtree(RunDir(folder / TRAINING).checkpoints, ignore_errors=True)  # larger than the classifier
    return checkpoint.load(folder, run.device)


def train_classifier(
    directory: RunDir,
    architecture: Architecture,
    clips: Clips,
    stages: ClassifierConfig,
    display: Display,
    *,
    device: torch.device,
    seed: int = 0,
    video_div: int | None = None,
) -> Classifier:
    """Run stages 0 and 1, or resume them; return the frozen classifier after the last epoch.

    Args:
        directory: Run directory of the training.
        architecture: The architecture to train.
        clips: The clips; validation clips are read only once, at the end.
        stages: Settings of the stages.
        display: Shows progress.
        device: Device of the training.
        seed: Seed of all random numbers. A cached classifier has seed 0, so that runs with different seeds share it.
        video_div: Number of decisions per video, for a head that averages; see `adafocus_env.features.live.count_steps`.

    Raises:
        Stopped: If the user asked to stop; everything is saved.
    """
    env = EnvConfig(video_div=video_div)
    config = TrainStages(seed=seed, device=str(device), last=1, stages=stages, env=env)
    run = TrainingRun(directory, config, display)
    run.classifier_or_architecture = architecture
    driver = StageDriver(run, replace(clips, val=None), config, reseed=False)
    driver.run()
    if clips.val is not None:
        top1, _ = patch_score(driver.classifier, None, clips.val, env, seed)
        display.say(f"stage 1 ended: {top1:.1%} of the validation clips right with random patches")
    return driver.classifier
