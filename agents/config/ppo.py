"""Settings of PPO; the files in configs/ppo override some of them."""

from collections.abc import Iterator
from typing import Any

from adafocus_env.settings import setting, settings

HAS_NETWORK = "policy={} has its network already; leave one of them out"


@settings
class PPOConfig:
    """PPO of Stable-Baselines3, and when to validate and save; `ppo=released` has the values of the released code."""

    total_steps: int = setting(40_000, "environment steps in all", ge=1)
    epochs: int | None = setting(None, "passes over the training clips, in place of total_steps", ge=1)
    n_steps: int | None = setting(16, "steps of each environment before an update; null: one clip", ge=1)
    batch_size: int | None = setting(256, "steps in a minibatch; null: all of an update", ge=2)
    n_epochs: int = setting(4, "passes over the steps of an update", ge=1)
    learning_rate: float = setting(3e-3, "learning rate of Adam", gt=0, allow_inf_nan=False)
    gamma: float = setting(0.0, "discount factor; 0 suits the reward standalone, which no earlier action changes", ge=0, le=1)
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
