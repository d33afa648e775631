"""Settings of stage 2: the environment, algorithms other than PPO, and the policy network."""

from collections.abc import Iterator
from typing import Any, Literal

from adafocus_env.reward import REWARDS
from adafocus_env.settings import ActionName, Count, EnvSettings, NumberFormat, declared_in, setting, settings
from agents.config.ppo import HAS_NETWORK

SKIPPING = ("skip", "continuous_skip")
CELLS = ("grid", "skip")
"""Kinds of action whose patches are cells of a grid, with or without skipping."""
OF_RL = (
    "grid num_envs reward baseline full_information cost_weight cost_weight_rate target_keep target_gflops skipped"
)
"""Settings ``env.*`` that end-to-end training does not read."""
KEYS = {
    "spatial": ("width", "kernel", "depth", "memory"),
    "published": ("channels", "features", "hidden", "batch_norm", "memory"),
    "published_v2": ("channels", "features", "hidden", "memory"),
}
"""Settings ``network.*`` that only some kinds of network read."""
NO_RL = "end-to-end training uses no reinforcement learning"
BANK_IS_OFF = "with bank=false features are stored nowhere; leave it out, or set bank=true"


@settings
class EnvConfig(EnvSettings):
    """The environment of the policy, and the execution of the frozen networks."""

    num_envs: int = setting(64, "number of parallel environments", ge=1)
    baseline: Count | Literal["all"] = setting(
        "all", "number of random patches for the reward's baseline; all: the exact mean over the grid"
    )
    action: ActionName = declared_in(EnvSettings, "action")
    reward: str = setting("auto", "a name in `adafocus_env.reward.REWARDS`; auto: standalone, or random if actions can skip")
    bank: bool | str = declared_in(EnvSettings, "bank")
    target_keep: float | None = setting(None, "target share of steps with a patch; λ is adjusted once per update (PPO only)", gt=0, le=1)
    target_gflops: float | None = setting(
        None, "target cost per video, including the policy; a multiply-add counts as one", unit="GFLOPs", gt=0, allow_inf_nan=False
    )
    cost_weight_rate: float = setting(
        0.15, "change of λ per update for an error of 1 in the share of steps with a patch", unit="reward", gt=0, allow_inf_nan=False
    )
    precision: NumberFormat = setting("float32", "number format of the frozen glancer and focuser")
    compile: bool = setting(False, "compile the frozen networks first, which takes one or two minutes")

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if hasattr(command, "learning"):
            yield OF_RL, f"{NO_RL}, and neither cells nor skipped frames; leave it out, or use python -m agents.train_ppo"
        if self.action not in CELLS:
            yield "grid", f"env.action={self.action} has no cells; leave it out, or set env.action=grid"
        if self.reward in REWARDS and REWARDS[self.reward].baseline != "random patches":
            yield "baseline", f"env.reward={self.reward} has no baseline of random patches; leave it out"
        if not hasattr(command, "algo"):
            yield "full_information", "this command learns only from the action taken; use python -m agents.train algo=expected_pg"
        if self.target_keep is None and self.target_gflops is None:
            yield "cost_weight_rate", "λ is constant; set env.target_keep or env.target_gflops, or leave it out"
        if self.action not in SKIPPING:
            yield "skipped", f"env.action={self.action} skips no frame; set env.action=skip or env.action=continuous_skip, or leave it out"
        if self.bank is False:
            yield "bank_dtype bank_gib", BANK_IS_OFF.replace("bank=", "env.bank=")


@settings
class AlgoConfig:
    """An algorithm of `agents.rl.algorithms`.

    `algo=dqn` sets the values in configs/algo/dqn.yaml. For PPO, set the keys of the group ``ppo`` instead.
    """

    name: str = setting("ppo", "a name in `agents.rl.algorithms.ALGORITHMS`, or the dotted path of a similar class")
    total_steps: int = setting(100_000, "environment steps in all", ge=1)
    observation: str = setting("reference", "observation of the policy: reference (glances are read in place) or another name")
    settings: dict[str, Any] = setting(dict, "arguments of the class; null for n_steps, train_freq or batch_size: one clip per environment")
    validate_every: int = setting(5_000, "period of validation and of lines of metrics", unit="steps", ge=1)
    save_every: int = setting(10_000, "period of checkpoints", unit="steps", ge=1)


@settings
class NetworkConfig:
    """The policy network; see `agents.policies.networks`."""

    name: str = setting("spatial", "spatial; published or published_v2, as in the papers, with a flattened map; or a plugin's name")
    width: int = setting(8, "spatial: channels of every layer", ge=1)
    kernel: Literal[1, 3, 5, 7] = setting(3, "spatial: side of the kernels", unit="pixels of the map")
    depth: int = setting(1, "spatial: number of stacked convolutional GRUs", ge=1)
    channels: int = setting(16, "published: channels of the convolution over the glance map", ge=1)
    features: int = setting(128, "published: length of the vector computed from a map", ge=1)
    hidden: int = setting(128, "published: units of the recurrent layer", ge=1)
    batch_norm: bool = setting(False, "published: batch norm after the convolution")
    memory: bool = setting(True, "make the network recurrent over the frames; false: it sees each frame alone")
    std: float = setting(0.25, "standard deviation of a continuous policy, in units of the range of locations", gt=0, allow_inf_nan=False)
    learn_std: bool = setting(False, "learn the standard deviation, starting at std")
    settings: dict[str, Any] = setting(dict, "arguments of a plugin's network")

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if command.policy:
            yield " ".join(vars(self)), HAS_NETWORK.format(command.policy)
        if hasattr(command, "learning"):
            yield "std learn_std", f"{NO_RL} and samples no locations; leave it out"
        if command.env.action in CELLS:
            yield "std learn_std", f"env.action={command.env.action} has cells, but the standard deviation is for locations; leave it out"
        if read := KEYS.get(self.name):
            unread = {"settings", *(key for keys in KEYS.values() for key in keys)}.difference(read)
            yield " ".join(unread), f"network={self.name} does not read it; leave it out, or choose another network"
