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

MEANING = {
    "learned": "the policy",
    "random": "a random patch a frame",
    "centre": "always the middle",
    "gaussian": "random around the middle",
    "glance_only": "no focuser",
    "full_frame": "the whole frame through the focuser",
    "oracle": "the patch nearest the target (ground truth)",
    "greedy_oracle": "the best cell for the true class",
}


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
    bar = display.bar("evaluate on the test clips", len(MEANING))
    measures, plays = evaluate(features, policy, seed=seed, progress=lambda name: bar.advance(1, name.replace("_", " ")))
    bar.at(len(MEANING), "")
    title = f"{data}: {len(features.clips)} test clips"
    display.console.print(table(measures, title))
    if folder is not None:
        save_comparison(measures, title, folder / "result.png")
        shown = "learned" if "learned" in plays else "random"
        save_contact_sheet(features, plays[shown], folder / "contact_sheet.png")
    return {"policies": measures, "seed": seed, "data": data, "split": "test", "classifier": features.classifier.fingerprint()}


def table(measures: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """The measures of all policies, for the terminal."""
    shown = Table(title=title, caption="GFLOPs count a multiply-add as one; entropy in nats; movement in fractions of H − P")
    for heading in ("policy", "what it looks at"):
        shown.add_column(heading)
    for heading in ("top-1", "GFLOPs a video", "location entropy", "movement"):
        shown.add_column(heading, justify="right")
    for name, meaning in MEANING.items():
        if name in measures:
            measured = measures[name]
            places = [f"{measured[key]:.2f}" if key in measured else "–" for key in ("location_entropy", "movement")]
            style = "bold" if name == "learned" else None
            shown.add_row(name, meaning, f"{measured['top1']:.1%}", f"{measured['gflops']:.4g}", *places, style=style)
    return shown
