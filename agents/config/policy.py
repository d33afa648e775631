"""Settings of stage 2: environment, PPO and other algorithms, and policy network."""

from collections.abc import Iterator
from typing import Any, Literal

from adafocus_env.reward import REWARDS
from adafocus_env.settings import ActionName, Count, EnvSettings, NumberFormat, declared_in, setting, settings

CELLS = ("grid", "skip")
"""Actions that are cells of a grid, with or without an action that skips."""
HAS_NETWORK = "policy={} has its network already; leave one of them out"
BANK_IS_OFF = "with bank=false features are stored nowhere; leave it out, or set bank=true"


@settings
class EnvConfig(EnvSettings):
    """The environment that the policy learns in, and how the frozen networks are run."""

    num_envs: int = setting(64, "environments that are played at the same time", ge=1)
    baseline: Count | Literal["all"] = setting("all", "random patches that the reward 'random' averages; all: the exact mean over the grid")
    action: ActionName = declared_in(EnvSettings, "action")
    reward: str = declared_in(EnvSettings, "reward")
    bank: bool | str = declared_in(EnvSettings, "bank")
    target_keep: float | None = setting(None, "share of steps with a patch that λ is driven to, once an update (PPO only)", gt=0, le=1)
    target_gflops: float | None = setting(
        None, "the same as cost of a video with the policy, multiply-adds counted once", unit="GFLOPs", gt=0, allow_inf_nan=False
    )
    cost_weight_rate: float = setting(
        0.15, "how fast λ follows a target: its change for an error of 1 in the share", unit="reward", gt=0, allow_inf_nan=False
    )
    precision: NumberFormat = setting("float32", "number format of the frozen glancer and focuser")
    compile: bool = setting(False, "compile the frozen networks first, which takes a minute or two")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if self.action not in CELLS:
            yield "grid", f"env.action={self.action} has no cells; leave it out, or set env.action=grid"
        if self.reward in REWARDS and REWARDS[self.reward].baseline != "random patches":
            yield "baseline", f"env.reward={self.reward} compares with no random patches; leave it out"
        if self.target_keep is None and self.target_gflops is None:
            yield "cost_weight_rate", "λ stays as it is; set env.target_keep or env.target_gflops, or leave it out"
        if self.action in ("grid", "continuous"):
            yield "skipped", f"env.action={self.action} skips no frame; set env.action=skip or env.action=continuous_skip, or leave it out"
        if self.bank is False:
            yield "bank_dtype bank_gib", BANK_IS_OFF.replace("bank=", "env.bank=")


@settings
class PPOConfig:
    """PPO of Stable-Baselines3, and when to validate and save; `ppo=released` has the values of the released code."""

    total_steps: int = setting(100_000, "environment steps in all", ge=1)
    epochs: int | None = setting(None, "passes over the training clips, in place of total_steps", ge=1)
    n_steps: int | None = setting(16, "steps of each environment before an update; null: one clip", ge=1)
    batch_size: int | None = setting(256, "steps in a minibatch; null: all of an update", ge=2)
    n_epochs: int = setting(4, "passes over the steps of an update", ge=1)
    learning_rate: float = setting(1e-3, "learning rate of Adam", gt=0, allow_inf_nan=False)
    gamma: float = setting(0.7, "discount factor", ge=0, le=1)
    gae_lambda: float = setting(0.95, "λ of generalised advantage estimation", ge=0, le=1)
    clip_range: float = setting(0.2, "clipping of the probability ratio", gt=0, allow_inf_nan=False)
    ent_coef: float = setting(0.01, "weight of the entropy in the loss")
    vf_coef: float = setting(0.5, "weight of the value function's loss")
    max_grad_norm: float | None = setting(0.5, "gradients are clipped to this norm; null: they are not", gt=0, allow_inf_nan=False)
    adam_eps: float = setting(1e-5, "ε of Adam", gt=0, allow_inf_nan=False)
    ortho_init: bool = setting(True, "start from orthogonal weights; false: from PyTorch's")
    normalize_advantage: bool = setting(True, "normalise the advantages of each minibatch")
    normalize_returns: bool = setting(False, "normalise the returns of an update; needs gae_lambda=1")
    batch_statistics: bool = setting(False, "network.batch_norm uses statistics of the batch in stage 2; false: running ones")
    validate_every: int = setting(5, "updates between two measurements on the validation split", unit="updates", ge=1)
    save_every: int = setting(20, "updates between two checkpoints", unit="updates", ge=1)

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if self.epochs is not None:
            yield "total_steps", f"ppo.epochs={self.epochs} counts instead; set that, or ppo.epochs=null"
        if command.data.val == 0:
            yield "validate_every", "data.val=0 leaves nothing to validate on, and the last policy is taken; leave it out, or set data.val"
        if command.policy:
            yield "ortho_init", HAS_NETWORK.format(command.policy)


@settings
class AlgoConfig:
    """An algorithm of `agents.rl.algorithms`; `algo=dqn` has the values of configs/algo/dqn.yaml. PPO is set by the keys of ppo."""

    name: str = setting("ppo", "a name in `agents.rl.algorithms.ALGORITHMS`, or the dotted path of a class like those")
    total_steps: int = setting(100_000, "environment steps in all", ge=1)
    observation: str = setting("reference", "what the policy sees: reference (glances are read in place) or another observation")
    settings: dict[str, Any] = setting(dict, "arguments of the class; null as n_steps, train_freq or batch_size: one clip per environment")
    validate_every: int = setting(5_000, "between two lines of metrics, with a measurement on the validation split", unit="steps", ge=1)
    save_every: int = setting(10_000, "between two checkpoints", unit="steps", ge=1)


@settings
class NetworkConfig:
    """The policy network; see `agents.policies.networks`."""

    channels: int = setting(16, "channels of the convolution over the glance map", ge=1)
    features: int = setting(128, "length of the vector that is computed from a map", ge=1)
    hidden: int = setting(128, "units of the recurrent layer", ge=1)
    batch_norm: bool = setting(False, "batch norm after the convolution")
    memory: bool = setting(True, "recurrent over the frames; false: each frame alone")
    std: float = setting(0.25, "standard deviation of a continuous policy, in halves of the range of locations", gt=0, allow_inf_nan=False)

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that are not read in this state; see `agents.config.effect`."""
        if command.policy:
            yield "channels features hidden batch_norm memory std", HAS_NETWORK.format(command.policy)
        if command.env.action in CELLS:
            yield "std", f"env.action={command.env.action} has cells, and the standard deviation is that of locations; leave it out"
