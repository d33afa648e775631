"""What the driver of the stages, its log lines, curves, display and checkpoints take on top of the bare loops."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from stable_baselines3.common.logger import configure

from adafocus_env.build import choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.videos import demo
from agents.config.command import compose_config
from agents.config.settings import TrainStages
from agents.pipeline.builders import Clips, features_of
from agents.pipeline.driver import StageDriver
from agents.pipeline.training_run import TrainingRun
from agents.policies.checkpoint import save_policy
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.policies.sb3 import ClipReferenceExtractor
from agents.rl.environment import make_environment
from agents.rl.ppo import new_ppo
from agents.runs.progress import Display
from agents.supervised.finetune import finetune
from agents.supervised.random_patches import train_on_random_patches
from agents.supervised.warm_up import warm_up
from benchmarks import workload
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_most
from classifiers import checkpoint
from classifiers.classifier import Classifier

EPOCHS, ROWS = 4, 64
LIMIT = 1.03

STAGES = {
    "stage 0, glancer": ("first=0", "last=0", "stages.focuser.epochs=0"),
    "stage 0, focuser": ("first=0", "last=0", "stages.glancer.epochs=0"),
    "stage 1": ("first=1", "last=1"),
    "stage 2": ("first=2", "last=2"),
    "stage 3": ("first=3", "last=3"),
}


def measure(settings: Settings) -> Iterator[Section]:
    """Every stage by itself, on the clips of the demo, with its bank on the disk and warm."""
    rounds, frames, updates = (1, 4, 1) if settings.quick else (settings.rounds, 8, 50)
    clips = workload.demo_clips(settings, "train", frames)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, clips, updates, Path(folder))
        acts: dict[str, Callable[[], object]] = {}
        for name in STAGES:
            acts[name] = bench.driven(name, rounds + 1)
            acts[f"{name}: bare"] = bench.bare(name)
        note = (
            f"{len(clips)} clips of {frames} frames; {EPOCHS} epochs or {updates} updates, no validation part; with a live display of "
            "80 columns and TensorBoard. Opening the run folder and the evaluation at its end are left out."
        )
        section = Section("Stages under the driver", note)
        section.times = interleaved(acts, rounds)
        for name in STAGES:
            section.ratio(name, f"{name}: bare", aim=None if settings.quick else at_most(LIMIT))
        yield section


class Bench:
    """Stages on the same clips from the same networks.

    Args:
        settings: size and device.
        clips: to train on.
        updates: of stage 2.
        folder: for run folders and the bank.
    """

    def __init__(self, settings: Settings, clips: ClipSource, updates: int, folder: Path) -> None:
        self._clips, self._updates, self._folder = clips, updates, folder
        self._classifier = checkpoint.load("demo", choose_device(settings.device))
        self._policy = PolicyNetwork(PolicyArchitecture((32, 8, 8)), workload.GRID).to(self._classifier.device).eval().requires_grad_(False)
        save_policy(self._policy, folder / "policy", {"classifier": self._classifier.fingerprint()})

    def driven(self, stage: str, times: int) -> Callable[[], object]:
        """An act: the driver runs the stage in a new run folder; those for ``times`` acts are made now."""
        drivers = iter([self._driver(stage, number) for number in range(times)])
        return lambda: next(drivers)()

    def bare(self, stage: str) -> Callable[[], object]:
        """An act: the loop of the stage, and nothing else."""
        config = self._config(stage)
        stages, clips = config.stages, self._clips
        loops: dict[str, Callable[[Classifier], Iterator[object]]] = {
            "stage 0, glancer": lambda network: warm_up(network, "glancer", clips, stages.glancer, seed=0),
            "stage 0, focuser": lambda network: warm_up(network, "focuser", clips, stages.focuser, seed=0),
            "stage 1": lambda network: train_on_random_patches(network, clips, stages.random_patches, seed=0),
            "stage 3": lambda network: finetune(network, self._policy, clips, stages.finetune, seed=0),
        }
        if stage == "stage 2":
            return lambda: self._learn(config)
        return lambda: list(loops[stage](copy.deepcopy(self._classifier)))

    def _config(self, stage: str) -> TrainStages:
        stages = ("glancer", "focuser", "random_patches", "finetune")
        epochs = [f"stages.{name}.epochs={EPOCHS}" for name in stages if f"stages.{name}.epochs=0" not in STAGES[stage]]
        steps = self._clips.num_frames
        updates = [f"ppo.total_steps={self._updates * ROWS * steps}", f"ppo.n_steps={steps}", f"ppo.batch_size={16 * steps}"]
        bank = [f"env.bank={self._folder / 'bank'}", f"env.num_envs={ROWS}", f"data.num_frames={steps}"]
        config = compose_config(TrainStages, "train_stages", [*epochs, *updates, *bank, *STAGES[stage]])
        return replace(config, device=str(self._classifier.device), policy=str(self._folder / "policy") if stage == "stage 3" else "")

    def _driver(self, stage: str, number: int) -> Callable[[], object]:
        config = self._config(stage)
        run = TrainingRun.open(self._folder / f"{stage} {number}", config)
        run.display = Display(Console(file=io.StringIO(), force_terminal=True, width=80))
        run.classifier_or_architecture = self._classifier.architecture if config.first == 0 else copy.deepcopy(self._classifier)
        clips = Clips(demo(), self._clips, None, self._clips)

        def act() -> None:
            with run.display:
                StageDriver(run, clips, config).run()
            run._resources.close()

        return act

    def _learn(self, config: TrainStages) -> None:
        features = features_of(self._classifier, self._clips, config.env)
        architecture = PolicyArchitecture.from_config(features.map_shape, config.network)
        model = new_ppo(make_environment(features, config.env), features, config.ppo, architecture, 0)
        model.set_logger(configure(None, []))
        extractor = model.policy.features_extractor
        assert isinstance(extractor, ClipReferenceExtractor)
        extractor.bind(features)
        model.learn(config.ppo.total_steps)


if __name__ == "__main__":
    main(["driver"])
