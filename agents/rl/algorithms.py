"""The table of algorithms (their classes, supported actions and policies), and functions that build models from the keys ``algo.*``.

The table has all algorithms of Stable-Baselines3, sb3-contrib and this package; any other class can be named by its dotted path. Default
settings are in `configs/algo/NAME.yaml`. docs/algorithms.md compares the results of the algorithms.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
from gymnasium import spaces
from omegaconf import OmegaConf
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adafocus_env.features.live import Features
from agents.config.settings import AlgoConfig, NetworkConfig, Train
from agents.policies.networks import PolicyArchitecture, architecture_of
from agents.policies.sb3 import ClipReferenceExtractor, FrameReferenceExtractor, ReferenceExtractor
from agents.policies.spatial import SpatialArchitecture
from agents.rl.buffers import ClipReplayBuffer
from classifiers.errors import InputError, lookup, refuse_if, suggestion

DISCRETE, CONTINUOUS = "discrete", "continuous"
BY_REFERENCE = ("reference", "reference_looks")  # observations for extractors that read glances in place
SIZES = ("name", "width", "kernel", "depth", "channels", "features", "hidden", "memory", "settings")  # `ClipReferenceExtractor` reads these


@dataclass(frozen=True)
class Interface:
    """The properties of the environment and its clips that the constructor of an algorithm needs.

    Attributes:
        observation_space: observation space of one environment.
        action_space: action space of one environment.
        num_envs: N, number of environments that are stepped together.
        num_steps: D, steps per episode.
        map_shape: (C, h, w) of a glance map.
        patch_share: P / H, the side of a patch as a fraction of the side of the frame.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    num_envs: int
    num_steps: int
    map_shape: tuple[int, int, int]
    patch_share: float

    @classmethod
    def of(cls, env: VecEnv, features: Features) -> "Interface":
        """Return the `Interface` of an environment that plays the clips of ``features``."""
        share = features.action.patch_size / features.action.size
        return cls(env.observation_space, env.action_space, env.num_envs, features.num_steps, features.map_shape, share)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table of algorithms.

    Attributes:
        path: dotted path of the class, imported on use.
        actions: the supported kinds of action.
        why: the reason, if only one kind of action is supported.
        policy: a policy name that the class knows, or the dotted path of a policy class.
        spatial: the policy to use with network=spatial and observations by reference; None: use ``policy``.
        extractor: features extractor of the policy for observations by reference; None: the policy defines its extractor.
        network: the keys of `agents.config.settings.NetworkConfig` that the policy reads.
        samples_ahead: whether the random numbers of a rollout are sampled before the rollout starts.
        counts_rows: whether a step of N environments increases `num_timesteps` by N² instead of N.
        full_information: whether the algorithm learns from the rewards of all actions (see `adafocus_env.outcome`); None: it can learn
            either with or without these rewards.
    """

    path: str
    actions: tuple[str, ...] = (DISCRETE, CONTINUOUS)
    why: str = ""
    policy: str = "MlpPolicy"
    spatial: str | None = None
    extractor: type[ReferenceExtractor] | None = ClipReferenceExtractor
    network: tuple[str, ...] = SIZES
    samples_ahead: bool = False
    counts_rows: bool = False
    full_information: bool | None = False


def _value_based(path: str) -> Algorithm:
    return Algorithm(path, (DISCRETE,), "it is value-based and needs a finite set of actions", spatial=_off_policy(path))


def _deterministic_gradient(path: str) -> Algorithm:
    why = "its actor follows the critic's gradient with respect to the action, and cells have none"
    return Algorithm(path, (CONTINUOUS,), why, spatial=_off_policy(path))


def _off_policy(path: str) -> str:
    """Return the policy class of an algorithm on the spatial network. (DDPG is TD3 with other settings.)"""
    return f"agents.policies.off_policy.Spatial{path.rpartition('.')[2].replace('DDPG', 'TD3')}Policy"


def _policy_gradient(path: str, *more_keys: str) -> Algorithm:
    return Algorithm(path, policy="agents.policies.sb3.PatchActorCriticPolicy", network=(*SIZES, "std", "learn_std", *more_keys))


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": _policy_gradient("stable_baselines3.PPO", "batch_norm"),
    "expected_pg": replace(
        _policy_gradient("agents.rl.expected_pg.ExpectedPG", "batch_norm"),
        actions=(DISCRETE,), why="it sums over all actions and needs a finite set of them", full_information=True,
    ),
    "imitation": Algorithm(
        "agents.rl.imitation.Imitation", (DISCRETE,), "its targets are cells",
        policy="agents.policies.sb3.PatchActorCriticPolicy", network=(*SIZES, "std", "batch_norm"), full_information=None,
    ),
    "a2c": _policy_gradient("stable_baselines3.A2C"),
    "dqn": _value_based("stable_baselines3.DQN"),
    "sac": _deterministic_gradient("stable_baselines3.SAC"),
    "td3": _deterministic_gradient("stable_baselines3.TD3"),
    "ddpg": _deterministic_gradient("stable_baselines3.DDPG"),
    "recurrent_ppo": Algorithm(
        "sb3_contrib.RecurrentPPO",
        policy="agents.policies.contrib.LstmPolicy", extractor=FrameReferenceExtractor, network=("channels", "features"),
    ),
    "trpo": _policy_gradient("sb3_contrib.TRPO"),
    "qrdqn": _value_based("sb3_contrib.QRDQN"),
    "tqc": _deterministic_gradient("sb3_contrib.TQC"),
    "crossq": _deterministic_gradient("sb3_contrib.CrossQ"),
    "maskable_ppo": Algorithm(
        "sb3_contrib.MaskablePPO", (DISCRETE,), "masks exclude single actions and need a finite set of them",
        policy="agents.policies.contrib.MaskablePatchPolicy",
    ),
    "ars": Algorithm(
        "sb3_contrib.ARS",
        policy="agents.policies.contrib.SpatialSoftmaxPolicy", extractor=None, network=(), samples_ahead=True, counts_rows=True,
    ),
}  # fmt: skip


def class_of(name: str) -> type[BaseAlgorithm]:
    """Return the class for a name in `ALGORITHMS` or a dotted path.

    Raises:
        InputError: if the name, module or class does not exist, or is not a subclass of Stable-Baselines3's `BaseAlgorithm`.
    """
    refuse_if(not name, "algo.name is empty: algo=custom needs algo.name=PACKAGE.CLASS, and algo=PACKAGE.CLASS is short for both")
    path = name if "." in name else lookup("algo.name", name, ALGORITHMS).path
    module, _, attribute = path.rpartition(".")
    found = _import(name, module, attribute)
    if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
        raise InputError(
            f"algo.name must be a subclass of stable_baselines3.common.base_class.BaseAlgorithm, got {name} "
            "(agents.evaluation.evaluate.evaluate accepts any object with predict)"
        )
    return found


def algorithm_of(kind: type[BaseAlgorithm], name: str) -> Algorithm:
    """Return the row called ``name``.

    If the table has no such row, return the row of the nearest base class of ``kind``, or a default row.
    """
    nearest = name if name in ALGORITHMS else nearest_name(kind)
    return ALGORITHMS[nearest] if nearest else Algorithm(name)


def nearest_name(kind: type[BaseAlgorithm]) -> str | None:
    """Return the name of a class in the table.

    If the class is not in the table, return the name of its first base class in the table; None if there is no such base class.
    """
    names = {_public_path(algorithm.path): name for name, algorithm in ALGORITHMS.items()}
    return next((names[path] for base in kind.__mro__ if (path := _public_path(f"{base.__module__}.{base.__name__}")) in names), None)


def _public_path(path: str) -> str:
    return f"{path.split('.')[0]}.{path.split('.')[-1]}"


def learns_as_ppo(config: AlgoConfig) -> bool:
    """Return whether the algorithm reads the keys ``ppo.*``.

    PPO and its subclasses read the keys ``ppo.*`` if the policy gets observations by reference.
    """
    return issubclass(class_of(config.name), PPO) and config.observation == "reference"


def without_effect(config: Train) -> Iterator[tuple[str, str]]:
    """Yield the settings that the algorithm of a command does not read; see `agents.config.effect`."""
    algo, network = config.algo, vars(NetworkConfig())
    row = algorithm_of(class_of(algo.name), algo.name)
    if algo.name in ALGORITHMS and row.full_information is False:
        yield "env.full_information", f"algo={algo.name} learns only from the action taken; leave it out, or set algo=expected_pg"
    if learns_as_ppo(algo):
        if algo.name == "imitation":
            unread = "ppo.gamma ppo.gae_lambda ppo.clip_range ppo.vf_coef ppo.normalize_advantage ppo.normalize_returns"
            limits = "algo.settings.target_kl algo.settings.clip_range_vf"
            yield f"{unread} {limits}", "algo=imitation has neither returns nor clipping; leave it out"
        elif row.full_information:
            yield "ppo.normalize_returns", f"algo={algo.name} uses returns only for its critic; leave it out"
            yield "algo.settings.clip_range_vf", f"algo={algo.name} does not clip the values of its critic; leave it out"
            if config.ppo.gamma == 0:
                yield "ppo.gae_lambda ppo.vf_coef", f"algo={algo.name} has no critic with ppo.gamma=0; leave it out, or set ppo.gamma"
        yield "algo.total_steps algo.validate_every algo.save_every", "with PPO, set the keys of ppo (--help lists them)"
        return
    name = f"algo={algo.name} algo.observation={algo.observation}"
    yield "ppo", f"{name} learns by other keys; set algo.total_steps, algo.settings.*"
    read = row.network if algo.observation in BY_REFERENCE else ()
    yield " ".join(f"network.{key}" for key in network if key not in read), f"the policy of {name} lacks it"


def check_fits(name: str, where: str, space: spaces.Space) -> None:
    """Check that the algorithm supports this kind of action.

    Args:
        name: name of the algorithm.
        where: the setting that requests these actions; the error message names it.
        space: space of one action.

    Raises:
        InputError: if the algorithm does not support these actions. The message states the reason, the algorithms that support these
            actions, and the ids of environments that the algorithm supports.
    """
    algorithm = algorithm_of(class_of(name), name)
    kind = CONTINUOUS if isinstance(space, spaces.Box) else DISCRETE
    if kind in algorithm.actions:
        return
    (supported,) = algorithm.actions
    instead = (
        "env.action=continuous env.baseline=1 (ids: AdaFocusContinuous-v1, AdaFocusTrackContinuous-v1)"
        if supported == CONTINUOUS
        else "env.action=grid (ids: AdaFocus-v1, AdaFocusTrack-v1 and all others without Continuous)"
    )
    raise InputError(
        f"algo={name} learns {supported} actions only, and {where} has {kind} ones: {algorithm.why}. "
        f"Set {instead}, or choose one of {', '.join(fitting(kind))}"
    )


def fitting(kind: str) -> list[str]:
    """Return the names of the algorithms that support this kind of action."""
    return sorted(name for name, algorithm in ALGORITHMS.items() if kind in algorithm.actions)


RESERVED = {
    "policy": "the policy comes with the algorithm; give policy_kwargs", "env": "the environment is set under env",
    "seed": "set seed", "device": "set device", "_init_setup_model": "leave it out",
    "tensorboard_log": "TensorBoard logs go to the run folder", "verbose": "progress is shown by the command",
}  # fmt: skip


def check_settings(config: AlgoConfig) -> None:
    """Check that every name in ``algo.settings`` is an argument of the algorithm's class.

    Raises:
        InputError: if the class has no argument of this name (the message suggests the nearest name), or if another key sets the argument.
    """
    arguments: dict[str, inspect.Parameter] = {}
    bases: tuple[Any, ...] = class_of(config.name).__mro__
    for kind in bases:  # classes in the table pass ``**kwargs`` on to their base class
        arguments |= (own := inspect.signature(kind.__init__).parameters)
        if config.name not in ALGORITHMS or "kwargs" not in own:
            break
    known = sorted(set(arguments) - set(RESERVED) - {"self", "args", "kwargs"})
    any_name = config.name not in ALGORITHMS and any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    for key in config.settings:
        refuse_if(key in RESERVED, f"algo.settings.{key} is reserved: {RESERVED.get(key)}")
        if key not in arguments and not any_name:
            raise InputError(
                f"algo.settings.{key}: {config.name} has no such argument; {suggestion(key, known)}choose one of {', '.join(known)}"
            )


def new_model(env: VecEnv, features: Features, config: AlgoConfig, network: NetworkConfig, seed: int) -> BaseAlgorithm:
    """Return a new model that is ready to learn in ``env``. The caller binds the model's policy to the features.

    Args:
        env: the environment, with the observation of the config.
        features: features of the environment's clips.
        config: the algorithm and its settings. If a setting is a number of steps, null means as many steps as one whole clip in every
            environment has.
        network: network of the policy, if the policy reads glances by reference.
        seed: seed of all random numbers.

    Raises:
        InputError: if the class rejects the settings.
    """
    kind, policy, arguments = _constructor(Interface.of(env, features), config, network)
    try:
        return kind(policy, env, seed=seed, device=str(features.classifier.device), **arguments)
    except (TypeError, ValueError, AssertionError) as problem:
        raise InputError(f"algo={config.name} does not accept its settings {config.settings}: {problem}") from problem


def rebuild_model(interface: Interface, config: AlgoConfig, network: NetworkConfig, device: str) -> BaseAlgorithm:
    """Return a model with the same structure as that of `new_model`, but with new weights and without an environment."""
    kind, policy, arguments = _constructor(interface, config, network)
    model = kind(policy, None, device=device, _init_setup_model=False, **arguments)  # as in Stable-Baselines3's `load`
    model.observation_space, model.action_space = interface.observation_space, interface.action_space
    model.n_envs, model.env = interface.num_envs, interface  # some algorithms read the action space from their environment
    model._setup_model()
    model.env = None
    return model


def _constructor(interface: Interface, config: AlgoConfig, network: NetworkConfig) -> tuple[type[Any], str | type, dict[str, Any]]:
    """Return the class of the algorithm, the policy, and the other arguments of the constructor."""
    kind = class_of(config.name)
    settings = {**_inherited_settings(kind, config.name), **config.settings}
    policy, policy_kwargs = _policy(algorithm_of(kind, config.name), interface, config, network)
    arguments = _to_arguments(settings, interface)
    arguments["policy_kwargs"] = {**policy_kwargs, **(settings.get("policy_kwargs") or {})}
    if issubclass(kind, OffPolicyAlgorithm) and config.observation in BY_REFERENCE and "replay_buffer_class" not in settings:
        arguments |= {"replay_buffer_class": ClipReplayBuffer, "replay_buffer_kwargs": {"clip_length": interface.num_steps}}
    return kind, policy, arguments


def _policy(algorithm: Algorithm, interface: Interface, config: AlgoConfig, network: NetworkConfig) -> tuple[str | type, dict[str, Any]]:
    """Return the policy, as a name or a class, and its arguments."""
    if config.observation not in BY_REFERENCE:
        return "MultiInputPolicy" if isinstance(interface.observation_space, spaces.Dict) else "MlpPolicy", {}
    path = algorithm.spatial if algorithm.spatial and network.name == SpatialArchitecture.kind else algorithm.policy
    module, _, name = path.rpartition(".")
    policy = getattr(importlib.import_module(module), name) if module else name
    if algorithm.extractor is None:
        return policy, {"map_shape": interface.map_shape, "patch_share": interface.patch_share}
    kind = PolicyArchitecture.from_config if algorithm.extractor is FrameReferenceExtractor else architecture_of
    extractor_kwargs = {"architecture": kind(interface.map_shape, interface.patch_share, network)}
    kwargs = {"features_extractor_class": algorithm.extractor, "features_extractor_kwargs": extractor_kwargs}
    return policy, {**kwargs, "std": network.std, "learn_std": network.learn_std} if "std" in algorithm.network else kwargs


def _to_arguments(settings: Mapping[str, Any], interface: Interface) -> dict[str, Any]:
    """Convert settings from YAML to arguments of the class."""
    steps = interface.num_steps
    rollout = (settings.get("n_steps") or steps) * interface.num_envs
    whole_clips = {"n_steps": steps, "train_freq": steps, "batch_size": rollout}
    arguments: dict[str, Any] = {key: whole_clips.get(key) if value is None else value for key, value in settings.items()}
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    if isinstance(arguments.get("action_noise"), int | float):
        shape: tuple[int, ...] = interface.action_space.shape or ()
        arguments["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(arguments["action_noise"])))
    return arguments


def _inherited_settings(kind: type[BaseAlgorithm], name: str) -> dict[str, Any]:
    """Return the default settings of a class outside the table, which are those of its nearest base class in the table."""
    nearest = None if name in ALGORITHMS else nearest_name(kind)
    if nearest is None:
        return {}
    config: Any = OmegaConf.to_container(OmegaConf.create((files("configs") / "algo" / f"{nearest}.yaml").read_text(encoding="utf-8")))
    return config.get("algo", config).get("settings") or {}  # in a file that also sets other groups, below "algo"


def _import(name: str, module: str, attribute: str) -> object:
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as problem:
        missing = problem.name or module
        remedy = "pip install sb3-contrib" if missing == "sb3_contrib" else "install it, or start the command where Python finds it"
        raise InputError(f"algo.name={name}: there is no module {missing!r}; {remedy}") from problem
    except AttributeError as problem:
        hint = suggestion(attribute, dir(importlib.import_module(module))).rstrip("? ")
        raise InputError(f"algo.name={name}: module {module!r} has no {attribute!r}" + (f"; {hint}?" if hint else "")) from problem
