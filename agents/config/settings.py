"""What a user may set: one dataclass a command. `configs/` holds the values; an unknown key or a wrong type is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Which videos, and the clips that are drawn from them.

    Attributes:
        name: demo, folder, or a published set: actnet, fcvid, minik, sthv1, sthv2.
        task: which demo videos: easy, normal, hard, sparse or memory; see docs/tasks.md.
        root: the folder of videos, or of the lists of a published set.
        source: frames (extracted), videos (raw) or auto, of a published set; see `adafocus_env.videos.published.published`.
        val: share of the training videos that choices are made on.
        test: share of the videos that is the test part, where the folder has no train and test parts of its own.
        num_frames: T, frames of a clip.
        glance_frames: the glancer's frames, where they are sampled separately (Something-Something); 0: the same as the focuser's.
        views: clips drawn from each training video; resample: new ones in every epoch, sampled with the run's seed and not stored.
        sampling: how the frames of training clips are drawn: segments or released; see `adafocus_env.videos.frame_sampling`.
        workers: processes that render and decode.
    """

    name: str = "demo"
    task: str = "normal"
    root: str = ""
    source: str = "auto"
    val: float = 0.1
    test: float = 0.2
    num_frames: int = 8
    glance_frames: int = 0
    views: int | str = 1
    sampling: str = "segments"
    workers: int = 2

    @property
    def label(self) -> str:
        """What runs on these videos are called after: the data set, and the task of demo videos where it is not the normal one."""
        return self.name if self.task == "normal" else f"{self.name}-{self.task}"

    @property
    def title(self) -> str:
        """What stands above a table of results: the label, and the folder of the videos where there is one."""
        return f"{self.label} ({self.root})" if self.root else self.label


@dataclass
class EnvConfig:
    """The environment that the policy learns in; see `adafocus_env.env.AdaFocusEnv`.

    Attributes:
        action: grid, continuous, skip (the grid and an action that looks at no patch) or continuous_skip.
        cost_weight: what a step that looks at a patch costs, in units of the reward; where a target is set, what it costs at first.
        target_keep: the share of steps that shall look at a patch; the price is driven to it, once an update (PPO only).
        target_gflops: the same told in GFLOPs a video with the policy's own, multiply-adds counted as one.
        cost_weight_rate: how fast the price is driven, in prices for an error of 1 in the share.
        skipped: what the head gets where a frame is skipped: zeros, last or none; see `adafocus_env.skipped`.
        bank: where the frozen networks' features are kept: auto (in memory where they fit, otherwise nowhere), true (in memory), false
            (nowhere: they are computed live), or a folder.
        bank_dtype: how a bank stores numbers: float32, float16 or bfloat16.
        bank_gib: bound on a bank in memory, in GiB.
        precision: what the frozen glancer and focuser compute in: float32, bfloat16 or float16.
        compile: compile them first, which takes a minute or two.
    """

    num_envs: int = 64
    action: str = "grid"
    grid: int = 7
    video_div: int | None = None
    reward: str = "random"
    baseline: int | str = "all"
    cost_weight: float = 0.0
    target_keep: float | None = None
    target_gflops: float | None = None
    cost_weight_rate: float = 0.15
    skipped: str = "zeros"
    bank: bool | str = "auto"
    bank_dtype: str = "float32"
    bank_gib: float | None = None
    precision: str = "float32"
    compile: bool = False


@dataclass
class PPOConfig:
    """Stable-Baselines3's arguments of PPO, a few more, and when to validate and save. `ppo=released` sets the released code's.

    Attributes:
        total_steps: environment steps in all.
        epochs: passes over the training clips, instead of a number of steps; null: total_steps counts.
        n_steps: steps of each environment before an update; null: one clip.
        batch_size: steps in a minibatch; null: all of an update.
        max_grad_norm: null: gradients are not clipped.
        adam_eps: Adam's epsilon.
        ortho_init: begin from orthogonal weights, as Stable-Baselines3 does; false: from PyTorch's.
        normalize_advantage: in each minibatch.
        normalize_returns: over all of an update; needs gae_lambda=1.
        batch_statistics: what batch norm (network.batch_norm) uses while the policy collects and learns: the batch's statistics, or
            the running ones, which are brought up to date before each rollout.
        validate_every: updates between two looks at the validation part.
        save_every: updates between two checkpoints.
    """

    total_steps: int = 100_000
    epochs: int | None = None
    n_steps: int | None = 16
    batch_size: int | None = 256
    n_epochs: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.7
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float | None = 0.5
    adam_eps: float = 1e-5
    ortho_init: bool = True
    normalize_advantage: bool = True
    normalize_returns: bool = False
    batch_statistics: bool = False
    validate_every: int = 5
    save_every: int = 20


@dataclass
class AlgoConfig:
    """An algorithm and its settings; see `agents.rl.algorithms`. `algo=dqn` takes those of configs/algo/dqn.yaml.

    Attributes:
        name: one of `agents.rl.algorithms.ALGORITHMS`, or the dotted path of a class in the manner of Stable-Baselines3's.
        total_steps: environment steps in all. PPO's is ppo.total_steps, like all that it has in common with `PPOConfig`.
        observation: what the policy sees: reference (its extractor reads the glances in place), or any other of the environment's.
        settings: arguments of the class's constructor. n_steps, train_freq and batch_size may be null: one clip of each environment.
            action_noise is the standard deviation of Gaussian noise, in halves of the range of places.
        validate_every: environment steps between two lines of metrics, each with a look at the validation part.
        save_every: environment steps between two checkpoints.
    """

    name: str = "ppo"
    total_steps: int = 100_000
    observation: str = "reference"
    settings: dict[str, Any] = field(default_factory=dict)
    validate_every: int = 5_000
    save_every: int = 10_000


@dataclass
class NetworkConfig:
    """The policy network; see `agents.policies.networks`.

    Attributes:
        memory: false: the policy forgets after every frame.
        std: of a continuous policy (env.action=continuous).
    """

    channels: int = 16
    features: int = 128
    hidden: int = 128
    batch_norm: bool = False
    memory: bool = True
    std: float = 0.25


@dataclass
class ArchitectureConfig:
    """What an architecture (`classifier`) shall have instead of its own; null leaves it. See docs/backbones.md.

    Attributes:
        glancer: a backbone: one of the package's own, torchvision/NAME or timm/NAME.
        focuser: the same.
        head: gru, linear, mean or max.
        hidden_size: length of the head's state.
        dropout: of the head, in training.
        size: height and width of a frame in pixels.
        glance_size: height and width in pixels of what the glancer sees.
        shift: share of the channels that the temporal shift moves each way.
        shift_place: blockres or block.
        weights: what new backbones start from: none (random weights) or default (the library's own, of ImageNet).
    """

    glancer: str | None = None
    focuser: str | None = None
    head: str | None = None
    hidden_size: int | None = None
    dropout: float | None = None
    size: int | None = None
    glance_size: int | None = None
    shift: float | None = None
    shift_place: str | None = None
    weights: str | None = None


@dataclass
class SupervisedConfig:
    """How one stage trains a part of the classifier.

    Attributes:
        epochs: passes over the training clips; 0 leaves the part as it is.
        batch_size: clips in a step.
        optimizer: adamw or sgd.
        momentum: of sgd.
        schedule: one_cycle, cosine or step.
        milestones: epochs (the first is 0) from which on the rates of `step` are a tenth of those before.
        learning_rate: the highest one, of the backbone.
        head_learning_rate: the highest one, of the temporal head.
        weight_decay: of all parameters.
        frames: frames of each clip that a step sees (stage 0 only).
        dropout: of what is trained, while it is trained; null: the architecture's.
        accumulate: parts into which the clips of a step are cut (those of each process, where there are several), to need less memory;
            the gradient is that of the whole step, but batch norm sees the parts.
        precision: what the networks compute in: float32, or mixed with bfloat16 or float16. The weights are float32.
        channels_last: keep images and activations as (height, width, channels) in memory.
        compile: compile the networks first, which takes a minute or two; not with several processes.
    """

    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "one_cycle"
    milestones: list[int] = field(default_factory=list)
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    frames: int = 8
    dropout: float | None = None
    accumulate: int = 1
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False


@dataclass
class ClassifierConfig:
    """How the stages 0, 1 and 3 train a classifier.

    Attributes:
        glancer: stage 0 of f_G.
        focuser: stage 0 of f_L.
        random_patches: stage 1, of f_L and f_C.
        finetune: stage 3, of f_C (and f_L where its learning rate is above 0) on the policy's patches.
    """

    glancer: SupervisedConfig = field(default_factory=SupervisedConfig)
    focuser: SupervisedConfig = field(default_factory=SupervisedConfig)
    random_patches: SupervisedConfig = field(default_factory=SupervisedConfig)
    finetune: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass
class TrainPPO:
    """`python -m agents.train_ppo`.

    Attributes:
        run: the run folder, made if missing; empty: one named after data and seed.
        seed: of everything random.
        device: auto, cpu, cuda or cuda:N.
        force: start over in a run folder that exists.
        trust: resume from a checkpoint that was not written on this machine (it is unpickled).
        plugin: a module of yours that is imported first, for what it adds to the tables (docs/extend.md).
        log: where curves are drawn besides metrics.jsonl: tensorboard, wandb; see `agents.runs.loggers`.
        data: which videos.
        classifier: auto, a name (a bundled classifier or an architecture) or the folder of a checkpoint.
        patch_size: P, height and width of the patches in pixels; 0: the architecture's. A checkpoint's cannot be changed.
        architecture: further things that an architecture shall have instead of its own.
        policy: folder of a policy to start from; empty: a new one.
        env: the environment.
        ppo: the algorithm.
        network: the policy network.
        stages: how a classifier is made where there is none for this data set, and finetuned.
    """

    run: str = ""
    seed: int = 0
    device: str = "auto"
    force: bool = False
    trust: bool = False
    plugin: str = ""
    log: list[str] = field(default_factory=lambda: ["tensorboard"])
    data: DataConfig = field(default_factory=DataConfig)
    classifier: str = "auto"
    patch_size: int = 0
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    policy: str = ""
    env: EnvConfig = field(default_factory=EnvConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    stages: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass
class Train(TrainPPO):
    """`python -m agents.train`; the keys of `TrainPPO`, and the algorithm.

    Attributes:
        algo: which one, and its settings; those of PPO are the keys of ``ppo``.
    """

    algo: AlgoConfig = field(default_factory=AlgoConfig)


@dataclass
class BenchmarkAlgorithms:
    """`python -m benchmarks.compare_algorithms`.

    Attributes:
        id: a registered id.
        algos: names in `agents.rl.algorithms.ALGORITHMS`, or dotted paths of classes; none: all that learn such actions.
        seeds: of the runs of each.
        total_steps: environment steps of each run; null: those of each algorithm's config.
        overrides: further arguments of `agents.train`, for all runs.
        run: the folder of the runs, the table and the picture; empty: one named after the id.
        device: auto, cpu, cuda or cuda:N.
    """

    id: str = "AdaFocusEasy-v0"
    algos: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    total_steps: int | None = None
    overrides: list[str] = field(default_factory=list)
    run: str = ""
    device: str = "auto"


@dataclass
class SkipCurve:
    """`python -m benchmarks.skipping_study`.

    Attributes:
        tasks: of the demo videos; see docs/tasks.md.
        seeds: of the runs on each.
        keeps: shares of the frames to keep.
        overrides: further arguments of `agents.train_ppo`, for all runs.
        run: the folder of the runs, the table and the picture.
        device: auto, cpu, cuda or cuda:N.
    """

    tasks: list[str] = field(default_factory=lambda: ["normal", "hard", "sparse"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    keeps: list[float] = field(default_factory=lambda: [0.25, 0.47, 0.67, 0.89])
    overrides: list[str] = field(default_factory=list)
    run: str = "runs/skip_curve"
    device: str = "auto"


@dataclass
class JointConfig:
    """The joint rounds of `python -m agents.train_stages`. Null means: as in the single pass.

    Attributes:
        patience: so many rounds that are no better than the best before, on the validation part, end the training.
        total_steps: environment steps of stage 2 in a round.
        policy_learning_rate: of stage 2.
        epochs: of stage 3 in a round.
        learning_rate: of the focuser in stage 3; 0: it stays as it is.
        head_learning_rate: of the head in stage 3.
    """

    patience: int = 1
    total_steps: int | None = None
    policy_learning_rate: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None


@dataclass
class TrainStages(TrainPPO):
    """`python -m agents.train_stages`; the keys of `TrainPPO`, and which stages to run.

    Attributes:
        first: the first stage to run; those from 1 on need a trained ``classifier``, stage 3 a trained ``policy`` too.
        last: the last one.
        rounds: so often at most the stages 2 and 3 are run once more after it, each from what the one before it made.
        joint: settings of these rounds.
    """

    first: int = 0
    last: int = 3
    rounds: int = 0
    joint: JointConfig = field(default_factory=JointConfig)


@dataclass
class Evaluate:
    """`python -m agents.evaluate`.

    Attributes:
        run: a finished run folder. What else is typed counts instead of what the run was made with; or, without it:
        classifier: auto (the bundled one for the demo videos), a bundled name or the folder of a checkpoint.
        policy: folder of a policy.
        trust: read a model of Stable-Baselines3 that was not written on this machine (it is unpickled).
        plugin: a module of yours that is imported first; that of the run, which is not imported unless you name it.
        data: which videos.
        grid: G, cells in each axis, where there is no policy that says it.
        video_div: decisions a video, where there is no policy and the classifier averages the scores of frames.
        skipped: what the head gets where the policy skips a frame, as in `EnvConfig`, where no run tells it.
        budget: GFLOPs a video that a policy which skips shall cost; the threshold on P(skip) is solved on the validation part.
        keep: the same told as the share of frames to keep.
        seed: of the random baselines.
        bank: where the frozen networks' features are kept, as in `EnvConfig`; with false the greedy oracle is left out.
        bank_dtype: as in `EnvConfig`.
        bank_gib: as in `EnvConfig`.
        precision: as in `EnvConfig`.
        compile: as in `EnvConfig`.
        device: auto, cpu, cuda or cuda:N.
        out: folder for result.json and the pictures; empty: the table is only shown.
        typed: no key: the arguments that were typed, by key; see `agents.config.command.typed_keys`.
    """

    run: str = ""
    classifier: str = "auto"
    policy: str = ""
    trust: bool = False
    plugin: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    grid: int = 7
    video_div: int | None = None
    skipped: str = "zeros"
    budget: float | None = None
    keep: float | None = None
    bank: bool | str = "auto"
    bank_dtype: str = "float32"
    bank_gib: float | None = None
    precision: str = "float32"
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    out: str = ""
    typed: Mapping[str, str] = field(default_factory=dict, metadata={"omegaconf_ignore": True}, repr=False, compare=False)


@dataclass
class RebuildBundled:
    """`python -m benchmarks.rebuild_bundled`.

    Attributes:
        task: what the classifier is for, a name in `adafocus_env.demo.videos.TASKS`.
        out: where it goes; empty: into the package.
        seed: of everything random.
        device: auto, cpu, cuda or cuda:N.
        workers: processes that render and decode.
        stages: how it is trained.
    """

    task: str = "normal"
    out: str = ""
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    stages: ClassifierConfig = field(default_factory=ClassifierConfig)
