"""Accuracy against cost, for the learned policy and every baseline, on the same clips with the same classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, GridAction, skipping
from adafocus_env.build import arguments_of
from adafocus_env.dynamics import masks_of
from adafocus_env.features.live import Features, Indices, LiveFeatures, by_step
from adafocus_env.skipped import classify_focused, find_skipped
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation.inference import policy_cost, video_cost, video_costs
from agents.evaluation.metrics import LabelSets, Scores, after_every_step, confidence, hits
from agents.policies.baselines import CentrePatch, GaussianPatch, GreedyOracle, LearnedPolicy, Oracle, RandomPatch, SaliencyPatch
from agents.policies.networks import PolicyNetwork
from agents.policies.predictor import Actions, Predictor, choose_step
from classifiers.flops import classifier_cost, multiply_adds

CLIPS_AT_ONCE = 250  # of which a policy chooses the patches
PATCHES_AT_ONCE = 256  # that the focuser sees, where there is no bank

Chooser = Callable[[Indices], Actions]
Foci = Callable[[Indices], Tensor]


@dataclass(frozen=True)
class Played:
    """What a policy did on all clips of a store.

    Attributes:
        actions: (clips, D, *action space of the features), where it looked; nothing of worth where it skipped.
        patch_mask: (clips, D) bool, where it did not skip.
        correct: (clips,) bool, whether the answer after the last step is right.
        confidence: (clips,), softmax score of the true class after the last step.
    """

    actions: Actions
    patch_mask: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float32]


def play(features: Features, policy: Predictor, observation: str = "reference", skipped: str = "zeros") -> Played:
    """Plays every clip once, in order.

    Args:
        features: what the frozen networks see in the clips; a bank saves most of the work.
        policy: any object with `predict`, recurrent or not; it is asked to be deterministic, and given masks if it takes them.
        observation: what it has to be shown, a name in `adafocus_env.observation.OBSERVATIONS`.
        skipped: what the head gets where it skips, a name in `adafocus_env.skipped.SKIPPED`.
    """
    choose = chooser(features, policy, observation, skipped)
    return _played(features, *actions_and_scores(features, choose, action_of(policy, features), skipped))


def play_learned(features: Features, policy: PolicyNetwork, skipped: str = "zeros") -> Played:
    """Plays every clip once with a trained policy."""
    return play(features, LearnedPolicy(policy, features), skipped=skipped)


def action_of(policy: object, features: Features) -> Action:
    """The kind of action of a policy that plays on these features: with skipping, if it says so itself or by its action space."""
    with_skips = skipping(features.action)
    skips = policy.skips if isinstance(policy, PolicyNetwork) else getattr(policy, "action_space", None) == with_skips.space
    return with_skips if skips else features.action


def chooser(features: Features, policy: Predictor, observation: str, skipped: str = "zeros") -> Chooser:
    """Lets a policy choose by what it sees."""
    if observation == "reference":
        return by_reference(features, policy)
    skips = action_of(policy, features) is not features.action
    return interactively(features, lambda env: policy, observation, skips=skips, skipped=skipped)


def by_reference(features: Features, policy: Predictor) -> Chooser:
    """Lets a policy choose from (clip, step) alone: no step of an environment is made, no patch is looked at."""
    action = action_of(policy, features)

    def choose(clips: Indices) -> Actions:
        actions, state, looked = [], None, np.zeros(len(clips), bool)
        for step in _steps(features):
            references = np.stack([clips, np.full_like(clips, step)], 1)
            masks = partial(masks_of, action, ~looked & (step == features.num_steps - 1))
            chosen, state = choose_step(policy, references, state, np.full(len(clips), step == 0), masks)
            actions.append(chosen)
            looked |= action.patch_mask(chosen)
        return np.stack(actions, axis=1)

    return choose


def interactively(
    features: Features,
    make: Callable[[AdaFocusVectorEnv], Predictor],
    observation: str = "reference",
    *,
    skips: bool = False,
    skipped: str = "zeros",
) -> Chooser:
    """Lets a policy choose in an environment, where it can ask what its last patch did.

    Args:
        features: of the clips.
        make: environment → the policy that plays it.
        observation: what it sees.
        skips: whether it may look at no patch.
        skipped: what the head gets then.
    """
    env = AdaFocusVectorEnv(
        min(len(features.clips), CLIPS_AT_ONCE), features.classifier, features.clips,
        observation=observation, reward="confidence", bank=features, autoreset_mode="DISABLED", skipped=skipped,
        **arguments_of(features, skips=skips),
    )  # fmt: skip
    policy = make(env)

    def choose(clips: Indices) -> Actions:
        seen, _ = env.reset(seed=0, options={"clips": np.resize(clips, env.num_envs).tolist()})  # repeats them until it is full
        actions, state = [], None
        for step in _steps(features):
            chosen, state = choose_step(policy, seen, state, np.full(env.num_envs, step == 0), env.action_masks)
            actions.append(chosen)
            seen = env.step(chosen)[0]
        return np.stack(actions, axis=1)[: len(clips)]

    return choose


def actions_and_scores(
    features: Features, choose: Chooser, action: Action | None = None, skipped: str = "zeros"
) -> tuple[Actions, NDArray[np.bool_], Scores]:
    """What a policy does on all clips: where it looks, which steps it keeps, and the class scores after every step.

    Args:
        features: what the frozen networks see in the clips.
        choose: the policy.
        action: its kind of action; that of the features if None.
        skipped: what the head gets where it skips, a name in `adafocus_env.skipped.SKIPPED`.

    Returns:
        Places (clips, D, …), of the features' kind of action; kept (clips, D) bool; scores (clips, D, K).
    """
    action = features.action if action is None else action
    parts = []
    for clips in batches(np.arange(len(features.clips)), CLIPS_AT_ONCE):
        chosen = choose(clips)
        patch_mask = action.patch_mask(chosen)
        places = chosen if action.patch_action is action else action.patches(chosen)
        parts.append((places, patch_mask, scores_of(features, places, patch_mask, skipped, clips)))
    places, patch_mask, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
    return places, patch_mask, scores


@torch.no_grad()
def scores_after_steps(features: Features, clips: Indices, focus_vectors: Foci) -> Scores:
    """The class scores of some clips after every step, (n, D, K): what all measures of all policies come from.

    Args:
        features: glances of the clips.
        clips: (n,), which ones.
        focus vectors: clips (m,) → focus vectors (m, D, F).
    """
    steps = _steps(features)
    scores = [
        features.classifier.classify(features.vectors(some[:, None], steps[None]), focus_vectors(some))[0].cpu().numpy()
        for some in batches(clips, max(1, PATCHES_AT_ONCE // features.clips.num_frames))
    ]
    return np.concatenate(scores)


@torch.no_grad()
def scores_of(
    features: Features, places: Actions, patch_mask: NDArray[np.bool_], skipped: str = "zeros", clips: Indices | None = None
) -> Scores:
    """The class scores of clips after every step, (n, D, K), where some frames are skipped; the focuser sees the others alone.

    After a step that the head does not take, and before any, scores are those that `adafocus_env.skipped` tells.

    Args:
        features: glances and focus vectors of the clips.
        places: where the kept steps look, (n, D, *action space) of ``features.action``; the others' are not read.
        patch_mask: (n, D), whether a step looks.
        skipped: what the head gets where it does not, a name in `adafocus_env.skipped.SKIPPED`.
        clips: (n,), which ones; all of them in their order if None.

    Raises:
        InputError: there is no such option.
    """
    option, steps = find_skipped(skipped), _steps(features)
    clips = np.arange(len(features.clips)) if clips is None else clips
    scores = []
    for some in batches(np.arange(len(clips)), max(1, PATCHES_AT_ONCE // features.clips.num_frames)):
        rows, columns = np.nonzero(patch_mask[some])
        glances = features.vectors(clips[some][:, None], steps[None])
        focus_vectors = glances.new_zeros(0, features.classifier.focuser.vector_size)
        if len(rows):
            focus_vectors = features.focus_vectors(clips[some][rows], columns, places[some][rows, columns])
        looked = torch.from_numpy(patch_mask[some]).to(glances.device)
        scores.append(classify_focused(features.classifier, glances, focus_vectors, looked, option).cpu().numpy())
    return np.concatenate(scores)


def evaluate(
    features: Features,
    policy: PolicyNetwork | Predictor | None,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda name: None,
    skipped: str = "zeros",
) -> tuple[dict[str, dict[str, Any]], dict[str, Played]]:
    """Measures the learned policy and all baselines.

    Args:
        features: what the frozen networks see in the clips.
        policy: what was learned, if anything: any object with `predict` will do. If it sees anything but references, its attribute
            ``observation`` is the name of what it sees.
        seed: of the random baselines.
        progress: called with the name of each policy before it plays.
        skipped: what the head gets where the learned policy skips, a name in `adafocus_env.skipped.SKIPPED`.

    Returns:
        The measures of each policy, by name, and what each did. After the last step: `top1`, `top5` (where there are more than five
        classes), `map` and `confidence` in the true class, all in 0-1; `gflops` a video with a multiply-add as one, the mean over videos
        where frames are skipped; of those that choose patches `kept`, the share of steps that look at one, `location_entropy` in nats and
        `movement` in fractions of H − P. `steps` holds `top1`, `top5` and `map` after every step, each a list of length D. The greedy
        oracle is among them where a bank keeps the focus vectors of all cells.

    Raises:
        InputError: policy and features do not fit, or the scores are not finite.
    """
    settings, action = features.clips.settings, features.action
    frames, glances = settings.num_frames, settings.num_glance_frames
    patch_action = video_cost(features.classifier, frames, glances)
    sets = features.clips.label_sets
    measures: dict[str, dict[str, Any]] = {}
    plays: dict[str, Played] = {}
    for name, choose in _choosers(features, policy, seed, skipped).items():
        progress(name)
        learned = name == "learned" and policy is not None
        actions, patch_mask, scores = actions_and_scores(features, choose, action_of(policy, features) if learned else action, skipped)
        macs = mean_cost(features, patch_mask, skipped) + (_cost_of(features, policy) if learned and policy is not None else 0)
        plays[name] = _played(features, actions, patch_mask, scores)
        measures[name] = {
            **_measured(scores, sets, macs),
            "kept": float(patch_mask.mean()),
            "location_entropy": location_entropy(*cells(actions[patch_mask], action)),
            "movement": movement(places(actions, action), patch_mask),
        }
    everything, cost = np.arange(len(features.clips)), classifier_cost(features.classifier)
    for name, focus_vectors, macs in (
        ("glance_only", _no_focus, patch_action - frames * cost.focus),
        ("full_frame", _whole_frames, patch_action + frames * (cost.focus_frame - cost.focus)),
    ):
        progress(name)
        measures[name] = _measured(scores_after_steps(features, everything, focus_vectors(features)), sets, macs)
    return measures, plays


def location_entropy(cells: Indices, num_cells: int) -> float:
    """Entropy in nats of the cells chosen over all clips and steps; at most ln G²."""
    shares = np.bincount(cells.ravel(), minlength=num_cells) / max(1, cells.size)
    return float(np.sum(shares[shares > 0] * -np.log(shares[shares > 0]))) + 0.0  # no -0.0


def movement(places: NDArray[np.floating], patch_mask: NDArray[np.bool_] | None = None) -> float:
    """Mean distance between the places (clips, T, 2) of consecutive steps, in fractions of H − P; 0 for clips of one step.

    Args:
        places: see above.
        patch_mask: (clips, T), steps that looked; the others are left out.
    """
    tracks = places if patch_mask is None else (track[looked] for track, looked in zip(places, patch_mask, strict=True))
    moves = np.concatenate([np.linalg.norm(np.diff(track, axis=0), axis=-1) for track in tracks])
    return float(moves.mean()) if moves.size else 0.0


# What depends on the kind of action


def cells(actions: Actions, action: Action) -> tuple[Indices, int]:
    """Actions → the cells (…) that their entropy is measured on, and how many there are: a 7×7 grid's where it has none."""
    if action.num_cells is not None:
        return actions, action.num_cells
    grid = GridAction(7, action.size, action.patch_size)
    return grid.nearest(action.corners_of(actions) + (action.patch_size - 1) / 2), grid.num_cells


def places(actions: Actions, action: Action) -> NDArray[np.float64]:
    """Actions → corners of the patches (clips, D, 2) as (y, x) in fractions of H − P; zeros where the patch is the frame."""
    return action.corners_of(actions) / max(1, action.size - action.patch_size)


def _steps(features: Features) -> Indices:
    """The numbers of the steps of an episode."""
    return np.arange(features.num_steps)


def _no_focus(features: Features) -> Foci:
    size, device = features.classifier.focuser.vector_size, features.classifier.device
    return lambda clips: torch.zeros(len(clips), len(_steps(features)), size, device=device)


def _whole_frames(features: Features) -> Foci:
    classifier = features.classifier

    def focus_vectors(clips: Indices) -> Tensor:
        frames = (features.clips.frames(int(clip)).to(classifier.device) for clip in clips)
        seen = (classifier.focus(classifier.normalise(each), num_frames=len(each) // features.num_steps) for each in frames)
        return torch.stack([by_step(each, features.num_steps).mean(1) for each in seen])

    return focus_vectors


# How the parts come together


def _choosers(features: Features, policy: PolicyNetwork | Predictor | None, seed: int, skipped: str) -> dict[str, Chooser]:
    action = features.action
    choosers: dict[str, Chooser] = {}
    if policy is not None:
        learned = LearnedPolicy(policy, features) if isinstance(policy, PolicyNetwork) else policy
        choosers["learned"] = chooser(features, learned, _observation_of(learned), skipped)
    policies: dict[str, Predictor] = {"random": RandomPatch(action, seed), "centre": CentrePatch(action)}
    policies |= {"gaussian": GaussianPatch(action, seed), "saliency": SaliencyPatch(features)}
    if features.clips.has_truth:
        policies["oracle"] = Oracle(features)
    choosers |= {name: by_reference(features, each) for name, each in policies.items()}
    if not isinstance(features, LiveFeatures) and action.num_cells is not None:
        choosers["greedy_oracle"] = interactively(features, lambda env: GreedyOracle(env.dynamics))
    return choosers


def _cost_of(features: Features, policy: PolicyNetwork | Predictor) -> int:
    """Multiply-adds of a policy for a video. Of one that is no network of ours: those of PyTorch while it plays the first clip."""
    if isinstance(policy, PolicyNetwork):
        return features.num_steps * policy_cost(policy)
    first, counted = np.zeros(1, np.int64), _Counted(policy)
    features.maps(first, _steps(features))  # so that no glance is counted as the policy's
    chooser(features, counted, _observation_of(policy))(first)
    return counted.multiply_adds


class _Counted:
    """A policy, and the multiply-adds of its choices for one video."""

    def __init__(self, policy: Predictor) -> None:
        self.multiply_adds, self.action_space = 0, getattr(policy, "action_space", None)  # a space says whether it skips
        self.predict = wraps(policy.predict)(partial(self._predict, policy.predict))  # with its parameters: see `choose_step`

    def _predict(self, predict: Callable[..., tuple[Actions, Any]], *args: Any, **kwargs: Any) -> tuple[Actions, Any]:
        """Lets the policy choose, and counts."""
        chosen: list[tuple[Actions, Any]] = []
        with torch.backends.cudnn.flags(enabled=False):  # the counter does not see into its recurrent networks
            macs = multiply_adds(lambda: chosen.append(predict(*args, **kwargs)))
        self.multiply_adds += macs // len(chosen[0][0])
        return chosen[0]


def _observation_of(policy: Predictor) -> str:
    return getattr(policy, "observation", "reference")


def mean_cost(features: Features, patch_mask: NDArray[np.bool_], skipped: str) -> float:
    """Multiply-adds of a video without the policy, the mean over videos in which it looked at ``patch_mask`` (clips, D)."""
    settings = features.clips.settings
    frames = torch.from_numpy(patch_mask).repeat_interleave(settings.num_frames // features.num_steps, dim=1)
    return float(video_costs(features.classifier, frames, settings.num_glance_frames, find_skipped(skipped)).double().mean())


def _played(features: Features, actions: Actions, patch_mask: NDArray[np.bool_], scores: Scores) -> Played:
    last, labels = scores[:, -1:], features.clips.labels
    return Played(actions, patch_mask, hits(last, labels, 1)[:, 0], confidence(last, labels)[:, 0])


def _measured(scores: Scores, sets: LabelSets, multiply_adds: float) -> dict[str, Any]:
    steps = after_every_step(scores, sets)
    first = np.array([labels[0] for labels in sets])
    return {
        **{name: values[-1] for name, values in steps.items()},
        "confidence": float(confidence(scores[:, -1:], first).mean()),
        "gflops": multiply_adds / 1e9,
        "steps": steps,
    }


def batches(clips: Indices, size: int) -> list[Indices]:
    """The clips in parts of that size."""
    return [clips[start : start + size] for start in range(0, len(clips), size)]
