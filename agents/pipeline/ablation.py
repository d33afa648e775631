"""What each stage adds on the test clips (the ablation of the paper: random patches → policy → finetuned)."""

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
    """Evaluate the model after every stage from stage 1 on.

    Args:
        milestones: In the order of training.
        chosen: The result of the training.
        clips: The test clips.
        config: Settings of the training.
        device: Where the networks run.

    Returns:
        Rows with `after` (the last stage), `round`, `patches` (random, or the policy's), `top1` and `confidence` after the last step,
        `val_top1` if there is a validation split, and `chosen`.
    """
    rows: list[dict[str, Any]] = []
    for milestone in milestones:
        if milestone.spec.stage == 0:
            continue
        classifier = checkpoint.load(milestone.classifier, device)
        policy = None if milestone.policy is None else load_policy(milestone.policy, device)
        if policy is not None and not rows:  # a given classifier, without a policy
            top1, confidence = patch_score(classifier, None, clips, config.env, config.seed)
            rows.append({"after": "(given)", "round": 0, "patches": "random", "top1": top1, "confidence": confidence, "chosen": False})
        top1, confidence = patch_score(classifier, policy, clips, config.env, config.seed)
        row = {"after": milestone.spec.title, "round": milestone.spec.round, "patches": "random" if policy is None else "policy"}
        row |= {"top1": top1, "confidence": confidence, "chosen": milestone is chosen}
        rows.append(row if milestone.score is None else {**row, "val_top1": milestone.score[0]})
    return rows


def ablation_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a table of the rows, in 80 columns; ``title`` names the clips."""
    table = Table(title=escape(f"what each stage adds: {title}"))
    table.add_column("after", no_wrap=True)
    table.add_column("patches")
    for name in ("top-1", "confidence", "validation"):
        table.add_column(name, justify="right")
    for row in rows:
        name = f"{row['after']} ◂" if row["chosen"] else row["after"]
        val = f"{row['val_top1']:.1%}" if "val_top1" in row else "–"
        table.add_row(name, row["patches"], f"{row['top1']:.1%}", f"{row['confidence']:.3f}", val)
    return table
