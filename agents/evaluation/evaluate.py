"""Evaluate the learned policy and the baselines on the same clips and with the same classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, masks_of, with_skipping
from adafocus_env.build import arguments_of
from adafocus_env.classify import classify_clips, find_skipped
from adafocus_env.clips.store import ClipSource
from adafocus_env.clips.transforms import Targets
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features, Indices, LiveFeatures, by_step
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation.metrics import PolicyEvaluation, Scores, add_gaps, summarize
from agents.policies.baselines import (
    RULES,
    Actions,
    CentrePatch,
    GaussianPatch,
    GreedyOracle,
    LearnedPolicy,
    Oracle,
    Predictor,
    RandomPatch,
    RulePatch,
    choose_step,
)
from agents.policies.networks import PolicyNetwork
from classifiers.errors import lookup
from classifiers.flops import VideoFlops, classifier_flops, multiply_adds, video_flops

CLIPS_AT_ONCE = 250  # clips per call of a policy
PATCHES_AT_ONCE = 256  # patches per call of the focuser, which runs only if there is no bank

ClipPolicy = Callable[[Indices], Actions]
"""A function that maps indices of clips (n,) to actions (n, D, *action space)."""


def evaluate(
    features: Features,
    policy: PolicyNetwork | Predictor | None,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda name: None,
    skipped: str = "zeros",
) -> tuple[dict[str, dict[str, Any]], dict[str, PolicyEvaluation]]:
    """Evaluate the learned policy and all baselines.

    Args:
        features: Features of the clips.
        policy: The learned policy, any object with `predict`. The policy's attribute ``observation`` names its observation; a policy
            without this attribute gets the observation `reference`. If ``policy`` is None, only the baselines are evaluated.
        seed: Seed of the random baselines.
        progress: Called with the name of each policy before it is evaluated.
        skipped: Input of the head for frames that the learned policy skips, a name in `adafocus_env.classify.SKIPPED`.

    Returns:
        Two dictionaries, whose keys are names of policies. The first dictionary has the metrics of each policy (see
        `agents.evaluation.metrics.summarize`). The second dictionary has the evaluations of the policies that select patches. The second
        dictionary does not contain `glance_only` and `full_frame`, which select no patches. The greedy oracle is omitted unless there is a
        bank with the focus vectors of all cells.

    Raises:
        InputError: If the policy does not match the features, or if the scores are not finite.
    """
    evaluations, targets = {}, targets_of(features.clips)
    if policy is not None:
        progress("learned")
        learned = evaluate_policy(features, policy, skipped=skipped)
        evaluations["learned"] = replace(learned, macs=learned.macs + policy_macs(features, policy))
    for name, baseline in _baselines(features, seed).items():
        progress(name)
        evaluations[name] = replace(_evaluate(features, baseline, features.action, skipped), targets=targets)
    metrics = {name: summarize(evaluation) for name, evaluation in evaluations.items()}
    for name, evaluation in (("glance_only", _glance_only), ("full_frame", _full_frame)):
        progress(name)
        metrics[name] = summarize(replace(evaluation(features), targets=targets))
    add_gaps(metrics)
    return metrics, evaluations


def evaluate_policy(
    features: Features,
    policy: PolicyNetwork | Predictor,
    observation: str | None = None,
    skipped: str = "zeros",
    clips: Indices | None = None,
) -> PolicyEvaluation:
    """Evaluate one policy with deterministic actions. The multiply-adds of the policy network are not counted.

    Args:
        features: Features of the clips. If the features are stored in a bank, most of the evaluation's computation is avoided.
        policy: Any object with `predict`, recurrent or not. Action masks are passed to `predict` if it accepts them.
        observation: A name in `adafocus_env.observation.OBSERVATIONS`. If ``observation`` is None, the policy's attribute ``observation``
            is used, or `reference` if the policy has no such attribute.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        clips: Indices of the clips (n,); None: all clips in order.
    """
    predictor = LearnedPolicy(policy, features) if isinstance(policy, PolicyNetwork) else policy
    played = _evaluate(features, _clip_policy(features, predictor, observation, skipped), action_of(policy, features), skipped, clips)
    return replace(played, targets=targets_of(features.clips, clips))


def evaluate_baseline(features: Features, name: str, clips: Indices, *, seed: int) -> PolicyEvaluation:
    """Evaluate a baseline on clips (n,).

    Args:
        features: Features of the clips.
        name: Name in the table of results: `random`, `saliency`, `oracle`, ….
        clips: Indices of the clips (n,).
        seed: Seed of random patches.

    Raises:
        InputError: If the name is unknown, or if the baseline needs tracks or a bank that the features do not have. For an unknown name,
            the message suggests the nearest name.
    """
    act = lookup("policy", name, _baselines(features, seed))
    return replace(_evaluate(features, act, features.action, "zeros", clips), targets=targets_of(features.clips, clips))


def action_of(policy: object, features: Features) -> Action:
    """Return the kind of action of a policy on these features.

    Whether the policy can skip is read from its attribute ``skips`` or from its action space.
    """
    skip_action = with_skipping(features.action)
    skips = policy.skips if isinstance(policy, PolicyNetwork) else getattr(policy, "action_space", None) == skip_action.space
    return skip_action if skips else features.action


def _evaluate(
    features: Features, act: ClipPolicy, action: Action, skipped: str, chosen: Indices | None = None
) -> PolicyEvaluation:
    results, label_sets = [], features.clips.label_sets
    for clips in batches(np.arange(len(label_sets)) if chosen is None else chosen, CLIPS_AT_ONCE):
        actions = act(clips)
        patch_mask = action.patch_mask(actions)
        patches = actions if action.patch_action is action else action.to_patch_action(actions)
        results.append((patches, patch_mask, classify_actions(features, patches, patch_mask, skipped, clips)))
    patches, patch_mask, scores = (np.concatenate(values) for values in zip(*results, strict=True))
    macs = float(flops_of(features, skipped).total(patch_mask.sum(1)).mean())
    labels = label_sets if chosen is None else [label_sets[clip] for clip in chosen]
    return PolicyEvaluation(scores, labels, macs, patch_mask, patches, features.action)


def targets_of(clips: ClipSource, chosen: Indices | None = None) -> Targets | None:
    """Return the boxes (N, T, 4) of the target and its visibility (N, T), in the ``chosen`` clips or in all clips.

    Return None if none of these clips has a track.
    """
    known = [clips.targets(int(clip)) if clips.has_truth else None for clip in (range(len(clips)) if chosen is None else chosen)]
    if not any(known):
        return None
    absent = Targets(np.zeros((clips.num_frames, 4), np.float32), np.zeros(clips.num_frames, bool))
    return Targets(*(np.stack(values) for values in zip(*(each or absent for each in known), strict=True)))


def classify_actions(
    features: Features, actions: Actions, patch_mask: NDArray[np.bool_], skipped: str = "zeros", clips: Indices | None = None
) -> Scores:
    """Return the class scores (n, D, K) of clips after every step. The focuser runs only in steps in which ``patch_mask`` is true.

    Args:
        features: Glances and focus vectors of the clips.
        actions: Actions that select patches, (n, D, *action space), of the kind ``features.action``. Entries of skipped steps are ignored.
        patch_mask: (n, D) bool, the steps with a patch.
        skipped: Input of the head in the steps without a patch, a name in `adafocus_env.classify.SKIPPED`.
        clips: Indices of the clips (n,); None: all clips in order.

    Raises:
        InputError: If ``skipped`` is unknown.
    """
    clips = np.arange(len(features.clips)) if clips is None else clips

    def focus_vectors(rows: Indices) -> Tensor:
        row, step = np.nonzero(patch_mask[rows])
        if not len(row):
            return _no_focus_vectors(features)
        return features.focus_vectors(clips[rows][row], step, actions[rows][row, step])

    return _classify(features, clips, focus_vectors, patch_mask, find_skipped(skipped))


@torch.no_grad()
def _classify(
    features: Features, clips: Indices, focus_vectors: Callable[[Indices], Tensor], patch_mask: NDArray[np.bool_], skipped: str = "zeros"
) -> Scores:
    """Return the class scores (n, D, K).

    The function ``focus_vectors`` takes positions in ``clips`` and returns the concatenated focus vectors of all patches in these clips.
    """
    steps, scores = np.arange(features.num_steps)[None], []
    for rows in batches(np.arange(len(clips)), max(1, PATCHES_AT_ONCE // features.clips.num_frames)):
        glances = features.glance_vectors(clips[rows][:, None], steps)
        mask = torch.from_numpy(patch_mask[rows]).to(glances.device)
        scores.append(classify_clips(features.classifier, glances, focus_vectors(rows), mask, skipped).cpu().numpy())
    return np.concatenate(scores)


# Policies


def _clip_policy(features: Features, policy: Predictor, observation: str | None = None, skipped: str = "zeros") -> ClipPolicy:
    observation = observation or str(getattr(policy, "observation", "reference"))
    return _from_references(features, policy) if observation == "reference" else _in_environment(features, policy, observation, skipped)


def _from_references(features: Features, policy: Predictor) -> ClipPolicy:
    """Return a function that computes the policy's actions from references (clip, step), without an environment."""
    action, last = action_of(policy, features), features.num_steps - 1

    def act(clips: Indices) -> Actions:
        actions, state, focused = [], None, np.zeros(len(clips), bool)
        for step in range(features.num_steps):
            masks = partial(masks_of, action, ~focused & (step == last))
            chosen, state = choose_step(policy, _references(clips, step), state, np.full(len(clips), step == 0), masks)
            actions.append(chosen)
            focused |= action.patch_mask(chosen)
        return np.stack(actions, axis=1)

    return act


def _in_environment(features: Features, policy: Predictor, observation: str, skipped: str) -> ClipPolicy:
    """Return a function that computes the policy's actions in an environment, in which observations may depend on earlier actions."""
    env = AdaFocusVectorEnv(
        min(len(features.clips), CLIPS_AT_ONCE), features.classifier, features.clips,
        observation=observation, reward="confidence", bank=features, autoreset_mode="DISABLED", skipped=skipped,
        **arguments_of(features, skips=action_of(policy, features) is not features.action),
    )  # fmt: skip

    def act(clips: Indices) -> Actions:
        observed, _ = env.reset(seed=0, options={"clips": np.resize(clips, env.num_envs).tolist()})  # repeat clips to fill the environment
        actions, state = [], None
        for step in range(features.num_steps):
            chosen, state = choose_step(policy, observed, state, np.full(env.num_envs, step == 0), env.action_masks)
            actions.append(chosen)
            observed = env.step(chosen)[0]
        return np.stack(actions, axis=1)[: len(clips)]

    return act


def greedy_oracle_actions(
    features: Features, clips: Indices, action: Action | None = None, skipped: str = "zeros", cost_weight: float = 0.0
) -> Actions:
    """Return the actions (n, D, *action space) of `GreedyOracle` in clips (n,).

    Each action is chosen in the state that results from the earlier actions.
    """
    dynamics = Dynamics(features, len(clips), reward="confidence", action=action, skipped=skipped)
    dynamics.restart(clips, dynamics.baseline)
    oracle, actions = GreedyOracle(dynamics, cost_weight), []
    for step in range(features.num_steps):
        actions.append(oracle.choose(_references(clips, step)))
        dynamics.step(actions[-1])
    return np.stack(actions, axis=1)


def _baselines(features: Features, seed: int) -> dict[str, ClipPolicy]:
    action = features.action
    policies: dict[str, Predictor] = {
        "random": RandomPatch(action, seed),
        "centre": CentrePatch(action),
        "gaussian": GaussianPatch(action, seed),
        **{name: RulePatch(features, rule) for name, rule in RULES.items()},
    }
    if features.clips.has_truth:
        policies["oracle"] = Oracle(features)
    baselines: dict[str, ClipPolicy] = {name: _from_references(features, policy) for name, policy in policies.items()}
    if not isinstance(features, LiveFeatures) and action.num_cells is not None:
        baselines["greedy_oracle"] = partial(greedy_oracle_actions, features)
    return baselines


def _glance_only(features: Features) -> PolicyEvaluation:
    """Classify with zeros in place of focus vectors."""
    clips, flops = np.arange(len(features.clips)), flops_of(features)
    patch_mask = np.zeros((len(clips), features.num_steps), bool)
    scores = _classify(features, clips, lambda rows: _no_focus_vectors(features), patch_mask)
    return PolicyEvaluation(scores, features.clips.label_sets, flops.glancer + flops.head, patch_mask)


def _full_frame(features: Features) -> PolicyEvaluation:
    """Classify with whole frames in place of patches."""
    classifier, clips = features.classifier, np.arange(len(features.clips))

    def focus_vectors(rows: Indices) -> Tensor:
        frames = (features.clips.frames(int(clip)).to(classifier.device) for clip in rows)
        vectors = (classifier.focus(classifier.normalise(each), num_frames=len(each) // features.num_steps) for each in frames)
        return torch.cat([by_step(each, features.num_steps).mean(1) for each in vectors])

    flops = flops_of(features)
    macs = flops.glancer + flops.head + features.clips.num_frames * classifier_flops(classifier).focus_frame
    patch_mask = np.ones((len(clips), features.num_steps), bool)
    return PolicyEvaluation(_classify(features, clips, focus_vectors, patch_mask), features.clips.label_sets, macs, patch_mask)


def _no_focus_vectors(features: Features) -> Tensor:
    return torch.zeros(0, features.classifier.focuser.vector_size, device=features.classifier.device)


def _references(clips: Indices, step: int) -> Indices:
    return np.stack([clips, np.full_like(clips, step)], 1)


def batches(clips: Indices, size: int) -> list[Indices]:
    """Split clips into batches of ``size``."""
    return [clips[start : start + size] for start in range(0, len(clips), size)]


# Multiply-adds


def flops_of(features: Features, skipped: str = "zeros", policy_step: int = 0) -> VideoFlops:
    """Return the multiply-adds for one clip of ``features``; see `classifiers.flops.video_flops`."""
    spec = features.clips.settings
    return video_flops(
        features.classifier, spec.num_frames, spec.num_glance_frames, features.num_steps, skipped=skipped, policy_step=policy_step
    )


def policy_macs(features: Features, policy: PolicyNetwork | Predictor) -> int:
    """Count the multiply-adds of a policy per video. The multiply-adds of a custom policy are measured while it acts in the first clip."""
    if isinstance(policy, PolicyNetwork):
        return features.num_steps * policy.step_macs
    first = np.zeros(1, np.int64)
    macs: list[int] = []
    features.glance_maps(first, np.arange(features.num_steps))  # computed now, so that their cost is not counted as the policy's

    @wraps(policy.predict)  # because `choose_step` inspects the parameters of `predict`
    def predict(*args: Any, **kwargs: Any) -> tuple[Actions, Any]:
        results: list[tuple[Actions, Any]] = []
        with torch.backends.cudnn.flags(enabled=False):  # the counter cannot count inside cuDNN's recurrent networks
            count = multiply_adds(lambda: results.append(policy.predict(*args, **kwargs)))
        macs.append(count // len(results[0][0]))
        return results[0]

    attributes = {name: getattr(policy, name) for name in ("observation", "action_space") if hasattr(policy, name)}
    _clip_policy(features, cast(Predictor, SimpleNamespace(predict=predict, **attributes)))(first)
    return sum(macs)
