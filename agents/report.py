"""The end of a run: one table, the same as JSON and as a picture, and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from adafocus_env.features import Features
from agents.evaluation import evaluate
from agents.pictures import save_comparison, save_contact_sheet
from agents.policies import GlancePolicy
from agents.progress import Display

ORDER = ("learned", "random", "centre", "gaussian", "glance_only", "full_frame", "oracle", "greedy_oracle")


def report(
    features: Features, policy: GlancePolicy | None, folder: Path | None, display: Display, *, seed: int, data: str
) -> dict[str, Any]:
    """Measures all policies on the test clips, shows the table and saves the pictures.

    Args:
        features: what the frozen networks see in the test clips.
        policy: what was learned, if anything.
        folder: for the pictures `result.png` and `contact_sheet.png`; None: none are made.
        display: where the table is shown.
        seed: of the random baselines.
        data: name of the data set.

    Returns:
        The content of `result.json`, without the times.
    """
    bar = display.bar("evaluate", len(ORDER))
    measures, plays = evaluate(features, policy, seed=seed, progress=lambda name: bar.advance(1, name.replace("_", " ")))
    bar.at(len(ORDER), "")
    title = f"{data}: {len(features.clips)} test clips"
    display.console.print(table(measures, title))
    if folder is not None:
        save_comparison(measures, title, folder / "result.png")
        shown = "learned" if "learned" in plays else "random"
        save_contact_sheet(features, plays[shown], folder / "contact_sheet.png")
    return {"policies": measures, "seed": seed, "data": data, "split": "test", "classifier": features.classifier.fingerprint()}


def table(measures: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The measures of all policies, for the terminal; what each name means is in the README."""
    shown = Table(title=title, caption="multiply-adds count as one; entropy in nats; movement in H − P")
    shown.add_column("policy", no_wrap=True)
    for heading in ("top-1", "GFLOPs a video", "location entropy", "movement"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name in ORDER:
        if name in measures:
            measured = measures[name]
            places = [f"{measured[key]:.2f}" if key in measured else "–" for key in ("location_entropy", "movement")]
            style = "bold" if name == "learned" else None
            shown.add_row(name, f"{measured['top1']:.1%}", f"{measured['gflops']:.4f}", *places, style=style)
    return shown
