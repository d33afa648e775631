"""The end of a run: one table, the same as JSON and as a picture, and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from adafocus_env.features.live import Features
from agents.evaluation.evaluate import evaluate
from agents.evaluation.metrics import METRICS
from agents.policies.networks import PolicyNetwork
from agents.policies.predictor import Predictor
from agents.runs.plots import save_comparison, save_contact_sheet
from agents.runs.progress import Display
from agents.runs.run_dir import COMPARISON, CONTACT_SHEET
from classifiers.errors import lookup

ORDER = ("learned", "random", "centre", "gaussian", "saliency", "glance_only", "full_frame", "oracle", "greedy_oracle")


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
    """Measures all policies on the test clips, shows the table and saves the pictures.

    Args:
        features: what the frozen networks see in the test clips.
        policy: what was learned, if anything; see `evaluate`.
        folder: for the pictures `result.png` and `contact_sheet.png`; None: none are made.
        display: where the table is shown.
        seed: of the random baselines.
        data: name of the data set.
        title: the same for people, as `DataConfig.title`; empty: the name.
        metric: what the data set is measured by first, a name in `agents.evaluation.metrics.METRICS`.
        skipped: what the head gets where the policy skips a frame, a name in `adafocus_env.skipped.SKIPPED`.

    Returns:
        The content of `result.json`, without the times.

    Raises:
        InputError: no such metric, or something that `evaluate` raises.
    """
    lookup("metric", metric, METRICS)
    bar = display.bar("evaluate", len(ORDER))
    measures, plays = evaluate(
        features, policy, seed=seed, progress=lambda name: bar.advance(1, name.replace("_", " ")), skipped=skipped
    )
    bar.at(len(ORDER), "")
    clips = len(features.clips)
    display.console.print(table(measures, split_title(title or data, "test", clips), metric))
    if folder is not None:
        plain = split_title(data, "test", clips)
        save_comparison(measures, plain, folder / COMPARISON, metric=metric, num_frames=features.clips.num_frames)
        shown = "learned" if "learned" in plays else "random"
        save_contact_sheet(features, plays[shown], folder / CONTACT_SHEET)
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
    """What stands above a table of results: the data set, the split and the number of its clips."""
    return f"{data}, {split} split, {clips} clips"


def table(measures: Mapping[str, Mapping[str, Any]], title: str, metric: str = "top1") -> Table:
    """The measures of all policies after the last step, in 80 columns; what each name means is in the README.

    The share of steps that look at a patch is shown where a policy skips some.

    Args:
        measures: of each policy, as `evaluate` returns them.
        title: stands above.
        metric: the data set's; one that is not top-1 stands beside it.
    """
    accuracies = ["top1"] if metric == "top1" else ["top1", metric]
    shown = Table(title=escape(title), caption="GFLOPs a video, multiply-adds count as one; entropy in nats; movement in H − P")
    shown.add_column("policy", no_wrap=True)
    some_skip = any(measured.get("kept", 1) < 1 for measured in measures.values())
    for heading in (*(METRICS[name] for name in accuracies), *(["kept"] if some_skip else []), "GFLOPs", "location entropy", "movement"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name in ORDER:
        if name in measures:
            measured = measures[name]
            places = [f"{measured[key]:.2f}" if key in measured else "–" for key in ("location_entropy", "movement")]
            style = "bold" if name == "learned" else None
            shares = [f"{measured[each]:.1%}" for each in accuracies]
            shares += [f"{measured['kept']:.1%}" if "kept" in measured else "–"] if some_skip else []
            shown.add_row(name, *shares, f"{measured['gflops']:.4f}", *places, style=style)
    return shown
