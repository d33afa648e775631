"""The algorithms that can learn where to look: a table of classes, which actions each fits and why, and how one is built.

All of Stable-Baselines3 and sb3-contrib; a class of your own is named by its dotted path. What is set for each stands in
`configs/algo/NAME.yaml`; what is measured of each, in docs/algorithms.md.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
from agents.policies.networks import check_std
from agents.policies.sb3 import ClipReferenceExtractor, GlanceReferenceExtractor
from agents.rl.ppo import new_network
from agents.rl.replay_buffer import ClipReplayBuffer
from classifiers.errors import InputError, lookup

DISCRETE, CONTINUOUS = "discrete", "continuous"
BY_REFERENCE = ("reference", "reference_looks")  # observations of which an extractor reads the glances in place
SIZES = ("channels", "features", "hidden", "memory")  # what the extractor that is recurrent over a clip is told


@dataclass(frozen=True)
class Interface:
    """What the constructor of an algorithm has to know of the environment and of its clips.

    Attributes:
        observation_space: of one environment.
        action_space: of one environment.
        num_envs: N, environments that are stepped together.
        num_steps: D, steps of an episode.
        map_shape: (C, h, w) of a glance map.
        patch_share: P / H, the side of a patch in sides of the frame.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    num_envs: int
    num_steps: int
    map_shape: tuple[int, int, int]
    patch_share: float

    @classmethod
    def of(cls, env: VecEnv, features: Features) -> Interface:
        """Return that of an environment with the clips of ``features``."""
        share = features.action.patch_size / features.action.size
        return cls(env.observation_space, env.action_space, env.num_envs, features.num_steps, features.map_shape, share)


def _clip_extractor(interface: Interface, network: NetworkConfig) -> dict[str, Any]:
    """The extractor that is recurrent over the glances of a clip, as PPO's."""
    told = {"network": new_network(interface.map_shape, network), "remember": False}
    return {"features_extractor_class": ClipReferenceExtractor, "features_extractor_kwargs": told}


def _glance_extractor(interface: Interface, network: NetworkConfig) -> dict[str, Any]:
    """The same without memory, for policies that have their own."""
    told = {"network": new_network(interface.map_shape, network)}
    return {"features_extractor_class": GlanceReferenceExtractor, "features_extractor_kwargs": told}


def _clip_policy(interface: Interface, network: NetworkConfig) -> dict[str, Any]:
    return {**_clip_extractor(interface, network), "std": check_std(network.std)}


def _spot_policy(interface: Interface, network: NetworkConfig) -> dict[str, Any]:
    return {"map_shape": interface.map_shape, "patch_share": interface.patch_share}


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Attributes:
        path: of the class, imported when it is asked for.
        actions: the kinds of action that it learns.
        why: the reason, where it does not learn both kinds.
        policy: a name that the class knows, or the dotted path of a policy class.
        policy_kwargs: (interface, network) → arguments of the policy where it reads glances by reference.
        network: the keys of `agents.config.settings.NetworkConfig` that it reads; batch norm and its statistics are PPO's alone.
        learn: further arguments of the class's `learn`.
        samples_ahead: it samples the random numbers of a rollout before the rollout starts.
        counts_rows: its `num_timesteps` counts a step of N environments N times (for each of them).
    """

    path: str
    actions: tuple[str, ...] = (DISCRETE, CONTINUOUS)
    why: str = ""
    policy: str = "MlpPolicy"
    policy_kwargs: Callable[[Interface, NetworkConfig], dict[str, Any]] = _clip_extractor
    network: tuple[str, ...] = SIZES
    learn: Mapping[str, Any] = field(default_factory=dict)
    samples_ahead: bool = False
    counts_rows: bool = False


def _values(path: str) -> Algorithm:
    return Algorithm(path, (DISCRETE,), "it learns one value for each action, and of places there is no end")


def _gradients(path: str) -> Algorithm:
    return Algorithm(path, (CONTINUOUS,), "its actor follows the critic's gradient with respect to the action, and cells have none")


CLIP_POLICY, LSTM_POLICY, SPOT_POLICY = (
    "agents.policies.sb3.ClipPolicy", "agents.policies.contrib.LstmPolicy", "agents.policies.contrib.SpotPolicy"
)  # fmt: skip

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("stable_baselines3.PPO", policy=CLIP_POLICY, policy_kwargs=_clip_policy, network=(*SIZES, "std", "batch_norm")),
    "a2c": Algorithm("stable_baselines3.A2C", policy=CLIP_POLICY, policy_kwargs=_clip_policy, network=(*SIZES, "std")),
    "dqn": _values("stable_baselines3.DQN"),
    "sac": _gradients("stable_baselines3.SAC"),
    "td3": _gradients("stable_baselines3.TD3"),
    "ddpg": _gradients("stable_baselines3.DDPG"),
    "recurrent_ppo": Algorithm(
        "sb3_contrib.RecurrentPPO", policy=LSTM_POLICY, policy_kwargs=_glance_extractor, network=("channels", "features")
    ),
    "trpo": Algorithm("sb3_contrib.TRPO", policy=CLIP_POLICY, policy_kwargs=_clip_policy, network=(*SIZES, "std")),
    "qrdqn": _values("sb3_contrib.QRDQN"),
    "tqc": _gradients("sb3_contrib.TQC"),
    "crossq": _gradients("sb3_contrib.CrossQ"),
    "maskable_ppo": Algorithm(
        "sb3_contrib.MaskablePPO", (DISCRETE,), "masks rule out single actions, and places cannot be counted"
    ),
    "ars": Algorithm(
        "sb3_contrib.ARS", policy=SPOT_POLICY, policy_kwargs=_spot_policy, network=(), samples_ahead=True, counts_rows=True
    ),
}


def class_of(name: str) -> type[BaseAlgorithm]:
    """The class that a name in `ALGORITHMS` or a dotted path stands for.

    Raises:
        InputError: no such name, module or class, or it is no algorithm in the manner of Stable-Baselines3.
    """
    if not name:
        raise InputError("algo.name is empty: algo=custom needs algo.name=PACKAGE.CLASS, and algo=PACKAGE.CLASS is short for both")
    path = name if "." in name else lookup("algo.name", name, ALGORITHMS).path
    module, _, attribute = path.rpartition(".")
    found = _attribute(name, module, attribute)
    if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
        raise InputError(
            f"algo.name={name} is no algorithm: give a subclass of stable_baselines3.common.base_class.BaseAlgorithm "
            "(any object with predict can be evaluated, see agents.evaluation.evaluate.evaluate)"
        )
    return found


def algorithm_of(kind: type[BaseAlgorithm], name: str) -> Algorithm:
    """The row of a class: that of its name, or of the nearest class in the table that it is made from, or one that promises nothing."""
    nearest = name if name in ALGORITHMS else nearest_name(kind)
    return ALGORITHMS[nearest] if nearest else Algorithm(name)


def nearest_name(kind: type[BaseAlgorithm]) -> str | None:
    """The name of the class itself, or of the first in the table among those that it is made from."""
    paths = {algorithm.path.split(".")[0] + "." + algorithm.path.split(".")[-1]: name for name, algorithm in ALGORITHMS.items()}
    return next((paths[each] for base in kind.__mro__ if (each := f"{base.__module__.split('.')[0]}.{base.__name__}") in paths), None)


def learns_as_ppo(config: AlgoConfig) -> bool:
    """Whether this is the PPO case, which `agents.train_ppo` is: whole clips, the paper's policy, settings in ``ppo``."""
    return issubclass(class_of(config.name), PPO) and config.observation == "reference"


def check_fits(name: str, where: str, space: spaces.Space) -> None:
    """Checks that the algorithm learns this kind of action.

    Args:
        name: of the algorithm.
        where: what the user set that asks for these actions, for the message.
        space: of one action.

    Raises:
        InputError: it does not (says why, which algorithms do, and on which ids it does).
    """
    algorithm = algorithm_of(class_of(name), name)
    kind = CONTINUOUS if isinstance(space, spaces.Box) else DISCRETE
    if kind in algorithm.actions:
        return
    (wanted,) = algorithm.actions
    instead = (
        "env.action=continuous env.baseline=1 (ids: AdaFocusContinuous-v0, AdaFocusEasyContinuous-v0)"
        if wanted == CONTINUOUS
        else "env.action=grid (ids: AdaFocus-v0, AdaFocusEasy-v0 and all others without Continuous)"
    )
    raise InputError(
        f"algo={name} learns {wanted} actions only, and {where} has {kind} ones: {algorithm.why}. "
        f"Set {instead}, or choose one of {', '.join(fitting(kind))}"
    )


def fitting(kind: str) -> list[str]:
    """The names of the algorithms that learn this kind of action."""
    return sorted(name for name, algorithm in ALGORITHMS.items() if kind in algorithm.actions)


def without_effect(config: Train) -> Iterator[tuple[str, str]]:
    """Yield the settings that the algorithm of a command does not read; see `agents.config.effect`."""
    algo, network = config.algo, vars(NetworkConfig())
    if learns_as_ppo(algo):
        yield "algo.total_steps algo.validate_every algo.save_every", "with PPO, set the keys of ppo (--help lists them)"
        return
    name = f"algo={algo.name} algo.observation={algo.observation}"
    yield "ppo", f"{name} learns by other keys; set algo.total_steps, algo.settings.*"
    row = algorithm_of(class_of(algo.name), algo.name)
    if not row.resumes:
        yield "algo.save_every", f"algo={algo.name} has no state to save between its updates; leave it out"
    read = row.network if algo.observation in BY_REFERENCE else ()
    yield " ".join(f"network.{key}" for key in network if key not in read), f"the policy of {name} lacks it"


RESERVED = {
    "policy": "the policy comes with the algorithm; give policy_kwargs", "env": "the environment is set under env",
    "seed": "set seed", "device": "set device", "_init_setup_model": "leave it out",
    "tensorboard_log": "TensorBoard logs go to the run folder", "verbose": "progress is shown by the command",
}  # fmt: skip


def check_settings(config: AlgoConfig) -> None:
    """Check the names of the settings.

    Raises:
        InputError: the class has no such argument (suggests the nearest), or it is set elsewhere.
    """
    arguments = inspect.signature(class_of(config.name).__init__).parameters
    for key in config.settings:
        if key in RESERVED:
            raise InputError(f"algo.settings.{key} is not for you to set: {RESERVED[key]}")
        if key not in arguments and not any(each.kind is each.VAR_KEYWORD for each in arguments.values()):
            known = sorted(set(arguments) - set(RESERVED) - {"self"})
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"algo.settings.{key}: {config.name} has no such argument; {hint}choose one of {', '.join(known)}")


def new_model(env: VecEnv, features: Features, config: AlgoConfig, network: NetworkConfig, seed: int) -> BaseAlgorithm:
    """The algorithm, ready to learn in ``env``; the caller binds its policy to the features.

    Args:
        env: with the observation of the config.
        features: what the frozen networks see in its clips.
        config: the algorithm and its settings; in place of those that are null comes a whole clip of every environment.
        network: of the policy, where it reads glances by reference.
        seed: of everything random.

    Raises:
        InputError: the settings do not suit the class.
    """
    kind, policy, arguments = _constructor(Interface.of(env, features), config, network)
    try:
        return kind(policy, env, seed=seed, device=str(features.classifier.device), **arguments)
    except (TypeError, ValueError, AssertionError) as problem:
        raise InputError(f"algo={config.name} does not take its settings {config.settings}: {problem}") from problem


def rebuild_model(interface: Interface, config: AlgoConfig, network: NetworkConfig, device: str) -> BaseAlgorithm:
    """Return a model as `new_model` made it, with other weights and without an environment."""
    kind, policy, arguments = _constructor(interface, config, network)
    model = kind(policy, None, device=device, _init_setup_model=False, **arguments)  # as Stable-Baselines3's `load` does
    model.observation_space, model.action_space = interface.observation_space, interface.action_space
    model.n_envs, model.env = interface.num_envs, interface  # some read the action space from their environment
    model._setup_model()
    model.env = None
    return model


def _constructor(
    interface: Interface, config: AlgoConfig, network: NetworkConfig
) -> tuple[type[Any], str | type, dict[str, Any]]:
    """Return the class of the algorithm, its policy, and its further arguments."""
    kind = class_of(config.name)
    settings = {**_defaults(kind, config.name), **config.settings}
    policy, policy_kwargs = _policy(algorithm_of(kind, config.name), interface, config, network)
    arguments = _constructed(settings, interface)
    arguments["policy_kwargs"] = {**policy_kwargs, **(settings.get("policy_kwargs") or {})}
    if issubclass(kind, OffPolicyAlgorithm) and config.observation in BY_REFERENCE and "replay_buffer_class" not in settings:
        arguments |= {"replay_buffer_class": ClipReplayBuffer, "replay_buffer_kwargs": {"clip_length": interface.num_steps}}
    return kind, policy, arguments


def _policy(
    algorithm: Algorithm, interface: Interface, config: AlgoConfig, network: NetworkConfig
) -> tuple[str | type, dict[str, Any]]:
    """The policy, by name or as a class, and its arguments."""
    if config.observation not in BY_REFERENCE:
        return "MultiInputPolicy" if isinstance(interface.observation_space, spaces.Dict) else "MlpPolicy", {}
    module, _, name = algorithm.policy.rpartition(".")
    policy = getattr(importlib.import_module(module), name) if module else name
    return policy, algorithm.policy_kwargs(interface, network)


def _constructed(settings: Mapping[str, Any], interface: Interface) -> dict[str, Any]:
    """Settings as YAML has them → arguments as the classes want them."""
    given, steps = dict(settings), interface.num_steps
    for key in ("n_steps", "train_freq"):
        if key in given and given[key] is None:
            given[key] = steps
    if "batch_size" in given and given["batch_size"] is None:
        given["batch_size"] = given.get("n_steps", steps) * interface.num_envs
    if isinstance(given.get("train_freq"), list):
        given["train_freq"] = tuple(given["train_freq"])
    if isinstance(given.get("action_noise"), int | float):
        shape = interface.action_space.shape or ()
        given["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(given["action_noise"])))
    return given


def _defaults(kind: type[BaseAlgorithm], name: str) -> dict[str, Any]:
    """Of a user's own class: the settings of the algorithm in the table that it is made from."""
    nearest = None if name in ALGORITHMS else nearest_name(kind)
    if nearest is None:
        return {}
    config = OmegaConf.to_container(OmegaConf.create((files("configs") / "algo" / f"{nearest}.yaml").read_text(encoding="utf-8")))
    assert isinstance(config, dict)
    return config.get("algo", config).get("settings") or {}  # a file that sets more than the algorithm has it one level down


def _attribute(name: str, module: str, attribute: str) -> object:
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as problem:
        missing = problem.name or module
        remedy = "pip install sb3-contrib" if missing == "sb3_contrib" else "install it, or start the command where Python finds it"
        raise InputError(f"algo.name={name}: there is no module {missing!r}; {remedy}") from problem
    except AttributeError as problem:
        near = difflib.get_close_matches(attribute, dir(importlib.import_module(module)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"algo.name={name}: module {module!r} has no {attribute!r}{hint}") from problem
