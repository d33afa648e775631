"""Settings of end-to-end training."""

from collections.abc import Iterator
from typing import Any, Literal

from adafocus_env.settings import NumberFormat, declared_in, setting, settings
from agents.config.classifier import SupervisedConfig, architecture_of

OF_CLASSIFIER = "glancer_ratio focuser_ratio head_ratio dropout"
"""Settings of the classifier's networks, which ``freeze=true`` does not read."""


@settings
class EndToEndConfig:
    """The joint training of glancer, policy, focuser and head. The learning rate of each network is `learning_rate` times its ratio."""

    epochs: int = setting(50, "passes over the training clips", ge=1)
    batch_size: int = declared_in(SupervisedConfig, "batch_size")
    optimizer: Literal["adamw", "sgd"] = setting("sgd", "the optimizer")
    momentum: float = declared_in(SupervisedConfig, "momentum")
    schedule: Literal["one_cycle", "cosine", "cosine_epochs", "step"] = setting(
        "cosine_epochs", "schedule of the learning rates; cosine_epochs: a cosine that is constant within an epoch"
    )
    milestones: list[int] = declared_in(SupervisedConfig, "milestones")
    learning_rate: float = setting(0.002, "highest learning rate, before the ratios", gt=0, allow_inf_nan=False)
    policy_ratio: float = setting(0.1, "learning rate of the policy, as a multiple of learning_rate", gt=0, allow_inf_nan=False)
    glancer_ratio: float = setting(
        0.5, "learning rate of the glancer and its auxiliary head, as a multiple of learning_rate", gt=0, allow_inf_nan=False
    )
    focuser_ratio: float = setting(
        1.0, "learning rate of the focuser and its auxiliary head, as a multiple of learning_rate", gt=0, allow_inf_nan=False
    )
    head_ratio: float = setting(5.0, "learning rate of the head, as a multiple of learning_rate", gt=0, allow_inf_nan=False)
    weight_decay: float = setting(1e-4, "weight decay of all parameters, including norms and biases", ge=0)
    max_grad_norm: float | None = setting(
        None, "norm to which the gradient of all parameters together is clipped; null: no clipping", gt=0, allow_inf_nan=False
    )
    dropout: float | None = setting(None, "dropout of the head and the auxiliary heads in training; null: the architecture's", ge=0, lt=1)
    accumulate: int = declared_in(SupervisedConfig, "accumulate")
    precision: NumberFormat = declared_in(SupervisedConfig, "precision")
    channels_last: bool = declared_in(SupervisedConfig, "channels_last")
    compile: bool = declared_in(SupervisedConfig, "compile")

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if self.optimizer == "adamw":
            yield "momentum", f"adamw does not read it; set {prefix}optimizer=sgd, or leave it out"
        if command.freeze:
            yield OF_CLASSIFIER, "freeze=true trains only the policy; leave it out, or set freeze=false"
        architecture = architecture_of(command)
        if architecture is not None and architecture.head == "separate_mean":
            yield "head_ratio", f"the head separate_mean learns with {prefix}glancer_ratio and {prefix}focuser_ratio; set those"
