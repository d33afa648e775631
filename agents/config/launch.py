"""Runs the jobs of a sweep: one after the other in this process, several at a time through joblib, or on a cluster through submitit.

Hydra's plugins hydra-joblib-launcher and hydra-submitit-launcher say what can be set (``hydra.launcher.n_jobs=2``); they launch
nothing themselves, because Hydra would make folders of its own.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.config.plugin import import_plugin
from agents.runs.interrupts import StopRequest
from classifiers.errors import InputError

Main = Callable[[Any], None]

MISTAKE, BUG, STOPPED = 2, 1, 130

PACKAGES = {
    "joblib": "hydra-joblib-launcher", "submitit_local": "hydra-submitit-launcher", "submitit_slurm": "hydra-submitit-launcher",
}  # fmt: skip
"""Launcher → the package that brings it."""


@dataclass(frozen=True)
class Job:
    """One combination of the swept values.

    Attributes:
        name: says what it is.
        config: what ``main`` is called with.
    """

    name: str
    config: Any

    @property
    def log(self) -> Path | None:
        """Where a job that runs beside others writes what it would print: beside its run folder, if it has one."""
        run = getattr(self.config, "run", "")
        return Path(f"{run}.log") if run else None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of the job.
        status: as a process would have it; 0: well.
        problem: why it failed.
    """

    name: str
    status: int = 0
    problem: str = ""


def run_main(main: Main, config: Any) -> None:
    """Calls ``main``, after the import of the user's plugin."""
    import_plugin(getattr(config, "plugin", ""))
    main(config)


def run_jobs(main: Main, jobs: Sequence[Job], launcher: Mapping[str, Any]) -> None:
    """Runs all jobs; one that fails does not stop the others.

    Args:
        main: what to call with the config of each.
        jobs: in order.
        launcher: Hydra's config of the launcher.

    Raises:
        SystemExit: a job failed or was stopped.
    """
    launch = LAUNCHERS[str(launcher["_target_"]).rpartition(".")[2]]
    ended: dict[str, Outcome] = {}
    for outcome in launch(main, jobs, {key: value for key, value in launcher.items() if key != "_target_"}):
        ended[outcome.name] = outcome
        if outcome.problem:
            say(outcome.problem if launch is _here else f"{outcome.name}: {outcome.problem}")
    failed = [outcome for outcome in (ended.get(job.name, Outcome(job.name, STOPPED)) for job in jobs) if outcome.status]
    if failed:
        if len(jobs) > 1:
            say(f"{len(failed)} of {len(jobs)} jobs failed or were stopped: {', '.join(outcome.name for outcome in failed)}")
        sys.exit(min(outcome.status for outcome in failed))  # a bug before a mistake, and that before a stop


def say(message: str) -> None:
    """On stderr, as it is: no markup, no colours, and no line breaks that a terminal's width would put into a path."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True, emoji=False)


def _here(main: Main, jobs: Sequence[Job], settings: Mapping[str, Any]) -> Iterator[Outcome]:
    """One after the other. Ctrl-C ends them all."""
    for number, job in enumerate(jobs, start=1):
        say(f"job {number} of {len(jobs)}: {job.name}")
        outcome = _outcome(main, job)
        yield outcome
        if outcome.status == STOPPED:
            return


def _joblib(main: Main, jobs: Sequence[Job], settings: Mapping[str, Any]) -> Iterator[Outcome]:
    """Several at a time, in processes of their own. Ctrl-C reaches them all: each stops at its checkpoint, and no other begins."""
    from joblib import Parallel, delayed

    numbers = {key: int(value) if str(value).isdigit() else value for key, value in settings.items()}
    # Processes, as threads would share one random state; and no job waits in a worker for another to end.
    fixed = {"backend": "loky", "pre_dispatch": "n_jobs", "batch_size": 1, "return_as": "generator_unordered"}
    say(f"{len(jobs)} jobs; what they write is in {_logs(jobs)}")
    with StopRequest() as stop:
        tasks = (delayed(_beside_others)(main, job) for job in jobs if not stop.requested)
        yield from _told(Parallel(**{**numbers, **fixed})(tasks))


def _submitit(cluster: str) -> Callable[[Main, Sequence[Job], Mapping[str, Any]], Iterator[Outcome]]:
    def launch(main: Main, jobs: Sequence[Job], settings: Mapping[str, Any]) -> Iterator[Outcome]:
        import submitit

        log = jobs[0].log
        own = {"name": "adafocus", "submitit_folder": str((log.parent if log else Path()) / ".submitit" / "%j")}
        given = {key: value for key, value in settings.items() if not str(value).startswith("${hydra.")}  # of folders that are not made
        common = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")
        values = {key if key in common else f"{cluster}_{key}": value for key, value in {**own, **given}.items()}
        folder, timeouts = values.pop(f"{cluster}_submitit_folder"), f"{cluster}_max_num_timeout"
        early = {timeouts: values.pop(timeouts)} if timeouts in values else {}
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **early)
        executor.update_parameters(**values)
        submitted = executor.map_array(_Resubmitted(main), jobs)
        say(f"{len(jobs)} jobs; what they write is in {Path(folder).parent}")
        yield from _told(_result(job, each) for job, each in zip(jobs, submitted, strict=True))

    return launch


LAUNCHERS: dict[str, Callable[[Main, Sequence[Job], Mapping[str, Any]], Iterator[Outcome]]] = {
    "BasicLauncher": _here, "JoblibLauncher": _joblib, "LocalLauncher": _submitit("local"), "SlurmLauncher": _submitit("slurm"),
}  # fmt: skip
"""Hydra's class → ours."""


class _Resubmitted:
    """A call that submitit makes again when the cluster took the machine away: a run goes on from its last checkpoint."""

    def __init__(self, main: Main) -> None:
        self.main = main

    def __call__(self, job: Job) -> Outcome:
        return _outcome(self.main, job)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _result(job: Job, submitted: Any) -> Outcome:
    """That of a job on a cluster, which may have died with its machine."""
    try:
        return submitted.result()
    except Exception as problem:
        return Outcome(job.name, BUG, str(problem))


def _beside_others(main: Main, job: Job) -> Outcome:
    """Runs a job whose output would mix with that of others."""
    if job.log is None:
        return _outcome(main, job)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return _outcome(main, job)


def _outcome(main: Main, job: Job) -> Outcome:
    try:
        run_main(main, job.config)
    except InputError as problem:
        return Outcome(job.name, MISTAKE, str(problem))
    except (KeyboardInterrupt, SystemExit):  # a run that was stopped and saved ends so
        return Outcome(job.name, STOPPED)
    except Exception:
        return Outcome(job.name, BUG, traceback.format_exc())
    return Outcome(job.name)


def _told(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        if not outcome.status:
            say(f"{outcome.name}: done")
        yield outcome


def _logs(jobs: Sequence[Job]) -> str:
    return ", ".join(str(job.log) for job in jobs if job.log) or "this terminal"
