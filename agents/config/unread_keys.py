"""The keys that a command does not read in some states, one table for each command; see `agents.config.unread`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from adafocus_env.reward import REWARDS
from agents.config.command import typed_keys
from agents.config.data_keys import data_rules
from agents.config.settings import Evaluate, NetworkConfig, RebuildBundled, SupervisedConfig, Train, TrainPPO, TrainStages
from agents.config.unread import Unread, check_read
from classifiers.errors import InputError

STAGES = ("glancer", "focuser", "random_patches", "finetune")
TRAINING = "env.num_envs env.reward env.baseline env.cost_weight env.cost_weight_rate env.target_keep env.target_gflops"
"""Keys of the environment that a policy learns from, and nobody else."""

When = Callable[[Any], object]


def check_config(config: object, typed: Mapping[str, str]) -> None:
    """Checks that every key that a user typed has an effect.

    Args:
        config: of a command.
        typed: what `agents.config.command.typed_keys` returns.

    Raises:
        InputError: a key has none (names each, says why and what to do).
    """
    check_read(config, typed, RULES.get(type(config), ()))


def check_overrides(overrides: Sequence[str], ours: Collection[str]) -> None:
    """Checks that the ``overrides`` of a command that makes runs leave alone what the command itself sets in each.

    Raises:
        InputError: one of them does not (names it).
    """
    if refused := [argument for key, argument in typed_keys(overrides).items() if key in ours]:
        raise InputError(f"overrides: the command itself sets {', '.join(refused)} in every run; leave it out (--help lists its own keys)")


# What conditions are made of


def architecture_of(config: TrainPPO) -> Any:
    """The architecture that a classifier is made of, with what is changed in it; None where it is trained already or not known."""
    from dataclasses import asdict, replace

    from classifiers.model_zoo import ARCHITECTURES, BUNDLED

    name = "small" if config.classifier == "auto" and config.data.label not in BUNDLED else config.classifier
    if name not in ARCHITECTURES:
        return None
    changes = {key: value for key, value in asdict(config.architecture).items() if value is not None}
    return replace(ARCHITECTURES[name], **changes)


def is_trained(config: TrainPPO) -> bool:
    """Whether the classifier is one that is trained already."""
    from classifiers.model_zoo import ARCHITECTURES, BUNDLED

    name = config.data.label if config.classifier == "auto" else config.classifier
    return name in BUNDLED or (config.classifier != "auto" and name not in ARCHITECTURES and Path(name).exists())


def learns_by_ppo(config: TrainPPO) -> bool:
    """Whether the policy learns by the settings in ``ppo``."""
    from agents.rl.algorithms import learns_as_ppo

    return not isinstance(config, Train) or learns_as_ppo(config.algo)


def runs_stage_2(config: TrainPPO) -> bool:
    """Whether a policy is trained."""
    return not isinstance(config, TrainStages) or config.first <= 2 <= config.last or config.rounds > 0


def trains(config: TrainPPO | RebuildBundled, stage: str) -> bool:
    """Whether a supervised stage has epochs, in the single pass or in joint rounds."""
    if stage == "finetune" and isinstance(config, TrainStages) and config.rounds and config.joint.epochs is not None:
        return True
    return getattr(config.stages, stage).epochs != 0


def has_no_target(config: TrainPPO) -> bool:
    """Whether the price of a patch stays as it is."""
    return config.env.target_keep is None and config.env.target_gflops is None


def compares_with_none(config: TrainPPO) -> bool:
    """Whether the reward compares with no random patches."""
    return config.env.reward in REWARDS and REWARDS[config.env.reward].baseline != "random patches"


def _row(config: Train) -> Any:
    from agents.rl.algorithms import algorithm_of, class_of

    return algorithm_of(class_of(config.algo.name), config.algo.name)


def _not_read(name: str) -> When:
    """Whether the algorithm's policy does not read a key of the network."""

    def when(config: Train) -> bool:
        from agents.rl.algorithms import BY_REFERENCE

        if learns_by_ppo(config):
            return False
        return config.algo.observation not in BY_REFERENCE or name not in _row(config).network

    return when


def _replaced(key: str) -> When:
    """Whether stage 2 is run in joint rounds alone, with a value for these."""
    return lambda c: c.first == 3 and getattr(c.joint, key) is not None


def _without_run(when: When) -> When:
    """The same where no run is given: what a run was made with is not known yet."""
    return lambda c: not c.run and when(c)


# The tables


def stage_rules(stage: str) -> tuple[Unread, ...]:
    """The keys of one supervised stage."""
    key = f"stages.{stage}"

    others = " ".join(f"{key}.{name}" for name in vars(SupervisedConfig()) if name != "epochs")
    rules = (
        Unread(others, lambda c: not trains(c, stage), f"with {key}.epochs=0 nothing is trained; leave it out, or set {key}.epochs"),
        Unread(
            f"{key}.momentum",
            lambda c: getattr(c.stages, stage).optimizer == "adamw",
            f"adamw has its own; set {key}.optimizer=sgd, or leave it out",
        ),
    )
    if stage in ("glancer", "focuser"):
        return (
            *rules,
            Unread(f"{key}.head_learning_rate", lambda c: True, f"the head is not trained in stage 0; set {key}.learning_rate"),
            Unread(
                f"{key}.frames",
                lambda c: (made_of := architecture_of(c)) and made_of.shift if isinstance(c, TrainPPO) else False,
                "backbones with temporal shift see all frames of a clip; leave it out",
            ),
        )
    return (*rules, Unread(f"{key}.frames", lambda c: True, "it is for stage 0 alone (glancer, focuser); leave it out"))


SUPERVISED = tuple(rule for stage in STAGES for rule in stage_rules(stage))

CLIPS = data_rules(lambda c: c.data.name, lambda c: c.data.root)

ENVIRONMENT = (
    Unread(
        "env.grid",
        lambda c: c.env.action in ("continuous", "continuous_skip"),
        "env.action={c.env.action} has no cells; leave it out, or set env.action=grid",
    ),
    Unread("env.baseline", compares_with_none, "env.reward={c.env.reward} compares with no random patches; leave it out"),
    Unread("env.cost_weight_rate", has_no_target, "the price stays as it is; set env.target_keep or env.target_gflops, or leave it out"),
    Unread(
        "env.skipped",
        lambda c: c.env.action in ("grid", "continuous"),
        "env.action={c.env.action} skips no frame; set env.action=skip or env.action=continuous_skip, or leave it out",
    ),
    Unread(
        "env.bank_dtype env.bank_gib",
        lambda c: c.env.bank is False,
        "with env.bank=false features are kept nowhere; leave it out, or set env.bank=true",
    ),
)

NETWORK = (
    Unread(
        " ".join(f"network.{name}" for name in vars(NetworkConfig())) + " ppo.ortho_init",
        lambda c: c.policy,
        "policy={c.policy} has its network already; leave one of them out",
    ),
    Unread(
        "network.std",
        lambda c: learns_by_ppo(c) and c.env.action in ("grid", "skip"),
        "env.action={c.env.action} has cells, and the standard deviation is that of places; leave it out",
    ),
)

PPO = (
    Unread("ppo.total_steps", lambda c: c.ppo.epochs is not None, "ppo.epochs={c.ppo.epochs} counts instead; set that, or ppo.epochs=null"),
    Unread(
        "ppo.validate_every",
        lambda c: c.data.val == 0,
        "data.val=0 leaves nothing to validate on, and the last policy is taken; leave it out, or set data.val",
    ),
)

ARCHITECTURE = (
    Unread(
        "architecture.shift_place",
        lambda c: (made_of := architecture_of(c)) and not made_of.shift,
        "there is no temporal shift; set architecture.shift, or leave it out",
    ),
    Unread(
        "architecture.hidden_size",
        lambda c: (made_of := architecture_of(c)) and made_of.head in ("linear", "mean"),
        "the head has no hidden state; leave it out, or set architecture.head=gru or max",
    ),
)

SHARED = (*CLIPS, *ENVIRONMENT, *NETWORK, *PPO, *ARCHITECTURE)

GIVEN_CLASSIFIER = (
    Unread(
        "stages.finetune", lambda c: True, "stage 3 is that of python -m agents.train_stages; leave it out, or use that command"
    ),
    Unread(
        "stages",
        is_trained,
        "classifier={c.classifier} is trained already; leave it out, or start from an architecture (classifier=small, …)",
    ),
    *SUPERVISED,
)

ALGORITHM = (
    Unread(
        "ppo",
        lambda c: not learns_by_ppo(c),
        "algo={c.algo.name} algo.observation={c.algo.observation} learns by other keys; set algo.total_steps, algo.settings.*",
    ),
    Unread(
        "algo.total_steps algo.validate_every algo.save_every",
        learns_by_ppo,
        "with PPO, set the keys of ppo (--help lists them)",
    ),
    *(
        Unread(f"network.{name}", _not_read(name), "the policy of algo={c.algo.name} algo.observation={c.algo.observation} lacks it")
        for name in vars(NetworkConfig())
    ),
)

WHICH_STAGES = (
    Unread("stages", lambda c: c.first == c.last == 2, "stage 2 alone is run (first=2 last=2); leave it out, or choose other stages"),
    Unread(
        "stages.glancer stages.focuser", lambda c: c.first > 0, "stage 0 is not run (first={c.first}); leave it out, or set first=0"
    ),
    Unread(
        "stages.random_patches",
        lambda c: not c.first <= 1 <= c.last,
        "stage 1 is not run (first={c.first} last={c.last}); leave it out, or choose other stages",
    ),
    Unread(
        "stages.finetune", lambda c: c.last < 3, "stage 3 is not run (last={c.last}); leave it out, or set last=3"
    ),
    Unread(
        f"ppo network {TRAINING}",
        lambda c: not runs_stage_2(c),
        "stage 2 is not run (first={c.first} last={c.last}); leave it out, or choose other stages",
    ),
    Unread("policy", lambda c: c.last < 2, "no stage from 0 to last={c.last} looks with a policy; leave it out, or set last=3"),
    Unread("joint", lambda c: c.rounds == 0, "there are no joint rounds; set rounds, or leave it out"),
    Unread(
        "joint.patience",
        lambda c: c.rounds == 1 or c.data.val == 0,
        "it ends several rounds by their results on the validation split; set rounds=2 or more and data.val, or leave it out",
    ),
    *(
        Unread(f"ppo.{ours}", _replaced(theirs), f"stage 2 is run in joint rounds alone (first=3), by joint.{theirs}; set that")
        for ours, theirs in (("total_steps", "total_steps"), ("epochs", "total_steps"), ("learning_rate", "policy_learning_rate"))
    ),
    *SUPERVISED,
)

MEASURED = (
    Unread(
        "classifier policy",
        lambda c: c.run,
        "run={c.run} has a classifier and a policy; leave it out, or leave run out and give both",
    ),
    Unread(
        "grid video_div",
        lambda c: c.run,
        "run={c.run} was made with another one or the same; leave it out, or give classifier and policy instead of run",
    ),
    *(
        Unread(rule.keys, _without_run(rule.when), rule.why)
        for rule in (
            *CLIPS,
            Unread("data.views data.sampling", lambda c: True, "it is about training clips, and none is read; leave it out"),
            Unread(
                "data.val",
                lambda c: c.keep is None and c.budget is None,
                "nothing is chosen on the validation split without keep or budget; leave it out",
            ),
            Unread(
                "bank_dtype bank_gib",
                lambda c: c.bank is False,
                "with bank=false features are kept nowhere; leave it out, or set bank=true",
            ),
        )
    ),
)

RULES: dict[type, tuple[Unread, ...]] = {
    TrainPPO: (*SHARED, *GIVEN_CLASSIFIER),
    Train: (*ALGORITHM, *SHARED, *GIVEN_CLASSIFIER),
    TrainStages: (*WHICH_STAGES, *SHARED),
    Evaluate: MEASURED,
    RebuildBundled: (
        Unread("stages.finetune", lambda c: True, "a bundled classifier is made by stages 0 and 1; leave it out"),
        *SUPERVISED,
    ),
}
"""Schema of a command → its rules, the first that applies to a key being the one that counts."""
