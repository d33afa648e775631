"""Settings of PPO. The files in configs/ppo override the defaults of some settings."""

from collections.abc import Iterator
from typing import Any

from adafocus_env.settings import setting, settings

HAS_NETWORK = "policy={} already has a network; leave one of them out"


@settings
class PPOConfig:
    """Settings of Stable-Baselines3's PPO, and the intervals at which the policy is validated and saved.

    `ppo=released` sets the values of the released code.
    """

    total_steps: int = setting(40_000, "environment steps in all", ge=1)
    epochs: int | None = setting(None, "passes over the training clips; overrides total_steps", ge=1)
    n_steps: int | None = setting(16, "steps of each environment per update; null: one clip", ge=1)
    batch_size: int | None = setting(256, "steps per minibatch; null: all steps of an update", ge=2)
    n_epochs: int = setting(4, "passes over the steps of an update", ge=1)
    learning_rate: float = setting(3e-3, "learning rate of Adam", gt=0, allow_inf_nan=False)
    gamma: float = setting(0.0, "discount factor; 0 suits the reward standalone, which does not depend on earlier actions", ge=0, le=1)
    gae_lambda: float = setting(0.95, "λ of generalised advantage estimation", ge=0, le=1)
    clip_range: float = setting(0.2, "clipping of the probability ratio", gt=0, allow_inf_nan=False)
    ent_coef: float = setting(0.01, "weight of the entropy in the loss")
    vf_coef: float = setting(0.5, "weight of the value function's loss")
    max_grad_norm: float | None = setting(0.5, "norm to which gradients are clipped; null: no clipping", gt=0, allow_inf_nan=False)
    adam_eps: float = setting(1e-5, "ε of Adam", gt=0, allow_inf_nan=False)
    ortho_init: bool = setting(True, "start from orthogonal weights; false: PyTorch's defaults")
    normalize_advantage: bool = setting(True, "normalise the advantages of each minibatch")
    normalize_returns: bool = setting(False, "normalise the returns of an update; needs gae_lambda=1")
    batch_statistics: bool = setting(False, "batch norm uses batch statistics in stage 2; false: running statistics")
    validate_every: int = setting(5, "updates between two validations", unit="updates", ge=1)
    save_every: int = setting(20, "updates between two checkpoints", unit="updates", ge=1)

    def without_effect(self, command: Any, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the settings that have no effect with the current values of the other settings; see `agents.config.effect`."""
        if self.epochs is not None:
            yield "total_steps", f"ppo.epochs={self.epochs} overrides it; set that, or ppo.epochs=null"
        if command.data.val == 0:
            yield "validate_every", "with data.val=0 nothing is validated, and the last policy is selected; leave it out, or set data.val"
        if command.policy:
            yield "ortho_init", HAS_NETWORK.format(command.policy)
