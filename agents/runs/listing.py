"""The implementation of `python -m agents.list_runs`: list run folders and their results as tables or JSON."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from adafocus_env.demo.videos import DEFAULT_TASK
from adafocus_env.terminal import plain, printable
from agents.config.compose import flat
from agents.config.settings import ListRuns
from agents.evaluation.metrics import share_of_gap
from agents.runs.confidence import mean_text
from agents.runs.run_dir import CONFIG, EXECUTION_KEYS, METRICS, RESULT, SYSTEM, RunDir, to_json
from classifiers.errors import InputError


@dataclass(frozen=True)
class Run:
    """The information on one run folder. Values that do not exist, or do not exist yet, are None.

    Attributes:
        run: the folder, relative to the listed folder.
        command: the command that made the run, and its algorithm.
        data: the data set with its task or folder, and, if its main metric is not top-1, this metric.
        seed: the seed of the run.
        state: finished, running or stopped, followed by the last step or epoch.
        broken: the reason why the folder cannot be read; empty if it can be read.
        anytime: top-1 of the learned policy, averaged over steps.
        hits: hit rate of the learned policy, if targets are known.
        learned: top-1 of the learned policy, or its accuracy by the main metric of the data set.
        random: accuracy with random patches, by the same metric as `learned`.
        oracle: accuracy with the patches of the oracle, by the same metric as `learned`. If there is no ground truth, the greedy oracle is
            used.
        gap: the share of the gap between random patches and the oracle that the policy closes; None if this gap is below 10 points.
        gflops: GFLOPs per video with the learned policy; a multiply-add counts as one.
        seconds: seconds of training, summed over all starts of the run.
        date: date of the last change.
        setting: the values of the config by their dotted keys, without seed and folder. Runs of a sweep that differ only in the seed have
            the same setting.
    """

    run: str
    command: str | None = None
    data: str | None = None
    seed: int | None = None
    state: str | None = None
    broken: str = ""
    anytime: float | None = None
    hits: float | None = None
    learned: float | None = None
    random: float | None = None
    oracle: float | None = None
    gap: float | None = None
    gflops: float | None = None
    seconds: float | None = None
    date: str | None = None
    setting: dict[str, Any] | None = None


def print_runs(settings: ListRuns) -> None:
    """Print the list of runs."""
    found = sorted(list_runs(Path(settings.root)), key=ORDERS[settings.sort])
    if settings.json:
        sys.stdout.write(to_json([asdict(run) for run in found], indent=2) + "\n")
    else:
        show(found, Console())


def show(runs: Sequence[Run], console: Console) -> None:
    """Print a table for every data set, the means over seeds, and broken folders. The width of tables is limited only on a terminal."""
    whole = [run for run in runs if not run.broken]
    tables = [table(data, [run for run in whole if run.data == data]) for data in sorted({str(run.data) for run in whole})]
    if whole:
        tables[-1].caption = (
            "in per cent; hits, anytime: of the learned policy; gap: share of the gap between random and oracle, if that is 10 points; "
            "time: of training; multiply-adds count as one"
        )
    for each in (*tables, summary(whole)):
        if each is not None:
            if not console.is_terminal:
                console.width = console.measure(each, options=console.options.update(width=10_000)).maximum
            console.print(each)
    for run in runs:
        if run.broken:
            console.print(printable(f"{run.run}: {run.broken}"), style="red", highlight=False, markup=False, soft_wrap=True, emoji=False)
    if not runs:
        console.print("no run folders", highlight=False)


def list_runs(root: Path) -> list[Run]:
    """Return all run folders in ``root`` and its subfolders, including broken ones.

    Raises:
        InputError: If ``root`` is not a folder.
    """
    if not root.is_dir():
        raise InputError(f"root must be a folder that holds run folders, such as root=runs, got {root}")
    folders = {file.parent for file in root.rglob(CONFIG) if any((file.parent / name).is_file() for name in (SYSTEM, METRICS, RESULT))}
    return [read(folder, folder.relative_to(root).as_posix()) for folder in folders]


def read(folder: Path, name: str) -> Run:
    """Return the information on one folder. If the folder is broken, the result contains only the reason why it cannot be read."""
    known: dict[str, Any] = {"run": name}
    try:
        run = RunDir(folder)
        known |= _asked(run.config()) | {"date": _date(folder)}
        known["state"] = _state(run)
        known["seconds"] = sum(line["seconds"] for line in run.timing()) or None
        known |= _reached(run.result(), known["data"]) if run.finished else {}
    except Exception as problem:  # one bad file must not hide the other runs
        known["broken"] = " ".join(str(problem).split()) if isinstance(problem, InputError) else repr(problem)
    return Run(**known)


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    """Return the information from the config. The command is the first one in ``commands`` whose key is in the config."""
    commands = {"first": "train_stages", "algo": f"train {config.get('algo', {}).get('name')}", "learning": "train_end_to_end"}
    command = next((name for key, name in commands.items() if key in config), "train_ppo")
    data = config["data"]
    task = data.get("task", DEFAULT_TASK)
    setting = {key: value for key, value in flat(config).items() if key not in EXECUTION_KEYS | {"seed"}}
    label = data["name"] + ("" if task == DEFAULT_TASK else f"-{task}") + (f" ({data['root']})" if data.get("root") else "")
    return {"command": command, "data": label, "seed": config["seed"], "setting": setting}


def _state(run: RunDir) -> str:
    if run.finished:
        return "finished"
    lines, running = run.metrics(), run.in_use
    if not lines:
        return "running, nothing measured yet" if running else "stopped before anything was measured"
    last = lines[-1]
    keys = {"stage": "stage {}", "round": "round {}", "part": "{}", "epoch": "epoch {:,}", "steps": "{:,} steps"}
    at = ", ".join(text.format(last[key]) for key, text in keys.items() if last.get(key) is not None)
    return f"{'running: ' if running else 'stopped at '}{at}"


def _reached(result: dict[str, Any], data: str) -> dict[str, Any]:
    """Return the results that `agents.runs.report` measured on the test clips."""
    metric, policies = result.get("metric", "top1"), result["policies"]
    best = next((name for name in ("oracle", "greedy_oracle") if name in policies), "")
    values = {name: policies.get(key, {}).get(metric) for name, key in (("learned", "learned"), ("random", "random"), ("oracle", best))}
    learned, random, oracle = values.values()
    closed = share_of_gap(learned, random, oracle) if None not in values.values() else None
    others = {name: policies.get("learned", {}).get(key) for name, key in LEARNED.items()}
    reached = {**values, "gap": closed, **others}
    return reached if metric == "top1" else {**reached, "data": f"{data} ({metric})"}


def _date(folder: Path) -> str:
    files = [folder / name for name in (CONFIG, METRICS, RESULT)]
    latest = max(file.stat().st_mtime for file in files if file.is_file())
    return datetime.fromtimestamp(latest).isoformat(" ", "minutes")


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that places seed=10 after seed=9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


LEARNED = {"hits": "hit_rate", "anytime": "top1_anytime", "gflops": "gflops"}
"""Columns for the learned policy, in addition to its accuracy. Each column is mapped to the key of its value in the result."""

ORDERS: dict[str, Callable[[Run], Any]] = {
    "run": lambda run: _natural(run.run),
    "learned": lambda run: (run.learned is None, -(run.learned or 0), _natural(run.run)),
    "date": lambda run: (run.date is None, -datetime.fromisoformat(run.date or "1970-01-01").timestamp(), _natural(run.run)),
}


# The tables


def table(data: str, runs: Iterable[Run]) -> Table:
    """Return a table with one row per run on a data set. A narrow terminal wraps names and states."""
    headings = ("run", "command", "seed", "state", "hits", "anytime", "learned", "oracle", "gap", "GFLOPs", "time", "written")
    shown = _empty(f"{data}, test split", *headings)
    for run in runs:
        values = (run.hits, run.anytime, run.learned, run.oracle, run.gap)
        accuracies = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        gflops = "–" if run.gflops is None else f"{run.gflops:.3g}"
        seconds = "–" if run.seconds is None else str(timedelta(seconds=round(run.seconds)))
        names = map(plain, (run.run, run.command, run.seed, run.state))
        shown.add_row(*names, *accuracies, gflops, seconds, str(run.date)[: len("2000-12-31")])
    return shown


def summary(runs: Iterable[Run]) -> Table | None:
    """Return a table with a row for every setting with finished runs of at least two seeds; None if no setting has such runs."""
    settings = defaultdict[tuple[str, str], list[Run]](list)
    for run in runs:
        if run.learned is not None:
            settings[str(Path(run.run).parent), to_json(run.setting, sort_keys=True)].append(run)
    several = [same for same in settings.values() if len({run.seed for run in same}) > 1]
    if not several:
        return None
    shown = _empty("means over seeds", "runs", "command", "data", "seeds", "learned", "random", "gap")
    for same in several:
        seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in same if run.seed is not None}))
        values = [_mean([getattr(run, key) for run in same]) for key in ("learned", "random", "gap")]
        common = commonprefix([run.run for run in same]) + "*"  # noqa: RUF071 (sweep/seed=* for sweep/seed=1 and sweep/seed=2)
        shown.add_row(*map(plain, (common, same[0].command, same[0].data, seeds)), *values)
    shown.caption = "± is half the width of a 95 % confidence interval of the mean over seeds"
    return shown


def _empty(title: str, *headings: str) -> Table:
    title = plain(title)
    shown = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        folds = heading in ("run", "runs", "state", "data", "seeds")
        side: JustifyMethod = "left" if folds or heading == "command" else "right"
        shown.add_column(heading, justify=side, overflow="fold", no_wrap=not folds, min_width=len("stopped at") * folds)
    return shown


def _mean(values: list[float | None]) -> str:
    return "–" if None in values else mean_text(100 * np.array(values, float), ".1f")
