"""Load the networks for prediction from a run folder, or from the folders of a classifier and a policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from adafocus_env.cache_dir import cache_folder
from agents.policies.networks import CARD as POLICY_CARD
from agents.policies.networks import PolicyNetwork, load_policy
from agents.runs.run_dir import CONFIG, RunDir
from classifiers import checkpoint
from classifiers.checkpoint import read_json
from classifiers.classifier import Classifier, ClipFormat
from classifiers.errors import InputError, refuse_if
from classifiers.model_zoo import BUNDLED

BEST, CLASSIFIER = "best", "classifier"
MODEL_CARD = "model.json"  # repeated here, because importing `agents.rl.saved_model` would import Stable-Baselines3


def load_checkpoints(source: Path, policy: Path | None, device: torch.device) -> tuple[Classifier, PolicyNetwork, str]:
    """Return the classifier, the policy, and the name of the head's input for skipped frames (see `adafocus_env.classify.SKIPPED`).

    Args:
        source: The run folder, or the folder or bundled name of a classifier.
        policy: The folder or bundled name of a policy; None: the policy of the run, or the policy in the classifier's folder.
        device: The device of the networks.

    Raises:
        InputError: If the run is not finished, or if a checkpoint is missing or cannot be read.
    """
    run, folder, policy = locate(source, policy)
    is_model = (policy / MODEL_CARD).is_file() and not (policy / POLICY_CARD).is_file()
    network = _load_model(policy, device) if is_model else load_policy(policy, device)
    classifier = checkpoint.load(folder, device)
    if run is not None:
        classifier.clip_format = _format_of(run, classifier.clip_format)
    if is_model:  # a model's card does not record ``skipped``
        return classifier, network, "zeros" if run is None else run.config().get("env", {}).get("skipped", "zeros")
    return classifier, network, read_json(policy, POLICY_CARD, f"policy={policy}").get("skipped", "zeros")


def locate(source: Path, policy: Path | None) -> tuple[RunDir | None, Path, Path]:
    """Return the run, if there is one, and the folders of the classifier and the policy. The arguments are those of `load_checkpoints`.

    Raises:
        InputError: If the source does not exist, the run is not finished, or there is no policy.
    """
    run = RunDir(source) if (source / CONFIG).is_file() else None
    refuse_if(
        run is None and str(source) not in BUNDLED and not source.exists(),
        f"{source} does not exist; give the folder of a run (python -m agents.list_runs lists them) or of a classifier",
    )
    folder, policy = _beside(source, policy) if run is None else _of_run(run, policy)
    return run, BUNDLED.get(str(folder), folder), BUNDLED.get(str(policy), policy)


def _load_model(folder: Path, device: torch.device) -> PolicyNetwork:
    """Load a model that was trained with an algorithm other than PPO, wrapped as a policy network.

    Raises:
        InputError: If the model needs observations other than glances to choose an action.
    """
    from agents.policies.model_on_glances import ModelOnGlances  # most predictions do not need Stable-Baselines3
    from agents.rl.algorithms import BY_REFERENCE
    from agents.rl.saved_model import ModelCard, load_model

    card = ModelCard.read(folder)
    refuse_if(
        card.observation not in BY_REFERENCE,
        f"policy={folder} must act on glances only for predictions, got a model on the observation {card.observation!r}; train it with "
        "algo.observation=reference, or evaluate it with python -m agents.evaluate",
    )
    return cast(PolicyNetwork, ModelOnGlances(load_model(folder, device), card.interface).to(device).eval().requires_grad_(False))


def _of_run(run: RunDir, policy: Path | None) -> tuple[Path, Path]:
    """Return the folders of the classifier and the policy of a run.

    Raises:
        InputError: If the run is not finished, or has no policy.
    """
    check_finished(run)
    policy = policy or run.checkpoints / BEST
    refuse_if(
        not policy.exists() and str(policy) not in BUNDLED, f"run={run.root} has trained no policy; add the folder of one: policy=DIR"
    )
    return run.checkpoints / CLASSIFIER, policy


def check_finished(run: RunDir) -> None:
    """Check that a run is finished.

    Raises:
        InputError: If the run is not finished. The message explains how to finish the run, and how to use the run's best policy so far.
    """
    problem = f"run={run.root} is not finished: start its command again to finish it"
    cards = (card for name in (POLICY_CARD, MODEL_CARD) for card in run.checkpoints.glob(f"**/{BEST}/{name}"))
    found = [] if run.finished else sorted(cards, key=lambda card: card.stat().st_mtime)
    refuse_if(not run.finished and not found, f"{problem}; it has no policy yet")
    if not found:
        return
    best = found[-1].parent
    fingerprint = read_json(best, found[-1].name, f"policy={best}").get("classifier")
    fitting = [name for name in _classifiers(run) if checkpoint.read_card(name).fingerprint == fingerprint]
    raise InputError(
        f"{problem}, or use its best policy so far: python -m agents.predict source=VIDEO "
        f"classifier={fitting[0] if fitting else 'DIR'} policy={best}"
    )


def _classifiers(run: RunDir) -> Iterator[str]:
    """Yield the classifiers that the run may have used: names of bundled classifiers, and folders of classifiers in run and cache."""
    yield from BUNDLED
    for root in (run.checkpoints, cache_folder() / "classifiers"):
        yield from (str(card.parent) for card in sorted(root.glob(f"**/{checkpoint.CARD}")))
    if (Path(given := run.config().get("classifier", "")) / checkpoint.CARD).is_file():
        yield given


def _beside(source: Path, policy: Path | None) -> tuple[Path, Path]:
    """Return the folders of a classifier and its policy. For an imported checkpoint, both are the same folder.

    Raises:
        InputError: If there is no policy.
    """
    beside = BUNDLED.get(str(source), source)
    refuse_if(
        policy is None and not any((beside / name).is_file() for name in (POLICY_CARD, MODEL_CARD)),
        f"{source} has no policy: add the folder of one, such as RUN/checkpoints/best, as policy=DIR, or give the folder of a run",
    )
    return source, policy or beside


def _format_of(run: RunDir, stated: ClipFormat) -> ClipFormat:
    """Return the format of the run's clips. Read the number of frames from the run, because cards of earlier versions do not have it."""
    try:
        data = run.config()["data"]
        return replace(stated, num_frames=data["num_frames"], glance_frames=data["glance_frames"])
    except KeyError as problem:
        raise InputError(f"{run.path(CONFIG)} lacks {problem}; it is not the config of a training run") from problem


def check_plugin(run: str, plugin: str) -> None:
    """If the run has a plugin, check that the user has named a plugin. Importing a plugin runs its code, so the user must ask for it.

    Args:
        run: The run folder; empty: no run.
        plugin: The plugin that the user named; empty: no plugin.

    Raises:
        InputError: If the run has a plugin and the user has named no plugin.
    """
    theirs = RunDir(run).config().get("plugin") if run and Path(run, CONFIG).is_file() else ""
    refuse_if(theirs and not plugin, f"run={run} was made with plugin={theirs}, which is imported only if you say so: add plugin={theirs}")
