"""Write the HTML page about finished runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from adafocus_env.clips.store import ClipSource, Unreadable
from adafocus_env.dataset_registry import build_data
from agents.config.settings import Report
from agents.evaluation.evaluate import targets_of
from agents.evaluation.metrics import ACCURACIES, Metric, table_columns
from agents.page.charts import cost_chart, learning_chart, step_chart
from agents.page.finished import FinishedRun, read_runs
from agents.page.pictures import animation, coverage, heat_map, peak_in_words, stacked
from agents.page.verdict import Estimate, estimate, findings, gain, headline, mean_of
from agents.pipeline.builders import build_split, in_order_of
from agents.runs.progress import Display
from agents.runs.report import ORDER
from agents.runs.run_dir import PAGE
from agents.runs.system import command_line
from classifiers.atomic_files import write_text
from classifiers.errors import InputError, count_of, refuse_if

MAX_MAPS = 24  # maximum number of classes with a heat map; those with the most clips are shown
MAX_CONFUSED = 20  # maximum number of classes in the confusion matrix; those with the most mistakes are shown
MAX_MISTAKES = 8  # pairs of classes in the list of mistakes
POLICIES = {
    "learned": "the trained policy",
    "random": "a random patch in every step",
    "centre": "the patch in the middle",
    "gaussian": "a random patch, more often near the middle",
    "saliency": "where the glance map differs most from its mean",
    "motion": "where the glance map changes most from frame to frame",
    "map_norm": "where the glance map is strongest",
    "brightness": "the brightest spot of the frame",
    "frame_difference": "where the frame changes most",
    "glance_only": "no patches: the cheap network alone",
    "full_frame": "whole frames in place of patches",
    "oracle": "the patch at the target, from the ground truth",
    "greedy_oracle": "the patch that raises the confidence in the true class most, of all patches",
}
"""Descriptions of the policies in the table."""


def write_page(config: Report) -> None:
    """Write the page about the runs that the settings name.

    Raises:
        InputError: If the page exists, if a run cannot be used (see `agents.page.finished.read_runs`), or if its videos are missing.
    """
    runs = read_runs(config.run, config.plugin)
    out = Path(config.out) if config.out else (runs[0].root if len(runs) == 1 else runs[0].root.parent) / PAGE
    refuse_if(not config.force and out.exists(), f"out={out} exists; force=true replaces it, or choose another file")
    with Display() as display:
        clips = _open_clips(runs[0], display) if config.clips else None
        text = page_text(runs, clips, config.clips)
        write_text(out, text)
        display.say(f"saved to {out}: {len(text.encode()) / 1e6:.1f} MB")


def page_text(runs: Sequence[FinishedRun], clips: ClipSource | None, count: int) -> str:
    """Return the HTML text.

    Args:
        runs: The runs, which differ only in the seed.
        clips: The test clips of the runs; None: the page has no videos.
        count: Maximum number of clips to show in each of two groups. The clips of the first group are classified correctly only with the
            learned policy, those of the second group only with random patches.
    """
    environment = Environment(
        loader=PackageLoader("agents.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["counted"] = count_of
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
    first = runs[0]
    return environment.get_template("page.html").render(
        runs=runs, first=first, headline=headline(runs), findings=list(findings(runs)), tiles=list(_tiles(runs)), policies=POLICIES,
        columns=_columns(runs), rows=list(_rows(runs)), seeds=list(_seeds(runs)), charts=_charts(runs), maps=list(_maps(runs, clips)),
        classes=_classes(runs), confusion=_confusion(runs), wins=_clips(first, clips, count), losses=_clips(first, clips, -count),
        shows_clips=clips is not None, command=command_line(first.system["command"]), settings=_settings(first), system=first.system,
        seconds=first.result.get("seconds", {}),
    )  # fmt: skip


def _open_clips(run: FinishedRun, display: Display) -> ClipSource:
    """Return the test clips of a run.

    Raises:
        InputError: If the videos are missing or differ from those of the run.
    """
    try:
        with Unreadable() as unreadable:
            of_run = in_order_of(run.data, run.card.clip_format)
            clips = build_split(build_data(run.data), "test", of_run, run.card.architecture.size, display, unreadable)
    except InputError as problem:
        raise InputError(f"{problem}; or make a page without videos: clips=0") from problem
    refuse_if(
        list(clips.names) != run.predictions.column("file").tolist(),
        f"data={run.data.title} must have the test videos that {run.root} was evaluated on, got others; or make a page without: clips=0",
    )
    return clips


# Numbers


def _tiles(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, str, str]]:
    """Yield, for each of the most important results, its name, its value and a value for comparison, all as text."""
    names: dict[str, Any] = {"top-1 after the last frame": "correct", "top-1, mean over frames": "anytime"}
    for label, accuracy in names.items():
        learned, random = (estimate([getattr(run.predictions, accuracy)(name) for run in runs]) for name in ("learned", "random"))
        yield label, f"{learned.mean:.1f} %", f"random {random.mean:.1f} %"
    if (hits := mean_of(runs, "learned", "hit_rate")) >= 0:
        yield "hits of the target", f"{100 * hits:.0f} %", f"random {100 * mean_of(runs, 'random', 'hit_rate'):.0f} %"
    yield "GFLOPs per video", f"{mean_of(runs, 'learned', 'gflops'):.3g}", f"full frames {mean_of(runs, 'full_frame', 'gflops'):.3g}"


def _columns(runs: Sequence[FinishedRun]) -> dict[str, Metric]:
    """Return the metrics that are the columns of the table of policies."""
    return table_columns([policy for run in runs for policy in run.result["policies"].values()], runs[0].result["metric"])


def _rows(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, list[str], Estimate | None]]:
    """Yield, for each policy, its name, its metrics as text (averaged over runs), and its gain over random patches."""
    columns = _columns(runs)
    for name in [each for each in ORDER if each in runs[0].result["policies"]]:
        values = {key: mean_of(runs, name, key) for key in columns}
        cells = ["–" if np.isnan(value) else format(value, columns[key].format).rstrip("%") for key, value in values.items()]
        compared = name in runs[0].predictions.policies and name != "random"
        yield name, cells, gain(runs, name) if compared else None


def _seeds(runs: Sequence[FinishedRun]) -> Iterator[dict[str, Any]]:
    """Yield, for each run, the seed, the results and the other entries that differ between runs."""
    for run in runs:
        learned, best = run.result["policies"]["learned"], run.result.get("best", {})
        yield {
            "seed": run.config["seed"], "top1": 100 * learned["top1"], "anytime": 100 * learned["top1_anytime"], "gain": gain([run]),
            "hits": 100 * learned["hit_rate"] if "hit_rate" in learned else None, "chosen": best.get("steps", best.get("epoch")),
            "root": run.root,
        }  # fmt: skip


def _charts(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    metric = runs[0].result["metric"]
    return {
        "cost": cost_chart(runs), "steps": step_chart(runs, metric, ACCURACIES[metric]), "hits": step_chart(runs, "hit_rate", "hits"),
        "learning": learning_chart(runs),
    }  # fmt: skip


# Heat maps


def _maps(runs: Sequence[FinishedRun], clips: ClipSource | None) -> Iterator[dict[str, Any]]:
    """Yield the heat maps of all patches, of the target if it is known, and of the patches in the clips of each class."""
    boxes, size = [run.predictions.boxes() for run in runs], runs[0].card.architecture.size
    labels = runs[0].predictions.column("label")
    common = {name for name, _ in Counter(labels.tolist()).most_common(MAX_MAPS)}
    shares = {"all clips": coverage(stacked(boxes), size)}
    if clips is not None and (targets := targets_of(clips)) is not None:
        shares["the target"] = coverage(targets.boxes[targets.visible].astype(np.float64), size)
    by_class = {name: coverage(stacked([each[labels == name] for each in boxes]), size) for name in runs[0].card.classes if name in common}
    highest = max(each.max() for each in by_class.values())
    for of_class, maps in ((False, shares), (True, by_class)):
        for name, values in maps.items():
            top = highest if of_class else values.max()
            yield {
                "name": name, "picture": heat_map(values, top), "of_class": of_class, "highest": 100 * top, "peak": 100 * values.max(),
                "where": peak_in_words(values),
            }  # fmt: skip


# Classes


def _classes(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return, for each class in order, the number of its clips and the accuracies of the policies on these clips."""
    labels = runs[0].predictions.column("label")
    correct = {name: np.mean([run.predictions.correct(name) for run in runs], axis=0) for name in ("learned", "random")}
    rows = [(name, labels == name) for name in runs[0].card.classes]
    return [
        {"name": name, "clips": int(mine.sum()), **{policy: 100 * values[mine].mean() for policy, values in correct.items()}}
        for name, mine in rows
        if mine.any()
    ]


def _confusion(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the confusion matrix and the most frequent mistakes.

    The confusion matrix (C, C) has, for the clips of each class, the share in per cent of every predicted class. If there are many classes,
    only the `MAX_CONFUSED` classes with the most mistakes are included.
    """
    names = np.array(runs[0].card.classes)
    numbers, counts = {name: number for number, name in enumerate(names.tolist())}, np.zeros((len(names), len(names)))
    for run in runs:
        pairs = tuple([numbers[name] for name in run.predictions.column(key).tolist()] for key in ("label", "prediction"))
        np.add.at(counts, pairs, 1 / len(runs))
    mistakes = counts * ~np.eye(len(names), dtype=bool)
    shown = np.sort(np.argsort(-mistakes.sum(0) - mistakes.sum(1), kind="stable")[:MAX_CONFUSED])
    most = np.stack(np.unravel_index(np.argsort(-mistakes, axis=None, kind="stable")[:MAX_MISTAKES], counts.shape), axis=1)
    return {
        "names": names[shown].tolist(), "shares": 100 * counts[np.ix_(shown, shown)] / counts.sum(1).clip(1e-9)[shown, None],
        "complete": len(shown) == len(names),
        "mistakes": [(names[label], names[guess], mistakes[label, guess]) for label, guess in most if mistakes[label, guess]],
    }  # fmt: skip


# Clips


def _clips(run: FinishedRun, clips: ClipSource | None, count: int) -> list[dict[str, Any]]:
    """Return clips that are classified correctly with the learned policy but not with random patches.

    The clips are sorted by the gain in confidence, and the clip with the largest gain is first.

    Args:
        run: The first of the runs.
        clips: The test clips of the run; None: the page shows no videos.
        count: Maximum number of clips. If ``count`` is negative, return clips that are classified correctly with random patches but not
            with the learned policy.
    """
    if clips is None:
        return []
    sign, read = int(np.sign(count)), run.predictions
    gains = sign * (read.confidence() - read.confidence("random"))
    chosen = [int(clip) for clip in np.argsort(-gains, kind="stable") if sign * (read.correct() - read.correct("random"))[clip] > 0]
    return [_clip(run, clips, clip) for clip in chosen[: abs(count)]]


def _clip(run: FinishedRun, clips: ClipSource, clip: int) -> dict[str, Any]:
    read, frames = run.predictions, clips.frames(clip).permute(0, 2, 3, 1).numpy()
    boxes: dict[str, NDArray[np.float64]] = {name: read.boxes(name)[clip] for name in ("learned", "random")}
    moving, still = animation(frames, {name: each.repeat(len(frames) // len(each), axis=0) for name, each in boxes.items()})
    return {
        "file": clips.names[clip], "label": read.column("label")[clip], "moving": moving, "still": still,
        "learned": (read.column("prediction")[clip], 100 * read.confidence()[clip]),
        "random": (read.column("random_prediction")[clip], 100 * read.confidence("random")[clip]),
    }  # fmt: skip


# Setup


def _settings(run: FinishedRun) -> Iterable[tuple[str, list[tuple[str, Any]]]]:
    """Return the groups of the first run's settings. The group of settings whose keys have no prefix is first."""
    groups: dict[str, list[tuple[str, Any]]] = {"": []}
    for key, value in run.setting.items():
        group, _, _ = key.rpartition(".")
        groups.setdefault(group.split(".")[0], []).append((key, value))
    return groups.items()
