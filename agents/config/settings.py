"""Settings of the commands, one class per command. The commands share groups of settings, which are imported here.

The files in `configs/` set values that differ from the defaults. A key consists of the names of group and setting, such as ``env.grid``.
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
SEEDS = 2**32  # NumPy's limit of seeds
DEVICE = "auto, cpu, cuda or cuda:N"
NO_TRAINING_CLIPS = "it applies to training clips, and none are read; leave it out"
PLUGIN = "a user-defined module to import first (docs/extend.md)"


@settings
class Training:
    """Settings that all training commands share."""

    run: str = setting("", "the run folder; empty: a folder named after data and seed", path=True)
    seed: int = setting(0, "seed of all random numbers", ge=0, lt=SEEDS)
    device: str = setting("auto", DEVICE)
    force: bool = setting(False, "start over in an existing run folder")
    plugin: str = setting("", PLUGIN)
    log: list[Literal["tensorboard", "wandb"]] = setting(lambda: ["tensorboard"], "loggers of curves, in addition to metrics.jsonl")
    data: DataConfig = setting(DataConfig, "the videos, and the clips that are sampled from them")
    classifier: str = setting("auto", "auto, a bundled classifier, an architecture, or the folder of a checkpoint", path=True)
    patch_size: int = setting(0, "P, height and width of a patch; 0: as in the architecture", unit="pixels", ge=0)
    architecture: ArchitectureConfig = setting(ArchitectureConfig, "overrides of the architecture that classifier names")
    policy: str = setting("", "folder of a policy to start from; empty: a new policy", path=True)
    env: EnvConfig = setting(EnvConfig, "the environment of the policy")
    network: NetworkConfig = setting(NetworkConfig, "the policy network")


@settings
class TrainPPO(Training):
    """`python -m agents.train_ppo`."""

    ppo: PPOConfig = setting(PPOConfig, "PPO, which trains the policy")
    stages: ClassifierConfig = setting(ClassifierConfig, "training of a classifier if there is none for the videos")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        yield "stages.finetune", "only python -m agents.train_stages runs stage 3; leave it out, or use that command"
        if is_trained(self):
            advice = "leave it out, or start from an architecture (classifier=small, …)"
            yield "stages", f"classifier={self.classifier} is already trained; {advice}"


@settings
class Train(TrainPPO):
    """`python -m agents.train`."""

    algo: AlgoConfig = setting(AlgoConfig, "the algorithm; with PPO, the keys of ppo")


@settings
class JointConfig:
    """The joint rounds of stages 2 and 3.

    If a setting is null, the joint rounds use the value that stage 2 or stage 3 had in the single pass before the rounds.
    """

    patience: int = setting(1, "number of rounds without improvement on the validation split that ends the training", unit="rounds", ge=1)
    total_steps: int | None = setting(None, "environment steps of stage 2 per round", ge=1)
    policy_learning_rate: float | None = setting(None, "learning rate of stage 2", gt=0, allow_inf_nan=False)
    epochs: int | None = setting(None, "epochs of stage 3 per round", ge=1)
    learning_rate: float | None = setting(None, "learning rate of the focuser in stage 3; 0: frozen", ge=0, allow_inf_nan=False)
    head_learning_rate: float | None = setting(None, "learning rate of the head in stage 3", gt=0, allow_inf_nan=False)


@settings
class TrainStages(Train):
    """`python -m agents.train_stages`."""

    first: int = setting(0, "the first stage to run; stages 1 to 3 need a trained classifier, stage 3 also a trained policy", ge=0, le=3)
    last: int = setting(3, "the last stage to run", ge=0, le=3)
    rounds: int = setting(0, "maximum number of rounds of stages 2 and 3 after the single pass", ge=0)
    joint: JointConfig = setting(JointConfig, "the joint rounds of stages 2 and 3")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        stages = f"first={self.first} last={self.last}"
        if self.first == self.last == 2:
            yield "stages", f"only stage 2 is run ({stages}); leave it out, or choose other stages"
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
                yield names, f"stage 2 is run only in joint rounds (first=3), which read joint.{theirs}; set that"


@settings
class TrainEndToEnd(Training):
    """`python -m agents.train_end_to_end`."""

    freeze: bool = setting(False, "train only the policy, on a frozen trained classifier")
    learning: EndToEndConfig = setting(EndToEndConfig, "how the networks are trained together")

    elsewhere: ClassVar[Mapping[str, str]] = {
        "ppo": f"{NO_RL}; set the keys of learning, or use python -m agents.train_ppo",
        "algo": f"{NO_RL}; set the keys of learning, or use python -m agents.train",
        "stages": "end-to-end training has one stage; set the keys of learning, or use python -m agents.train_stages",
    }


@settings
class Evaluate:
    """`python -m agents.evaluate`."""

    run: str = setting("", "a finished run folder; other settings override those of the run", path=True)
    classifier: str = setting("auto", "without run: auto, a bundled name, or the folder of a checkpoint", path=True)
    policy: str = setting("", "without run: folder of a policy", path=True)
    plugin: str = setting("", PLUGIN)
    data: DataConfig = setting(DataConfig, "the videos; by default those of the run")
    further: bool = setting(False, "use the further clips of the demo videos, which no run reads, instead of the test clips")
    grid: int = declared_in(EnvConfig, "grid")
    video_div: int | None = declared_in(EnvConfig, "video_div")
    skipped: Literal["zeros", "last", "none"] = declared_in(EnvConfig, "skipped")
    budget: float | None = setting(None, "target cost per video for a policy that skips", unit="GFLOPs", gt=0, allow_inf_nan=False)
    keep: float | None = setting(None, "target share of frames with a patch for a policy that skips", gt=0, le=1)
    exit: float | None = setting(None, "p of a conditional exit: the share of clips that exit after step k is proportional to p^k",
        gt=0, allow_inf_nan=False)
    exit_confidence: Literal["softmax", "score"] = setting(
        "softmax", "confidence for the exit: the highest softmax score, or the highest class score (published for AdaFocusV2)"
    )
    bank: bool | str = declared_in(EnvConfig, "bank")
    bank_dtype: NumberFormat = declared_in(EnvConfig, "bank_dtype")
    bank_gib: float | None = declared_in(EnvConfig, "bank_gib")
    precision: NumberFormat = declared_in(EnvConfig, "precision")
    compile: bool = declared_in(EnvConfig, "compile")
    seed: int = setting(0, "seed of the random baselines", ge=0, lt=SEEDS)
    device: str = setting("auto", DEVICE)
    out: str = setting("", "folder for result.json and the plots; empty: only print the table", path=True)
    typed: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # typed arguments by key; not a setting

    @property
    def complete(self) -> bool:
        """Whether all settings are known. (With ``run``, the settings of the run are read later.)"""
        return not self.run

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        yield from exit_without_effect(self.exit)
        if self.run:
            yield "classifier policy", f"run={self.run} has a classifier and a policy; leave it out, or leave run out and give both"
            advice = "leave it out, or give classifier and policy instead of run"
            yield "grid video_div", f"run={self.run} determines it; {advice}"
            return
        yield "data.flip data.views" if self.exit is not None else "data.flip data.views data.sampling", NO_TRAINING_CLIPS
        if self.keep is None and self.budget is None:
            yield "data.val", "nothing is chosen on the validation split without keep or budget; leave it out"
        if self.bank is False:
            yield "bank_dtype bank_gib", BANK_IS_OFF


def exit_without_effect(exit: float | None) -> Iterator[tuple[str, str]]:
    """Yield the settings that have no effect because the command has a conditional exit, or because it has no conditional exit."""
    if exit is None:
        yield "exit_confidence", "there is no conditional exit; set exit, or leave it out"
    else:
        yield "budget keep", f"exit={exit} ends videos early and uses the policy's threshold; leave one of them out"


@settings
class Predict:
    """`python -m agents.predict`."""

    run: str = setting("", "a finished run folder", path=True)
    classifier: str = setting("", "without run: a bundled name, or the folder of a checkpoint", path=True)
    policy: str = setting("", "folder of a policy; empty: the run's policy, or the policy in the classifier's folder", path=True)
    source: str = setting(
        ..., "a video, a folder of videos or frames, a pattern, or - for a list of paths on standard input", path=True, min_length=1
    )
    out: str = setting("", "folder for the results; empty: predictions/NAME, named after source", path=True)
    save: list[Literal["json", "sheet", "video"]] | None = setting(
        None, "json (predictions.jsonl, always written), sheet (PNG), video (MP4); null: all for a single file, otherwise json"
    )
    force: bool = setting(False, "replace the predictions in out, or write into a folder with other files")
    window: float | None = setting(None, "length of the windows of a video, each of which is classified; null: the whole video",
        unit="s", gt=0, allow_inf_nan=False)
    stride: float | None = setting(None, "time from the start of one window to the next; null: window", unit="s", gt=0, allow_inf_nan=False)
    budget: float | None = declared_in(Evaluate, "budget")
    keep: float | None = declared_in(Evaluate, "keep")
    exit: float | None = declared_in(Evaluate, "exit")
    exit_confidence: Literal["softmax", "score"] = declared_in(Evaluate, "exit_confidence")
    classes: str = setting("", "a text file with the names of the classes, one per line; empty: the names in the classifier", path=True)
    fps: float = setting(25.0, "frame rate of folders of frames", unit="frames per second", gt=0, allow_inf_nan=False)
    workers: int = setting(2, "processes that decode", ge=1)
    batch_size: int = setting(8, "windows per batch of the networks", ge=1)
    time_limit: float = setting(60.0, "time after which a decoding process is stopped", unit="s", gt=0, allow_inf_nan=False)
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        yield from exit_without_effect(self.exit)
        if self.run:
            yield "classifier", f"run={self.run} has a classifier; leave one of them out"
        else:
            yield "budget keep", "it is solved on the validation split of a run; give run=DIR instead of classifier and policy"
        if self.window is None:
            yield "stride", "the whole video is one window; set window, or leave it out"


@settings
class Watch:
    """`python -m agents.watch`."""

    run: str = setting("", "a finished run folder, whose test clips are played", path=True)
    id: str = setting("", "without run: the id of an environment, such as AdaFocus-v1 (docs/tasks.md)")
    policy: str = setting(
        "", "a baseline (random, centre, saliency, oracle, …), bundled, or the folder of a policy; empty: the run's policy, or bundled",
        path=True,
    )
    episodes: int = setting(4, "number of clips to play", ge=1)
    clips: list[int] | None = setting(None, "indices of the test clips to play; null: random clips")
    seed: int = setting(0, "seed of the choice of clips and of random patches", ge=0, lt=SEEDS)
    at_once: int = setting(4, "episodes side by side; the others follow in sequence", ge=1)
    fps: float = setting(3.0, "speed of the moving pictures", unit="frames per second", gt=0, le=50, allow_inf_nan=False)
    side: int = setting(288, "minimum height and width of frames, which are enlarged by an integer factor", unit="pixels", ge=192)
    out: str = setting("", "a file that ends in .gif or .mp4; empty: a window or, without a display, RUN/watch.gif or ID.gif", path=True)
    force: bool = setting(False, "replace the file")
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if self.clips is not None:
            yield "episodes", f"clips={self.clips} determines the clips; leave one of them out"


@settings
class Export:
    """`python -m agents.export`."""

    run: str = declared_in(Predict, "run")
    classifier: str = declared_in(Predict, "classifier")
    policy: str = declared_in(Predict, "policy")
    format: Literal["folder", "onnx"] = setting("folder", "folder: for the commands of this package; onnx: for ONNX Runtime")
    out: str = setting("", "folder to write; empty: exports/NAME-FORMAT, named after the run or the classifier", path=True)
    force: bool = setting(False, "replace the export in an existing folder")
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if self.run:
            yield "classifier", f"run={self.run} has a classifier; leave one of them out"


@settings
class FillFeatureBank:
    """`python -m agents.fill_feature_bank`."""

    classifier: str = setting(..., "a bundled name or the folder of a checkpoint", path=True)
    out: str = setting(..., "the folder: give it to other commands as env.bank=DIR (agents.evaluate: bank=DIR)", path=True, min_length=1)
    data: DataConfig = setting(DataConfig, "which videos, and the clips that are sampled from them")
    split: Literal["train", "val", "test", "all"] = setting("all", "the split whose clips are used")
    action: ActionName = setting("grid", "kind of action; for continuous actions, only glances are stored")
    grid: int = declared_in(EnvConfig, "grid")
    video_div: int | None = declared_in(EnvConfig, "video_div")
    bank_dtype: NumberFormat = declared_in(EnvConfig, "bank_dtype")
    shard: str = setting("0/1", "I/N: do the I-th of N shares of the work, counted from 0")
    device: str = setting("auto", DEVICE)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if self.split == "test":
            yield "data.val", "split=test has no training videos; leave it out"
        if self.split in ("val", "test"):
            yield "data.flip data.views data.sampling", f"it applies to training clips, and split={self.split} has none; leave it out"
        if self.action not in CELLS:
            yield "grid", f"action={self.action} has no cells; leave it out"


@settings
class CheckDataset:
    """`python -m agents.check_dataset`."""

    data: DataConfig = setting(DataConfig, "which videos, and the clips that are sampled from them")
    workers: int | None = setting(None, "number of decoding processes; null: one per processor", ge=1)
    out: str = setting("", "a JSON file for all findings", path=True)
    plugin: str = setting("", PLUGIN)

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        yield "data.workers", "set workers"
        names = "data.glance_frames data.flip data.views data.sampling data.order"
        yield names, "the check decodes one test clip per video; leave it out"


@settings
class ImportCheckpoint:
    """`python -m agents.import_checkpoint`."""

    file: str = setting(..., "the authors' checkpoint, of any stage and family, also of AdaFocusV2", path=True, min_length=1)
    out: str = setting(..., "the folder to write; use it as classifier=DIR and, from stage 2 on, as policy=DIR", path=True, min_length=1)
    patch_size: int | None = setting(
        None, "P, which the file does not contain; null: the size in its name, or the smallest published size", unit="pixels", ge=1
    )
    classes: str | None = setting(None, "a text file with the names of the classes, one per line; null: numbers", path=True)
    family: str | None = setting(None, "the required family, a name in `agents.released.families_v2.FAMILIES`; null: any")


@settings
class ListRuns:
    """`python -m agents.list_runs`."""

    root: str = setting("runs", "the folder, searched for run folders at any depth", path=True)
    sort: Literal["run", "learned", "date"] = setting("run", "order: by folder, best first, or newest first")
    json: bool = setting(False, "print JSON for programs instead of tables")


@settings
class Report:
    """`python -m agents.report`."""

    run: str = setting(..., "a finished run folder, or a pattern such as 'runs/sweep/seed=*'", path=True, min_length=1)
    out: str = setting("", "the HTML file; empty: report.html in the run folder, or in the parent folder of several runs", path=True)
    clips: int = setting(3, "number of wins and of losses against random patches to show, largest first; 0: read no videos", ge=0, le=20)
    force: bool = setting(False, "replace an existing page")
    plugin: str = setting("", PLUGIN)
