"""Settings of the classifier: the architecture, and the supervised stages 0, 1 and 3."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adafocus_env.settings import NumberFormat, setting, settings

if TYPE_CHECKING:
    from classifiers.classifier import Architecture


@settings
class ArchitectureConfig:
    """Overrides of the architecture that `classifier` names.

    A setting that is null does not change the architecture. See docs/backbones.md.
    """

    glancer: str | None = setting(None, "the glancer's backbone: a name in the package, torchvision/NAME or timm/NAME")
    focuser: str | None = setting(None, "the focuser's backbone: a name, as for the glancer")
    head: str | None = setting(None, "the head: gru, linear, mean, max, max_per_step or separate_mean")
    hidden_size: int | None = setting(None, "length of the head's hidden state", ge=1)
    dropout: float | None = setting(None, "dropout of the head in training", ge=0, le=1)
    size: int | None = setting(None, "height and width of a frame", unit="pixels", ge=1)
    glance_size: int | None = setting(None, "height and width of the glancer's input", unit="pixels", ge=1)
    shift: float | None = setting(None, "share of the channels that the temporal shift moves in each direction", ge=0, le=0.5)
    shift_place: Literal["blockres", "block"] | None = setting(None, "location of the temporal shift in the blocks")
    head_steps: int | None = setting(None, "number of steps with a linear layer in the head max_per_step; 0 with any other head", ge=0)
    resize: Literal["antialias", "align_corners"] | None = setting(None, "how the glancer's frames are resized")
    weights: Literal["none", "default"] | None = setting(None, "initial weights of the backbones: none (random) or default (ImageNet)")

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        architecture = architecture_of(command)
        if architecture is not None and not architecture.shift:
            yield "shift_place", "there is no temporal shift; set architecture.shift, or leave it out"
        if architecture is not None and architecture.head in ("linear", "mean", "separate_mean"):
            yield "hidden_size", "the head has no hidden state; leave it out, or set architecture.head=gru or max"


@settings
class SupervisedConfig:
    """The training of one stage."""

    epochs: int = setting(10, "passes over the training clips; 0: the stage changes nothing", ge=0)
    batch_size: int = setting(32, "clips per step", ge=1)
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "the optimizer")
    momentum: float = setting(0.9, "momentum of sgd", ge=0, lt=1)
    schedule: Literal["one_cycle", "cosine", "step"] = setting("one_cycle", "schedule of the learning rates over the epochs")
    milestones: list[int] = setting(list, "epochs, counted from 0, at which schedule=step divides the learning rates by 10")
    learning_rate: float = setting(1e-3, "highest learning rate of the backbones", ge=0, allow_inf_nan=False)
    head_learning_rate: float = setting(3e-3, "highest learning rate of the head", ge=0, allow_inf_nan=False)
    weight_decay: float = setting(1e-4, "weight decay of all parameters", ge=0)
    frames: int = setting(8, "frames per clip and step (stage 0 only)", ge=1)
    dropout: float | None = setting(None, "dropout in training; null: the architecture's", ge=0, lt=1)
    accumulate: int = setting(1, "microbatches per step, which save memory; batch norm uses the statistics of a microbatch", ge=1)
    precision: NumberFormat = setting("float32", "number format of activations; weights are float32")
    channels_last: bool = setting(False, "store images and activations in memory as (height, width, channels)")
    compile: bool = setting(False, "compile the networks first, which takes one or two minutes; single process only")

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        stage = prefix.split(".")[1]
        rounds = getattr(command, "rounds", 0)
        if self.epochs == 0 and not (stage == "finetune" and rounds and command.joint.epochs is not None):
            others = " ".join(name for name in asdict(self) if name != "epochs")
            yield others, f"with {prefix}epochs=0 nothing is trained; leave it out, or set {prefix}epochs"
        if self.optimizer == "adamw":
            yield "momentum", f"adamw does not read it; set {prefix}optimizer=sgd, or leave it out"
        if stage not in STAGE_0:
            yield "frames", f"only stage 0 ({', '.join(STAGE_0)}) reads it; leave it out"
            return
        yield "head_learning_rate", f"the head is not trained in stage 0; set {prefix}learning_rate"
        architecture = architecture_of(command)
        if architecture is not None and architecture.shift:
            yield "frames", "backbones with temporal shift see all frames of a clip; leave it out"


STAGE_0 = ("glancer", "focuser")


@settings
class ClassifierConfig:
    """The training of a classifier in stages 0, 1 and 3."""

    glancer: SupervisedConfig = setting(SupervisedConfig, "stage 0 of the glancer")
    focuser: SupervisedConfig = setting(SupervisedConfig, "stage 0 of the focuser")
    random_patches: SupervisedConfig = setting(SupervisedConfig, "stage 1: focuser and head on random patches")
    finetune: SupervisedConfig = setting(SupervisedConfig, "stage 3: head (and focuser) on the policy's patches")


def architecture_of(command: Any) -> "Architecture | None":
    """Return the architecture of the classifier that the command trains; None if the classifier is already trained, or unknown."""
    if not hasattr(command, "classifier"):
        return None
    from classifiers.model_zoo import ARCHITECTURES, BUNDLED

    name = "small" if command.classifier == "auto" and command.data.label not in BUNDLED else command.classifier
    if name not in ARCHITECTURES:
        return None
    return replace(ARCHITECTURES[name], **{key: value for key, value in asdict(command.architecture).items() if value is not None})


def is_trained(command: Any) -> bool:
    """Return whether the classifier of a command is already trained."""
    from classifiers.model_zoo import ARCHITECTURES, BUNDLED

    name = command.data.label if command.classifier == "auto" else command.classifier
    return name in BUNDLED or (command.classifier != "auto" and name not in ARCHITECTURES and Path(name).exists())
