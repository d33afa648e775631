"""Stage 2 in several processes: each process computes the clips that it owns, and all processes have the same results.

Everything small is computed in every process from the same random numbers: which clips are played, the actions, the rollout buffer, the
minibatches and the loss. Only the work of the networks is shared out: a process steps the environments whose clip it owns, and runs the
policy on the rows of a batch whose clip it owns. The processes exchange the results of a step, and the outputs of the policy. The loss is
therefore that of the whole minibatch in every process, with its advantage moments and its KL divergence. Its gradient is the sum of the
gradients of all processes, because each process has only the gradient that flows through its own rows.
"""

from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from adafocus_env import distributed
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Indices
from adafocus_env.outcome import Outcome
from adafocus_env.transfers import to_array, to_device
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import AlgoConfig
from agents.rl.algorithms import class_of
from agents.runs.seeding import random_states, restore_random_states
from classifiers.errors import refuse_if

SHARED = ("ppo", "expected_pg", "imitation")
"""The algorithms that several processes can train together: their loss depends on the networks only through the outputs of the policy."""


def check_processes(algo: AlgoConfig, num_envs: int) -> None:
    """Check that all processes can train the policy together, and that there are enough environments for them.

    Raises:
        InputError: if there are several processes, and the algorithm is not one of `SHARED` or there are fewer environments than processes.
    """
    processes = distributed.world_size()
    refuse_if(
        processes > 1 and (class_of(algo.name) not in map(class_of, SHARED) or algo.observation != "reference"),
        f"algo={algo.name} with algo.observation={algo.observation} needs a single process, got {processes}; start it without torchrun, "
        f"or choose one of {', '.join(SHARED)} with algo.observation=reference",
    )
    refuse_if(
        num_envs < processes,
        f"env.num_envs must be at least the number of processes, {processes}, got {num_envs}; raise it, or start fewer processes",
    )


def owned(clips: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the clips (n,) that this process owns.

    A clip has the same owner in every epoch, so that a bank in memory computes its features in one process only.
    """
    return clips % distributed.world_size() == distributed.rank()


class SharedDynamics(Dynamics):
    """The dynamics of N clips in several processes. A process computes the steps of the clips that it owns.

    Clips, random patches, counters of steps and patches, and the outcomes of steps are the same in all processes. The states of the head
    and the scores are only valid for the clips that the process owns.
    """

    @torch.no_grad()
    def step(self, actions: Any, rows: Indices | None = None) -> Outcome:
        """Take one step in all rows; see `Dynamics.step`. All processes must call this method with the same actions."""
        assert rows is None, "episodes of equal length begin and end together"
        checked, ours = to_array(self.check(actions, self.num_clips)), np.flatnonzero(owned(self.clip))
        steps, num_patches = self.step_number, self.num_patches
        computed = distributed.gather_objects((ours, super().step(checked[ours], ours)) if len(ours) else None)
        everywhere, outcomes = zip(*(each for each in computed if each is not None), strict=True)
        order = np.argsort(np.concatenate(everywhere))
        outcome = Outcome(*(np.concatenate([getattr(each, field.name) for each in outcomes])[order] for field in fields(Outcome)))
        self._update(
            self._rows,
            step_number=steps + ~outcome.terminated,
            num_patches=num_patches + self.action.patch_mask(checked),
            running=~outcome.terminated,
            boxes=to_array(outcome.boxes).copy(),
        )
        return outcome


class SharedVectorEnv(AdaFocusVectorEnv):
    """The vector environment in several processes, which all play the same clips. A process decodes and steps the clips that it owns."""

    dynamics_class = SharedDynamics

    def _clips_of_epoch(self) -> Indices:
        clips = super()._clips_of_epoch()
        self.dynamics.features.clips.prefetch(clips[owned(clips)])
        return clips

    def _readable_clips(self, clips: Indices) -> Indices:
        source = self.dynamics.features.clips
        readable = np.concatenate(distributed.gather_objects(source.readable_clips(clips[owned(clips)])))
        if len(readable) < len(clips):  # so that no process tries to read these clips again
            for failures in distributed.gather_objects(source.failures):
                source.leave_out(failures)
        return clips[np.isin(clips, readable)]


class SharedRows:
    """Hooks by which the networks of a policy compute only the rows of a batch whose clips the process owns.

    Attributes:
        count: number of rows of the batch.
        ours: indices of the rows that this process computes. If there are none, the first row is computed and its output is ignored, so
            that all processes have the same parameters in their gradients.
    """

    count: int
    ours: Tensor

    def __init__(self) -> None:
        self._batch_norm = distributed.GlobalBatchNorm()

    def select(self, extractor: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Return the references of our rows, as a hook before the features extractor."""
        (references,) = inputs
        self.count = len(references)
        self.ours = to_device(np.flatnonzero(owned(to_array(references[:, 0]).astype(np.int64))), references.device)
        self._batch_norm.has_samples = len(self.ours) > 0
        self._batch_norm.__enter__()
        return references[self.ours] if len(self.ours) else references[:1]

    def end_selection(self, *hooked: Any) -> None:
        """Restore the batch norms of one process, as a hook after the features extractor."""
        self._batch_norm.__exit__(None, None, None)

    def complete(self, head: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        """Return the outputs of all rows, as a hook after a head. Gradients flow only through our rows."""
        computed = outputs[: len(self.ours)]
        whole = outputs.new_zeros(self.count, *outputs.shape[1:]).index_copy(0, self.ours, computed.detach())
        return distributed.all_sum(whole).index_copy(0, self.ours, computed)


def share_policy(policy: ActorCriticPolicy) -> None:
    """Share out the work of a policy. From now on, all processes must use the policy together, with the same batches.

    Gradients of the networks are summed over all processes as soon as they are computed. Other parameters, such as the standard deviation
    of continuous actions, act on all rows in every process, so that their gradients are complete.
    """
    rows = SharedRows()
    policy.features_extractor.register_forward_pre_hook(cast(Any, rows.select))
    policy.features_extractor.register_forward_hook(rows.end_selection, always_call=True)
    for head in (policy.action_net, policy.value_net):
        head.register_forward_hook(rows.complete)
    for module in (policy.features_extractor, policy.action_net, policy.value_net):
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(_sum_gradient)


def _sum_gradient(parameter: Tensor) -> None:
    distributed.all_sum(cast(Tensor, parameter.grad))


def share_random_states() -> None:
    """Replace the random states of all processes by those of the main process. (Only the main process validates.)"""
    if distributed.world_size() == 1:
        return
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    states, on_gpu = distributed.broadcast_object((random_states(), on_gpu))
    restore_random_states({**states, "cuda": []})  # every process has another GPU
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu)
