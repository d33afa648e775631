"""What each stage adds, on the test clips (the paper's own ablation: random patches → the policy → finetuned)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from adafocus_env.clips.store import ClipSource
from agents.config.settings import TrainStages
from agents.pipeline.driver import Milestone
from agents.pipeline.validation import patch_score
from agents.policies.checkpoint import load_policy
from classifiers import checkpoint


def ablation(
    milestones: Sequence[Milestone], chosen: Milestone, clips: ClipSource, config: TrainStages, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each state of the model from stage 1 on: its answers after the last step.

    Args:
        milestones: in the order in which they were reached.
        chosen: the one that is the result of the training.
        clips: the test clips.
        config: of the training.
        device: where the networks shall live.

    Returns:
        Rows with `after` (what was trained last), `round`, `patches` (random, or the policy's), `top1` and `confidence` on these clips,
        `val_top1` where there is a validation part, and `chosen`.
    """
    rows: list[dict[str, Any]] = []
    for milestone in milestones:
        if milestone.leg.stage == 0:
            continue
        classifier = checkpoint.load(milestone.classifier, device)
        policy = None if milestone.policy is None else load_policy(milestone.policy, device)
        if policy is not None and not rows:  # the classifier was given: what it is worth without a policy
            top1, confidence = patch_score(classifier, None, clips, config.env, config.seed)
            rows.append({"after": "(given)", "round": 0, "patches": "random", "top1": top1, "confidence": confidence, "chosen": False})
        top1, confidence = patch_score(classifier, policy, clips, config.env, config.seed)
        row = {"after": milestone.leg.title, "round": milestone.leg.round, "patches": "random" if policy is None else "policy"}
        told = {} if milestone.score is None else {"val_top1": milestone.score[0]}
        rows.append({**row, "top1": top1, "confidence": confidence, **told, "chosen": milestone is chosen})
    return rows


def ablation_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The rows for people, in 80 columns; ``title`` names what they were measured on."""
    table = Table(title=escape(f"what each stage adds: {title}"))
    table.add_column("after", no_wrap=True)
    table.add_column("patches")
    for name in ("top-1", "confidence", "validation"):
        table.add_column(name, justify="right")
    for row in rows:
        told = f"{row['val_top1']:.1%}" if "val_top1" in row else "–"
        name = f"{row['after']} ◂" if row["chosen"] else row["after"]
        table.add_row(name, row["patches"], f"{row['top1']:.1%}", f"{row['confidence']:.3f}", told)
    return table
