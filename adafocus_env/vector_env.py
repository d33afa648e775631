"""The vector environment, a `gymnasium.vector.VectorEnv` that processes N clips in every call of the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.build import Split, build_features, make_action
from adafocus_env.clips.store import ClipSource
from adafocus_env.clips.stream import StreamingClips
from adafocus_env.demo.videos import DEFAULT_TASK
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features, Indices
from adafocus_env.observation import OBSERVATIONS, Observation, row_of, to_numpy
from adafocus_env.outcome import Outcome
from adafocus_env.render import picture
from adafocus_env.settings import EnvSettings, fields_of, unknown, validate
from adafocus_env.transfers import Values, rows_of, to_array, to_device, with_rows
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup, refuse_if

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}
MODES = {name: mode for mode in AutoresetMode for name in (mode.name, mode.value)}

Step = tuple[Any, Any, Any, Any, dict[str, Any]]
"""Observations (N, …), rewards (N,), terminated (N,), truncated (N,), all arrays or all tensors, and infos."""


class AdaFocusVectorEnv(VectorEnv[Any, Any, Any]):
    """N copies of the environment `adafocus_env.env.AdaFocusEnv` that are stepped together.

    Sub-environment i behaves exactly, step for step, like a single environment that is reset with seed + i. Every step returns new arrays
    and tensors, which the environment does not modify later. `reset(options={"clips": [...]})` chooses the clips of the rows that are
    reset.

    Args:
        num_envs: N, number of sub-environments.
        classifier: see `adafocus_env.env.AdaFocusEnv`. `AdaFocusEnv` also describes the arguments that are not listed here.
        clips: see `adafocus_env.env.AdaFocusEnv`.
        autoreset_mode: a `gymnasium.vector.AutoresetMode`, or its name or value. The mode is declared in ``metadata``. With DISABLED,
            ``reset(options={"reset_mask": mask})`` begins new episodes in the rows where the mask is true.
        clip_order: how clips are chosen. With "independent", each sub-environment samples clips from its own generator. With "epoch", every
            clip is used once per epoch, in random order; each sub-environment takes the next clip when it is reset.
        output: "numpy" or "torch". With "torch", observations (also in ``final_obs``), rewards (float32) and flags are tensors on the
            networks' device. The infos that depend on actions or scores are tensors, too: confidence, previous, baseline, prediction,
            correct, box and action_rewards. With "torch", a step copies nothing to the host and does not wait for the GPU if actions are
            cells of a grid and all features are in a `MemoryBank`. If a step does not wait for the GPU, an action outside the space is
            detected on the GPU and ends the process. With "numpy" and with "torch", actions may be tensors. Gymnasium's wrappers require
            "numpy".
        settings: settings of `adafocus_env.settings.EnvSettings` by name.

    Attributes:
        rngs: the random generators of the sub-environments.

    Raises:
        InputError: if an argument is out of range, or if classifier and clips do not match.
    """

    dynamics_class: ClassVar[type[Dynamics]] = Dynamics

    def __init__(
        self,
        num_envs: int = 1,
        classifier: Classifier | str = "auto",
        clips: ClipSource | Split = "train",
        *,
        task: str = DEFAULT_TASK,
        observation: str | Callable[[Features], Observation] = "map",
        device: str = "auto",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        clip_order: Literal["independent", "epoch"] = "independent",
        output: Literal["numpy", "torch"] = "numpy",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        check_arguments(settings, AdaFocusVectorEnv)
        if render_mode is not None:
            lookup("render_mode", render_mode, dict.fromkeys(METADATA["render_modes"]))
        lookup("clip_order", clip_order, dict.fromkeys(("independent", "epoch")))
        lookup("output", output, dict.fromkeys(("numpy", "torch")))
        if clip_order == "independent" and isinstance(clips, StreamingClips):
            raise InputError("clip_order='independent' samples clips at random, but resampled clips are decoded in order; choose 'epoch'")
        self.autoreset_mode: AutoresetMode = (
            autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else lookup("autoreset_mode", autoreset_mode, MODES)
        )
        chosen = validate(EnvSettings, settings)
        make_observation = observation if callable(observation) else lookup("observation", observation, OBSERVATIONS)
        features = build_features(classifier, clips, task=task, device=device, **settings)
        self.dynamics = self.dynamics_class(
            features, num_envs, reward=chosen.reward, baseline=chosen.baseline, cost_weight=chosen.cost_weight, skipped=chosen.skipped,
            action=make_action(chosen.action, chosen.grid, features.classifier), full_information=chosen.full_information,
            tensors=output == "torch",
        )  # fmt: skip
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.num_envs, self.render_mode, self.clip_order, self.output = num_envs, render_mode, clip_order, output
        self._names = np.array(features.clips.names, dtype=object)
        self._observation = make_observation(features)
        self.single_observation_space = self._observation.space
        self.single_action_space = self.dynamics.action.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rngs: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self._queue: list[int] = []
        self._epoch = 0
        self._every = np.arange(num_envs)
        self._ended = np.zeros(num_envs, bool)  # true for the rows that the next step resets; only used in the mode NEXT_STEP
        self._outcome: Outcome | None = None

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every row, or in the rows of ``options["reset_mask"]``.

        Raises:
            ClosedEnvironmentError: if the environment is closed.
            InputError: if an option or seed cannot be used.
        """
        check_open(self)
        options = check_options(options, {"clips", "reset_mask"})
        rows = self._masked_rows(options.get("reset_mask"))
        self._seed(seed, rows)
        self._start(rows, options.get("clips"))
        return self._observe(), self._clip_info(rows)

    def step(self, actions: Any) -> Step:
        """Focus on the patches that ``actions`` select. The actions are an array or a tensor (N, *action space).

        Raises:
            ActionError: if an action lies outside the space; the episodes are unchanged. For tensors on a GPU, see the argument ``output``.
            ResetNeeded: if a row has no running episode.
            ClosedEnvironmentError: if the environment is closed.
        """
        check_open(self)
        resetting, rows = np.flatnonzero(self._ended), self._every
        if not len(resetting):
            outcome = self.dynamics.step(actions)
        else:
            actions = self.dynamics.check(actions, self.num_envs)
            if len(resetting) == self.num_envs:
                return self._reset_step(resetting)
            rows = np.flatnonzero(~self._ended)
            outcome = self.dynamics.step(rows_of(actions, rows), rows).among(rows, self.num_envs)
            self._start(resetting)
        self._outcome = outcome
        info = self._step_info(outcome, rows)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and outcome.terminated.any():
            return self._same_step(outcome, info)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._ended = outcome.terminated.copy()
        return self._observe(), *self._numbers(outcome.reward, outcome.terminated), info

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:  # type: ignore[override]
        """Return one picture (h, w, 3) per row; see `adafocus_env.env.AdaFocusEnv.render`."""
        if self.render_mode is None:
            return None
        return tuple(picture(self.dynamics, self._outcome, row) for row in range(self.num_envs))

    @property
    def action_rewards(self) -> NDArray[np.float32]:
        """The rewards (N, A) that the last step would have had with each action.

        If a row has begun a new episode since, its rewards are still those of its last step.

        The info of a step has the same numbers, but reading this property in every step is cheaper.

        Raises:
            InputError: If the environment was made without ``full_information``, or if no step has been taken.
        """
        if self._outcome is None or not len(self.dynamics.alternatives):
            raise InputError("action_rewards are reported after a step of an environment with full_information=True (env.full_information)")
        return to_array(self._outcome.action_rewards)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the action masks (N, actions); see `adafocus_env.dynamics.Dynamics.action_masks`."""
        return self.dynamics.action_masks()

    def random_state(self) -> dict[str, Any]:
        """Return the state that later episodes depend on.

        The state consists of the random generators, the remaining clips of the epoch, and the clips and random patches of the episodes that
        have just begun.
        """
        return {
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "vector_rng": self.np_random.bit_generator.state,
            "queue": list(self._queue),
            "epoch": self._epoch,
            "clip": self.dynamics.clip.copy(),
            "baseline": self.dynamics.baseline.copy(),
        }

    def restore_random_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `random_state`. All episodes must have just begun when the state is saved."""
        for rng, saved in zip(self.rngs, state["rngs"], strict=True):
            rng.bit_generator.state = saved
        self.np_random.bit_generator.state = state["vector_rng"]
        self._queue, self._epoch = list(state["queue"]), state["epoch"]
        self.dynamics.restart(state["clip"], state["baseline"])
        self._ended = np.zeros(self.num_envs, bool)

    def _start(self, rows: Indices, clips: Sequence[int] | None = None) -> None:
        if clips is not None and len(clips) != len(rows):
            raise InputError(f"options['clips'] has {len(clips)} entries; give one clip for each of the {len(rows)} rows that are reset")
        chosen = clips if clips is not None else self._deal(len(rows)) if self.clip_order == "epoch" else [None] * len(rows)
        self.dynamics.start(rows, [self.dynamics.sample_episode(self.rngs[row], clip) for row, clip in zip(rows, chosen, strict=True)])
        self._ended = with_rows(self._ended, rows, False)

    def _deal(self, count: int) -> list[int]:
        """Return the next ``count`` clips of the current epoch. If the epoch has fewer clips left, continue with the next epoch."""
        dealt: list[int] = []
        while (missing := count - len(dealt)) > 0:
            if not self._queue:
                self._queue = self._clips_of_epoch().tolist()
                self._epoch += 1
            taken, self._queue = self._queue[:missing], self._queue[missing:]
            dealt += self._readable_clips(np.array(taken)).tolist()
        return dealt

    def _clips_of_epoch(self) -> Indices:
        return self.dynamics.features.clips.epoch(self._epoch, self.np_random)

    def _readable_clips(self, clips: Indices) -> Indices:
        return self.dynamics.features.clips.readable_clips(clips)

    def _seed(self, seed: int | Sequence[int | None] | None, rows: Indices) -> None:
        if seed is None:
            return
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != self.num_envs:
            raise InputError(f"seed has {len(seeds)} entries; give one number, or one for each of the {self.num_envs} sub-environments")
        for row in rows:
            if seeds[row] is not None:
                self.rngs[row] = seeding.np_random(int(seeds[row]))[0]
        if len(rows) == self.num_envs and seeds[0] is not None:
            self._np_random, self._np_random_seed = seeding.np_random(int(seeds[0]))
            self._queue, self._epoch = [], 0

    def _masked_rows(self, mask: object) -> Indices:
        if mask is None:
            return self._every
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise InputError(
                f"options['reset_mask'] has dtype {mask.dtype}, shape {mask.shape} and {int(np.count_nonzero(mask))} rows set; "
                f"give a bool array of shape ({self.num_envs},) with at least one row set"
            )
        if not self.dynamics.started[~mask].all():
            raise ResetNeeded("the first reset begins an episode in every row; call reset without reset_mask first")
        return np.flatnonzero(mask)

    def _reset_step(self, rows: Indices) -> Step:
        """Reset all rows, and return the result of a step that only resets.

        In the mode NEXT_STEP, a step that only resets follows the end of all episodes.
        """
        self._start(rows)
        nothing = self._numbers(np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool))
        return self._observe(), *nothing, self._clip_info(rows)

    def _same_step(self, outcome: Outcome, info: dict[str, Any]) -> Step:
        """Begin new episodes in the rows whose episode has ended, and return the result of the step.

        The info contains the final observations and infos of the ended episodes, as Gymnasium defines.
        """
        final, final_obs = self._observe(), np.full(self.num_envs, None, dtype=object)
        rows, going_on = np.flatnonzero(outcome.terminated), np.flatnonzero(~outcome.terminated)
        for row in rows.tolist():
            final_obs[row] = row_of(final, row)
        final_info = self._info(rows, **{key: value for key, value in info.items() if not key.startswith("_")})
        self._start(rows)
        info = {
            **(self._step_info(outcome, going_on) if len(going_on) else {}),
            **self._clip_info(self._every),
            "final_obs": final_obs,
            "final_info": final_info,
            "_final_obs": outcome.terminated.copy(),
            "_final_info": outcome.terminated.copy(),
        }
        return self._observe(), *self._numbers(outcome.reward, outcome.terminated), info

    def _observe(self) -> Any:
        observed = self._observation.observe(self.dynamics)
        return to_numpy(observed) if self.output == "numpy" else observed

    def _numbers(self, reward: Values, terminated: NDArray[np.bool_]) -> tuple[Any, Any, Any]:
        """Return rewards (N,), terminated (N,) and truncated (N,) as arrays or tensors, depending on ``output``."""
        truncated = np.zeros(self.num_envs, bool)
        if self.output == "numpy":
            return _doubles(reward), terminated, truncated
        device = self.dynamics.state.device
        reward = reward if isinstance(reward, Tensor) else to_device(reward, device)
        return reward, to_device(terminated, device), to_device(truncated, device)

    def _clip_info(self, rows: Indices) -> dict[str, Any]:
        return self._info(rows, clip=self.dynamics.clip.copy(), name=self._names[self.dynamics.clip])

    def _step_info(self, outcome: Outcome, rows: Indices) -> dict[str, Any]:
        values: dict[str, Values] = {
            "confidence": _doubles(outcome.confidence),
            "baseline": _doubles(outcome.baseline),
            "prediction": outcome.prediction,
            "correct": outcome.correct,
            "box": outcome.boxes,
            "multiply_adds": outcome.multiply_adds,
            "previous": _doubles(outcome.previous),
            "penalty": _doubles(outcome.penalty),
        }
        if len(self.dynamics.alternatives):
            values["action_rewards"] = _doubles(outcome.action_rewards)
            if self.dynamics.action.num_cells is None:
                values["candidates"] = outcome.alternatives.copy()
        return {**self._clip_info(self._every), **self._info(rows, **values)}

    def _info(self, rows: Indices, **values: Values) -> dict[str, Any]:
        """Return the infos of the given rows as arrays with masks, in the format of Gymnasium's vector environments."""
        mask = np.zeros(self.num_envs, bool)
        mask[rows] = True
        if not mask.all():
            values = {key: _only(mask, value) for key, value in values.items()}
        return {**values, **{f"_{key}": mask.copy() for key in values}}


def infos_of_rows(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Convert Gymnasium's dictionary of arrays and masks to one dictionary per row, with the keys of that row."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, values in infos.items():
        if key.startswith(("_", "final_")):
            continue
        listed = values if values.ndim > 1 else values.tolist()
        for row, value, present in zip(rows, listed, infos[f"_{key}"], strict=True):
            if present:
                row[key] = value
    return rows


def check_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """Check the options of a reset and return them, with an empty dictionary in place of None.

    Raises:
        InputError: if an option is unknown.
    """
    if unknown := sorted(set(options or {}) - known):
        raise InputError(f"reset options {unknown} are not known; choose from {sorted(known)}")
    return options or {}


def check_arguments(settings: Mapping[str, Any], env: type) -> None:
    """Check the names of an environment's keyword arguments.

    Raises:
        InputError: if a name is unknown. The message suggests the nearest argument.
    """
    declared = fields_of(EnvSettings)
    listed = [name for name in signature(env).parameters if name != "settings"]
    for name in settings:
        refuse_if(name not in declared, unknown(name, [*declared, *listed]))


def check_open(env: gym.Env[Any, Any] | AdaFocusVectorEnv) -> None:
    """Check that an environment is not closed.

    Raises:
        ClosedEnvironmentError: if it is closed.
    """
    if env.closed:  # type: ignore[union-attr]
        raise ClosedEnvironmentError(f"{type(env).__name__} is closed and can be neither reset nor stepped; make a new one")


def _doubles(values: Values) -> Values:
    """Return a copy as float64."""
    return values.double() if isinstance(values, Tensor) else values.astype(np.float64)


def _only(mask: NDArray[np.bool_], values: Values) -> Values:
    """Return a copy of the values in which every row outside of the mask is zero, or None if the values are objects."""
    if isinstance(values, Tensor):
        return values.masked_fill(to_device(~mask, values.device).view(-1, *[1] * (values.ndim - 1)), 0)
    masked = np.full(values.shape, None, dtype=object) if values.dtype == object else np.zeros_like(values)
    masked[mask] = values[mask]
    return masked
