"""The report at the end of a run: the metrics as a table, as JSON and as plots, and the files `contact_sheet.png` and `predictions.csv`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from adafocus_env.features.live import Features
from adafocus_env.terminal import plain
from agents.evaluation.evaluate import evaluate, flops_of, policy_macs
from agents.evaluation.looking import verdict
from agents.evaluation.metrics import ACCURACIES, COVERED, add_gaps, table_columns
from agents.policies.baselines import RULES, Predictor
from agents.policies.networks import PolicyNetwork
from agents.runs.contact_sheet import save_contact_sheet
from agents.runs.exit_report import EXIT, ExitChoice, exit_table, save_exit_curve
from agents.runs.plots import save_comparison
from agents.runs.predictions import LEARNED, save_predictions
from agents.runs.progress import Display
from agents.runs.run_dir import COMPARISON, CONTACT_SHEET, EXIT_CURVE, PREDICTIONS
from classifiers.errors import count_of, lookup

ORDER = ("learned", "random", "centre", "gaussian", *RULES, "glance_only", "full_frame", "oracle", "greedy_oracle")
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
    split: str = "test",
    exit: ExitChoice | None = None,
) -> dict[str, Any]:
    """Evaluate all policies on the clips of a split, print the table and save the plots. If `verdict` returns a sentence, print it too.

    Args:
        features: Features of the clips.
        policy: The learned policy, if any; see `evaluate`.
        folder: Directory for `result.png` and `contact_sheet.png` and, if there is a learned policy, `predictions.csv` and `exit.png`;
            None: write no files.
        display: Prints the table.
        seed: Seed of the random baselines.
        data: Name of the data set.
        title: Title of the table, such as `DataConfig.title`; empty: use ``data``.
        metric: The data set's main metric, a name in `agents.evaluation.metrics.ACCURACIES`.
        skipped: Input of the head for skipped frames, a name in `adafocus_env.classify.SKIPPED`.
        split: Name of the split.
        exit: A conditional exit, with which the learned policy is evaluated in addition; None: no exit.

    Returns:
        The content of `result.json`, without the times.

    Raises:
        InputError: if the metric is unknown, or if `evaluate` raises this error.
    """
    lookup("metric", metric, ACCURACIES)
    bar = display.bar("evaluate", len(ORDER))
    measures, plays = evaluate(
        features, policy, seed=seed, progress=lambda name: bar.advance(1, name.replace("_", " ")), skipped=skipped
    )
    bar.at(len(ORDER), "")
    clips = len(features.clips)
    about_exit: dict[str, Any] | None = None
    if exit is not None and policy is not None:
        flops = flops_of(features, skipped, policy_macs(features, policy) // features.num_steps)
        measures[EXIT], about_exit = exit.measure(plays[LEARNED], flops)
        add_gaps(measures)
    shown = split_title(title or data, split, clips)
    display.console.print(table(measures, shown, metric))
    if about_exit is not None:
        display.console.print(exit_table(about_exit["curve"], f"{shown}: conditional exit", metric))
    if note := verdict(measures, plays):
        display.say(note)
    if folder is not None:
        heading = split_title(data, split, clips)
        save_comparison(measures, heading, folder / COMPARISON, metric=metric, num_frames=features.clips.num_frames)
        save_contact_sheet(features, plays[LEARNED if LEARNED in plays else "random"], folder / CONTACT_SHEET)
        if LEARNED in plays:
            save_predictions(features, plays, folder / PREDICTIONS)
        if about_exit is not None:
            save_exit_curve(about_exit["curve"], measures, heading, folder / EXIT_CURVE, metric=metric)
    return {
        "policies": measures,
        "metric": metric,
        "seed": seed,
        "data": data,
        "split": split,
        "clips": clips,
        "classes": list(features.classifier.classes),
        "classifier": features.classifier.fingerprint(),
        "note": note,
        **({} if about_exit is None else {"exit": about_exit}),
    }


def _caption(measures: Mapping[str, Mapping[str, Any]], columns: Mapping[str, object]) -> Iterator[str]:
    """Yield texts that explain the columns, and a text that states how much of the gap between random patches and the oracle is closed."""
    if "hit_rate" in columns:
        yield "first: after the first patch while the target is shown"
        yield f"hits: frames with the target whose patch covers {COVERED:.0%} of it"
    yield "anytime: mean over steps"
    yield "GFLOPs: a multiply-add counts as one"
    shares = {"anytime": "gap_anytime", "top-1": "gap_top1"}
    closed = [f"{name} {measures['learned'][key]:.0%}" for name, key in shares.items() if key in measures.get("learned", {})]
    if closed:
        yield f"gap to the oracle closed: {', '.join(closed)}"


def split_title(data: str, split: str, clips: int) -> str:
    """Return the title of a table: data set, split and number of clips."""
    return f"{data}, {split} split, {count_of(clips, 'clip')}"


def table(measures: Mapping[str, Mapping[str, Any]], title: str, metric: str = "top1") -> Table:
    """Return the metrics of all policies as a table of 80 columns; the README explains the policies.

    The share of focused frames is shown if any policy skips frames.

    Args:
        measures: Metrics of every policy, as `evaluate` returns them.
        title: Title of the table.
        metric: The data set's main metric. A metric other than top-1 is shown in a second column.
    """
    columns = table_columns(measures.values(), metric)
    headings = [Column("policy", no_wrap=True), *(Column(each.heading, justify="right", no_wrap=True) for each in columns.values())]
    shown = Table(*headings, title=plain(title), caption="\n".join(_caption(measures, columns)))
    for name in [each for each in (LEARNED, EXIT, *ORDER[1:]) if each in measures]:
        cells = [format(measures[name][key], column.format) if key in measures[name] else "–" for key, column in columns.items()]
        shown.add_row(name, *cells, style="bold" if name == "learned" else None)
    return shown
