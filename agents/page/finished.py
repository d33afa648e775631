"""Finished runs, as the page reads them. Several runs must differ only in the seed."""

from __future__ import annotations

import glob
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agents.config.compose import flat
from agents.config.settings import DataConfig, Evaluate
from agents.pipeline.evaluate_saved import evaluate_saved
from agents.prediction.checkpoints import check_finished, check_plugin
from agents.runs.listing import read
from agents.runs.predictions import LEARNED, Predictions
from agents.runs.run_dir import CONFIG, EXECUTION_KEYS, PREDICTIONS, SYSTEM, RunDir
from classifiers.atomic_files import replacing
from classifiers.checkpoint import Card, read_card
from classifiers.errors import refuse_if


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a run directory that the page needs.

    Attributes:
        root: The run directory.
        command: The command that made it, as `agents.list_runs` names it.
        config: ``config.yaml``.
        result: ``result.json``.
        system: ``system.json``.
        metrics: The lines of ``metrics.jsonl``.
        predictions: ``predictions.csv``.
        card: The classifier's card.
    """

    root: Path
    command: str
    config: dict[str, Any]
    result: dict[str, Any]
    system: dict[str, Any]
    metrics: list[dict[str, Any]]
    predictions: Predictions
    card: Card

    @property
    def data(self) -> DataConfig:
        """The settings of the videos."""
        return DataConfig(**self.config["data"])

    @property
    def setting(self) -> dict[str, Any]:
        """The config by dotted keys, without the seed and keys that do not change results."""
        return {key: value for key, value in flat(self.config).items() if key not in EXECUTION_KEYS | {"seed"}}


def read_runs(pattern: str, plugin: str = "") -> list[FinishedRun]:
    """Return the runs, sorted by seed. For runs of earlier versions, ``predictions.csv`` is written first.

    Args:
        pattern: A run directory, or a pattern that matches several.
        plugin: The module that was imported for the command, if any.

    Raises:
        InputError: If a run does not exist, is not finished or has no learned policy, or if runs differ in more than the seed.
    """
    found = [Path(pattern)] if Path(pattern).exists() else [Path(each) for each in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute patterns)
    folders = found if len(found) == 1 else [each for each in found if (each / CONFIG).is_file()]
    refuse_if(
        not folders,
        f"run={pattern} does not exist; give the folder of a finished run, or a pattern such as 'runs/sweep/seed=*' "
        "(python -m agents.list_runs lists them)",
    )
    runs = sorted((_read(RunDir(folder), plugin) for folder in folders), key=lambda run: run.config["seed"])
    for other in runs[1:]:
        _check_alike(runs[0], other)
    seeds = [run.config["seed"] for run in runs]
    refuse_if(len({*seeds}) < len(seeds), f"run={pattern}: runs must differ in the seed, got the seeds {seeds}; leave out the copies")
    return runs


def _read(run: RunDir, plugin: str) -> FinishedRun:
    config = run.config()
    check_finished(run)
    check_plugin(str(run.root), plugin)
    summary, result = read(run.root, str(run.root)), run.result()
    refuse_if(summary.broken, f"run={run.root} cannot be read: {summary.broken}; choose another run")
    refuse_if(LEARNED not in result["policies"], f"run={run.root} has no learned policy; choose a run of python -m agents.train_ppo")
    if not run.path(PREDICTIONS).is_file():
        _write_predictions(run, plugin)
    system, card = json.loads(run.path(SYSTEM).read_text(encoding="utf-8")), read_card(run.checkpoints / "classifier")
    return FinishedRun(run.root, str(summary.command), config, result, system, run.metrics(), Predictions(run.path(PREDICTIONS)), card)


def _write_predictions(run: RunDir, plugin: str) -> None:
    """Evaluate a run of an earlier version again."""
    with TemporaryDirectory() as folder, replacing(run.path(PREDICTIONS)) as temporary:
        evaluate_saved(Evaluate(run=str(run.root), out=folder, plugin=plugin))
        shutil.copyfile(Path(folder) / PREDICTIONS, temporary)


def _check_alike(first: FinishedRun, other: FinishedRun) -> None:
    clips = [[run.predictions.column(name).tolist() for name in ("file", "label")] for run in (first, other)]
    refuse_if(
        clips[0] != clips[1] or first.result["split"] != other.result["split"],
        f"runs must have the same test clips, got data={first.data.title} in {first.root} and data={other.data.title} in {other.root}; "
        "make a page for each data set",
    )
    keys = sorted(key for key in {*first.setting, *other.setting} if first.setting.get(key) != other.setting.get(key))
    refuse_if(keys, f"runs must differ only in the seed, got other values of {', '.join(keys)} in {other.root}; make a page for each")
