"""The report at the end of a run: a table, the same measures as JSON and as a plot, and a contact sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from adafocus_env.features.live import Features
from agents.evaluation.evaluate import evaluate
from agents.evaluation.metrics import ACCURACIES, table_columns
from agents.policies.baselines import Predictor
from agents.policies.networks import PolicyNetwork
from agents.runs.pictures import save_comparison, save_contact_sheet
from agents.runs.progress import Display
from agents.runs.run_dir import COMPARISON, CONTACT_SHEET
from classifiers.errors import lookup

ORDER = ("learned", "random", "centre", "gaussian", "saliency", "glance_only", "full_frame", "oracle", "greedy_oracle")
"""Policies in the order of the table."""


def report(
    features: Features,
    policy: PolicyNetwork | Predictor | None,
    folder: Path | None,
    display: Display,
    *,
    seed: int,
    data: str,
    title: str = "",
    metric: str = "top1",
    skipped: str = "zeros",
) -> dict[str, Any]:
    """Measure all policies on the test clips, print the table and save the plots.

    Args:
        features: Features of the test clips.
        policy: The learned policy, if any; see `evaluate`.
        folder: Directory for `result.png` and `contact_sheet.png`; None: no plots are made.
        display: Where the table is printed.
        seed: Seed of the random baselines.
        data: Name of the data set.
        title: Title of the table, as `DataConfig.title`; empty: the name.
        metric: The data set's main metric, a name in `agents.evaluation.metrics.ACCURACIES`.
        skipped: Input of the head where the policy skips a frame, a name in `adafocus_env.classify.SKIPPED`.

    Returns:
        The content of `result.json`, without the times.

    Raises:
        InputError: the metric is unknown, or as `evaluate`.
    """
    lookup("metric", metric, ACCURACIES)
    bar = display.bar("evaluate", len(ORDER))
    measures, plays = evaluate(
        features, policy, seed=seed, progress=lambda name: bar.advance(1, name.replace("_", " ")), skipped=skipped
    )
    bar.at(len(ORDER), "")
    clips = len(features.clips)
    display.console.print(table(measures, split_title(title or data, "test", clips), metric))
    if folder is not None:
        heading = split_title(data, "test", clips)
        save_comparison(measures, heading, folder / COMPARISON, metric=metric, num_frames=features.clips.num_frames)
        save_contact_sheet(features, plays["learned" if "learned" in plays else "random"], folder / CONTACT_SHEET)
    return {
        "policies": measures,
        "metric": metric,
        "seed": seed,
        "data": data,
        "split": "test",
        "clips": clips,
        "classes": list(features.classifier.classes),
        "classifier": features.classifier.fingerprint(),
    }


def split_title(data: str, split: str, clips: int) -> str:
    """Return the title of a table: data set, split and number of clips."""
    return f"{data}, {split} split, {clips} clips"


def table(measures: Mapping[str, Mapping[str, Any]], title: str, metric: str = "top1") -> Table:
    """Return the measures of all policies after the last step as a table of 80 columns; the README explains the policies.

    The share of frames that are focused is shown where a policy skips some.

    Args:
        measures: Measures of every policy, as `evaluate` returns them.
        title: Stands above the table.
        metric: The data set's main metric; other metrics than top-1 get a second column.
    """
    columns = table_columns(measures.values(), metric)
    headings = [Column("policy", no_wrap=True), *(Column(each.heading, justify="right", no_wrap=True) for each in columns.values())]
    caption = "GFLOPs per video, a multiply-add counts as one; entropy in nats; movement in H − P"
    shown = Table(*headings, title=escape(title), caption=caption)
    for name in [each for each in ORDER if each in measures]:
        cells = [format(measures[name][key], column.format) if key in measures[name] else "–" for key, column in columns.items()]
        shown.add_row(name, *cells, style="bold" if name == "learned" else None)
    return shown
