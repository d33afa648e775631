"""Settings of the commands: one class per command, and (imported here) the groups of settings that they share.

`configs/` holds what differs from the defaults. A command's key is the name of a setting, below that of its group: ``env.grid``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import ClassVar, Literal

from adafocus_env.dataset_registry import DataSettings as DataConfig
from adafocus_env.settings import ActionName, NumberFormat, declared_in, setting, settings
from agents.config.classifier import ArchitectureConfig, ClassifierConfig, SupervisedConfig, is_trained
from agents.config.end_to_end import EndToEndConfig
from agents.config.policy import BANK_IS_OFF, CELLS, NO_RL, AlgoConfig, EnvConfig, NetworkConfig
from agents.config.ppo import PPOConfig

__all__ = [
    "AlgoConfig", "ArchitectureConfig", "CheckDataset", "ClassifierConfig", "DataConfig", "EndToEndConfig", "EnvConfig", "Evaluate",
    "Export", "FillFeatureBank", "ImportCheckpoint", "JointConfig", "ListRuns", "NetworkConfig", "PPOConfig", "Predict", "Report",
    "SupervisedConfig", "Train", "TrainEndToEnd", "TrainPPO", "TrainStages", "Training", "Watch",
]  # fmt: skip

TRAINING = (
    "env.num_envs env.reward env.baseline env.full_information env.cost_weight env.cost_weight_rate env.target_keep env.target_gflops"
)
"""Settings of the environment that only stage 2 reads."""
SEEDS = 2**32  # seeds that NumPy takes
DEVICE = "auto, cpu, cuda or cuda:N"
NO_TRAINING_CLIPS = "it is about training clips, and none is read; leave it out"
PLUGIN = "a module of yours that is imported first (docs/extend.md)"


@settings
class Training:
    """What the training commands share."""

    run: str = setting("", "the run folder; empty: one named after data and seed", path=True)
    seed: int = setting(0, "of everything random", ge=0, lt=SEEDS)
    device: str = setting("auto", DEVICE)
    force: bool = setting(False, "start over in a run folder that exists")
    plugin: str = setting("", PLUGIN)
    log: list[Literal["tensorboard", "wandb"]] = setting(lambda: ["tensorboard"], "where curves are drawn besides metrics.jsonl")
    data: DataConfig = setting(DataConfig, "which videos, and the clips that are sampled from them")
    classifier: str = setting("auto", "auto, a bundled classifier, an architecture, or the folder of a checkpoint", path=True)
    patch_size: int = setting(0, "P, height and width of a patch; 0: the architecture's", unit="pixels", ge=0)
    architecture: ArchitectureConfig = setting(ArchitectureConfig, "what differs from the architecture that classifier names")
    policy: str = setting("", "folder of a policy to start from; empty: a new one", path=True)
    env: EnvConfig = setting(EnvConfig, "the environment that the policy learns in")
    network: NetworkConfig = setting(NetworkConfig, "the policy network")


@settings
class TrainPPO(Training):
    """`python -m agents.train_ppo`."""

    ppo: PPOConfig = setting(PPOConfig, "the algorithm")
    stages: ClassifierConfig = setting(ClassifierConfig, "how a classifier is trained where there is none for these videos")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        yield "stages.finetune", "stage 3 is that of python -m agents.train_stages; leave it out, or use that command"
        if is_trained(self):
            advice = "leave it out, or start from an architecture (classifier=small, …)"
            yield "stages", f"classifier={self.classifier} is trained already; {advice}"


@settings
class Train(TrainPPO):
    """`python -m agents.train`."""

    algo: AlgoConfig = setting(AlgoConfig, "the algorithm; with PPO, the keys of ppo")


@settings
class JointConfig:
    """The joint rounds of stages 2 and 3; null: as in the single pass."""

    patience: int = setting(1, "rounds without improvement on the validation split that end the training", unit="rounds", ge=1)
    total_steps: int | None = setting(None, "environment steps of stage 2 in a round", ge=1)
    policy_learning_rate: float | None = setting(None, "of stage 2", gt=0, allow_inf_nan=False)
    epochs: int | None = setting(None, "of stage 3 in a round", ge=1)
    learning_rate: float | None = setting(None, "of the focuser in stage 3; 0: it stays as it is", ge=0, allow_inf_nan=False)
    head_learning_rate: float | None = setting(None, "of the head in stage 3", gt=0, allow_inf_nan=False)


@settings
class TrainStages(Train):
    """`python -m agents.train_stages`."""

    first: int = setting(0, "the first stage to run; stages from 1 on need a trained classifier, stage 3 a trained policy", ge=0, le=3)
    last: int = setting(3, "the last stage to run", ge=0, le=3)
    rounds: int = setting(0, "rounds of stages 2 and 3 after the single pass, at most", ge=0)
    joint: JointConfig = setting(JointConfig, "settings of these rounds")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        stages = f"first={self.first} last={self.last}"
        if self.first == self.last == 2:
            yield "stages", f"stage 2 alone is run ({stages}); leave it out, or choose other stages"
        if self.first > 0:
            yield "stages.glancer stages.focuser", f"stage 0 is not run (first={self.first}); leave it out, or set first=0"
        if not self.first <= 1 <= self.last:
            yield "stages.random_patches", f"stage 1 is not run ({stages}); leave it out, or choose other stages"
        if self.last < 3:
            yield "stages.finetune", f"stage 3 is not run (last={self.last}); leave it out, or set last=3"
        if not (self.first <= 2 <= self.last or self.rounds):
            yield f"ppo algo network {TRAINING}", f"stage 2 is not run ({stages}); leave it out, or choose other stages"
        yield "algo.total_steps algo.validate_every algo.save_every", "stage 2 learns by PPO or a subclass; set the keys of ppo"
        if self.last < 2:
            yield "policy", f"no stage from 0 to last={self.last} uses a policy; leave it out, or set last=3"
        if not self.rounds:
            yield "joint", "there are no joint rounds; set rounds, or leave it out"
        if self.rounds == 1 or self.data.val == 0:
            yield "joint.patience", "it compares rounds on the validation split; set rounds=2 or more and data.val, or leave it out"
        for names, theirs in (("ppo.total_steps ppo.epochs", "total_steps"), ("ppo.learning_rate", "policy_learning_rate")):
            if self.first == 3 and getattr(self.joint, theirs) is not None:
                yield names, f"stage 2 is run in joint rounds alone (first=3), by joint.{theirs}; set that"


@settings
class TrainEndToEnd(Training):
    """`python -m agents.train_end_to_end`."""

    freeze: bool = setting(False, "train the policy alone; the classifier, which must be trained, stays as it is")
    learning: EndToEndConfig = setting(EndToEndConfig, "how they are trained")

    elsewhere: ClassVar[Mapping[str, str]] = {
        "ppo": f"{NO_RL}; set the keys of learning, or use python -m agents.train_ppo",
        "algo": f"{NO_RL}; set the keys of learning, or use python -m agents.train",
        "stages": "end-to-end training has one stage; set the keys of learning, or use python -m agents.train_stages",
    }


@settings
class Evaluate:
    """`python -m agents.evaluate`."""

    run: str = setting("", "a finished run folder; what else is given replaces what the run was made with", path=True)
    classifier: str = setting("auto", "auto, a bundled name or the folder of a checkpoint, where there is no run", path=True)
    policy: str = setting("", "folder of a policy, where there is no run", path=True)
    plugin: str = setting("", PLUGIN)
    data: DataConfig = setting(DataConfig, "which videos; by default the run's")
    further: bool = setting(False, "evaluate on the further clips of the demo videos, which no run reads, instead of the test clips")
    grid: int = declared_in(EnvConfig, "grid")
    video_div: int | None = declared_in(EnvConfig, "video_div")
    skipped: Literal["zeros", "last", "none"] = declared_in(EnvConfig, "skipped")
    budget: float | None = setting(None, "cost of a video that a policy which skips must meet", unit="GFLOPs", gt=0, allow_inf_nan=False)
    keep: float | None = setting(None, "share of frames with a patch that a policy which skips must meet", gt=0, le=1)
    exit: float | None = setting(None, "p of a conditional exit: after step k a share of the clips in proportion to p^k leaves",
        gt=0, allow_inf_nan=False)
    exit_confidence: Literal["softmax", "score"] = setting(
        "softmax", "what decides who leaves: the highest softmax score, or the highest score itself, as AdaFocusV2 publishes it"
    )
    bank: bool | str = declared_in(EnvConfig, "bank")
    bank_dtype: NumberFormat = declared_in(EnvConfig, "bank_dtype")
    bank_gib: float | None = declared_in(EnvConfig, "bank_gib")
    precision: NumberFormat = declared_in(EnvConfig, "precision")
    compile: bool = declared_in(EnvConfig, "compile")
    seed: int = setting(0, "of the random baselines", ge=0, lt=SEEDS)
    device: str = setting("auto", DEVICE)
    out: str = setting("", "folder for result.json and the plots; empty: the table is only printed", path=True)
    typed: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # what was typed, by key: not a setting

    @property
    def complete(self) -> bool:
        """Whether all settings are here; those of a run are read later."""
        return not self.run

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        yield from exit_without_effect(self.exit)
        if self.run:
            yield "classifier policy", f"run={self.run} has a classifier and a policy; leave it out, or leave run out and give both"
            advice = "leave it out, or give classifier and policy instead of run"
            yield "grid video_div", f"run={self.run} was made with another one or the same; {advice}"
            return
        yield "data.flip data.views" if self.exit is not None else "data.flip data.views data.sampling", NO_TRAINING_CLIPS
        if self.keep is None and self.budget is None:
            yield "data.val", "nothing is chosen on the validation split without keep or budget; leave it out"
        if self.bank is False:
            yield "bank_dtype bank_gib", BANK_IS_OFF


def exit_without_effect(exit: float | None) -> Iterator[tuple[str, str]]:
    """Yield the settings that a command does not read with its exit, or without one."""
    if exit is None:
        yield "exit_confidence", "there is no conditional exit; set exit, or leave it out"
    else:
        yield "budget keep", f"exit={exit} ends videos early, with the policy's own threshold; leave one of them out"


@settings
class Predict:
    """`python -m agents.predict`."""

    run: str = setting("", "a finished run folder", path=True)
    classifier: str = setting("", "a bundled name or the folder of a checkpoint, where there is no run", path=True)
    policy: str = setting("", "folder of a policy; empty: the run's, or the one beside the classifier", path=True)
    source: str = setting(
        ..., "a video, a folder of videos or frames, a pattern, or - for a list of paths on standard input", path=True, min_length=1
    )
    out: str = setting("", "folder for the results; empty: one named after source, in predictions", path=True)
    save: list[Literal["json", "sheet", "video"]] | None = setting(
        None, "json (predictions.jsonl, written in any case), sheet (PNG), video (MP4); null: all for one file, json for many"
    )
    force: bool = setting(False, "replace the predictions in out, or write into a folder that holds other files")
    window: float | None = setting(None, "length of the windows of a long video, each of which is classified; null: the whole video",
        unit="s", gt=0, allow_inf_nan=False)
    stride: float | None = setting(None, "from one window to the next; null: window", unit="s", gt=0, allow_inf_nan=False)
    budget: float | None = declared_in(Evaluate, "budget")
    keep: float | None = declared_in(Evaluate, "keep")
    exit: float | None = declared_in(Evaluate, "exit")
    exit_confidence: Literal["softmax", "score"] = declared_in(Evaluate, "exit_confidence")
    classes: str = setting("", "a text file with the names of the classes, one a line; empty: the classifier's", path=True)
    fps: float = setting(25.0, "frame rate of folders of frames", unit="frames per second", gt=0, allow_inf_nan=False)
    workers: int = setting(2, "processes that decode", ge=1)
    batch_size: int = setting(8, "windows that the networks see at a time", ge=1)
    time_limit: float = setting(60.0, "after which a process that decodes is stopped", unit="s", gt=0, allow_inf_nan=False)
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        yield from exit_without_effect(self.exit)
        if self.run:
            yield "classifier", f"run={self.run} has a classifier; leave one of them out"
        else:
            yield "budget keep", "it is solved on the validation split of a run; give run=DIR instead of classifier and policy"
        if self.window is None:
            yield "stride", "it is between windows, and the whole video is one; set window, or leave it out"


@settings
class Watch:
    """`python -m agents.watch`."""

    run: str = setting("", "a finished run folder, whose test clips are played", path=True)
    id: str = setting("", "the id of an environment, such as AdaFocus-v1 (docs/tasks.md), where there is no run")
    policy: str = setting(
        "", "a baseline (random, centre, saliency, oracle, …), bundled, or the folder of a policy; empty: the run's, or bundled", path=True
    )
    episodes: int = setting(4, "clips that are played", ge=1)
    clips: list[int] | None = setting(None, "their numbers among the test clips; null: random ones")
    seed: int = setting(0, "of the choice of clips, and of random patches", ge=0, lt=SEEDS)
    at_once: int = setting(4, "episodes side by side; the others follow in sequence", ge=1)
    fps: float = setting(3.0, "speed", unit="frames per second", gt=0, le=50, allow_inf_nan=False)
    side: int = setting(288, "frames are enlarged by a whole number to at least this height and width", unit="pixels", ge=192)
    out: str = setting("", "a file that ends in .gif or .mp4; empty: a window, or without a display RUN/watch.gif or ID.gif", path=True)
    force: bool = setting(False, "replace the file")
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if self.clips is not None:
            yield "episodes", f"clips={self.clips} says which are played; leave one of them out"


@settings
class Export:
    """`python -m agents.export`."""

    run: str = declared_in(Predict, "run")
    classifier: str = declared_in(Predict, "classifier")
    policy: str = declared_in(Predict, "policy")
    format: Literal["folder", "onnx"] = setting("folder", "folder: for the commands of this package; onnx: for ONNX Runtime")
    out: str = setting("", "folder to write; empty: exports/NAME-FORMAT, named after the run or the classifier", path=True)
    force: bool = setting(False, "replace the export in a folder that exists")
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if self.run:
            yield "classifier", f"run={self.run} has a classifier; leave one of them out"


@settings
class FillFeatureBank:
    """`python -m agents.fill_feature_bank`."""

    classifier: str = setting(..., "a bundled name or the folder of a checkpoint", path=True)
    out: str = setting(..., "the folder: give it to other commands as env.bank=DIR (agents.evaluate: bank=DIR)", path=True, min_length=1)
    data: DataConfig = setting(DataConfig, "which videos")
    split: Literal["train", "val", "test", "all"] = setting("all", "whose clips")
    action: ActionName = setting("grid", "continuous ones store glances only")
    grid: int = declared_in(EnvConfig, "grid")
    video_div: int | None = declared_in(EnvConfig, "video_div")
    bank_dtype: NumberFormat = declared_in(EnvConfig, "bank_dtype")
    shard: str = setting("0/1", "I/N: the share of the work that is done now, the I-th of N, from 0")
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if self.split == "test":
            yield "data.val", "split=test has none of the training videos; leave it out"
        if self.split in ("val", "test"):
            yield "data.flip data.views data.sampling", f"it is about training clips, and split={self.split} has none; leave it out"
        if self.action not in CELLS:
            yield "grid", f"action={self.action} has no cells; leave it out"


@settings
class CheckDataset:
    """`python -m agents.check_dataset`."""

    data: DataConfig = setting(DataConfig, "which videos")
    workers: int | None = setting(None, "processes that decode; null: one for each processor", ge=1)
    out: str = setting("", "a JSON file for everything that was found", path=True)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        yield "data.workers", "set workers"
        names = "data.glance_frames data.flip data.views data.sampling data.order"
        yield names, "one test clip of each video is decoded; leave it out"


@settings
class ImportCheckpoint:
    """`python -m agents.import_checkpoint`."""

    file: str = setting(..., "the authors' checkpoint, of any stage and family, also of AdaFocusV2", path=True, min_length=1)
    out: str = setting(..., "the folder to write: classifier=DIR and, from stage 2 on, policy=DIR", path=True, min_length=1)
    patch_size: int | None = setting(
        None, "height and width of a patch, not in the file; null: the one in its name, or the smallest published", unit="pixels", ge=1
    )
    classes: str | None = setting(None, "a text file with the names of the classes, one a line; null: numbers", path=True)
    family: str | None = setting(None, "a name in `agents.released.families_v2.FAMILIES`: refuses files of the others; null: any")


@settings
class ListRuns:
    """`python -m agents.list_runs`."""

    root: str = setting("runs", "the folder; run folders at any depth below it are found", path=True)
    sort: Literal["run", "learned", "date"] = setting("run", "by folder, the best first, or the newest first")
    json: bool = setting(False, "a list for programs instead of tables")


@settings
class Report:
    """`python -m agents.report`."""

    run: str = setting(..., "a finished run folder, or a pattern such as 'runs/sweep/seed=*'", path=True, min_length=1)
    out: str = setting("", "the HTML file; empty: report.html in the run folder, or beside several", path=True)
    clips: int = setting(3, "largest wins and as many losses against random patches that are shown; 0: no video is read", ge=0, le=20)
    force: bool = setting(False, "replace a page that exists")
    plugin: str = setting("", PLUGIN)
