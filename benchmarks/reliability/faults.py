"""Stop decoders, fill disks, remove caches, poison losses and flip bits, and check that the command names the fault and then resumes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.reliability import injected
from benchmarks.reliability.bits import FILES, flip_bits
from benchmarks.reliability.children import Command, Trap, called, finished, started, until
from benchmarks.reliability.commands import BANK, KINDS, TEST, TRAIN, Kind, difference, make_videos
from benchmarks.results import Aim, Section
from benchmarks.usage import children_of

MISTAKE = 2  # exit status of a command that names what is wrong

FULL_DISK: Mapping[str, tuple[str, str, int]] = {
    "a checkpoint of PPO": ("train_ppo", r"/checkpoints/\.ppo-\d+\.safetensors\..*part$", 2),
    "a checkpoint of DQN with its replay buffer": ("train algo=dqn", r"/checkpoints/\.dqn-\d+\.safetensors\..*part$", 2),
    "a checkpoint of a supervised stage": ("train_stages", r"/stage1/.*\.pt\..*part$", 2),
    "the best policy": ("train_ppo", r"/best/\.policy\.safetensors\..*part$", 1),
    "metrics.jsonl": ("train_ppo", r"/metrics\.jsonl$", 3),
    "the curves of TensorBoard": ("train_ppo", r"/events\.out\.tfevents", 1),
    "result.json": ("train_ppo", r"/\.result\.json\..*part$", 1),
    "predictions.csv": ("train_ppo", r"/\.?predictions\.csv", 1),
    "decoded clips": ("train_ppo", r"/frames\.bin$", 1),
    "a bank of features": ("fill_feature_bank", r"\.bin\..*part$", 2),
    "predictions.jsonl": ("predict", r"/predictions\.jsonl$", 3),
}
"""The kinds of writes: the command, the pattern of the file, and which of the writes fails first, as all later ones do."""

NOT_FINITE: Mapping[str, tuple[str, Callable[[], None]]] = {
    "stage 2, PPO": ("train_ppo", injected.nan_in_value_loss),
    "stage 2, DQN": ("train algo=dqn", injected.nan_in_q_loss),
    "a supervised stage": ("train_stages", injected.nan_in_cross_entropy),
    "end-to-end training": ("train_end_to_end", injected.nan_in_cross_entropy),
}
"""The kinds of losses: the command, and the function that makes the loss NaN after some batches."""


@dataclass
class Lab:
    """The videos, the caches and the results of undisturbed runs.

    Attributes:
        folder: A folder for everything.
        videos: The folder of videos.
        cache: A filled cache folder, which commands only read.
    """

    folder: Path
    videos: Path
    cache: Path
    _runs: dict[str, Path] = field(default_factory=dict)
    _count: int = 0

    def kind(self, name: str) -> Kind:
        """Return the command with a name."""
        return {**KINDS, BANK.command: BANK}[name]

    def command(self, name: str, folder: Path, cache: Path, *further: str) -> Command:
        """Return a command with its results in ``folder``."""
        if name == BANK.command:  # the classifier is the one that the first run of `train_ppo` left in the cache
            further = (*further, f"classifier={next(self.cache.glob('classifiers/*/card.json')).parent}")
        return self.kind(name).on(self.videos, folder, cache, *further)

    def run(self, name: str) -> Path:
        """Return the folder of an undisturbed run."""
        if name not in self._runs:
            self._runs[name] = self.new("whole")
            status, printed = finished(self.command(name, self._runs[name], self.cache))
            assert status == 0, printed
        return self._runs[name]

    def whole(self, name: str) -> tuple[object, object]:
        """Return the outcome of an undisturbed run."""
        return self.kind(name).outcome(self.run(name))

    def new(self, name: str) -> Path:
        """Return the path of a new folder."""
        self._count += 1
        return self.folder / f"{name}-{self._count}"

    def resumed(self, name: str, folder: Path, cache: Path) -> str:
        """Start a disturbed command again, and return what is wrong with the result, or an empty string."""
        status, printed = finished(self.command(name, folder, cache))
        if status != 0:
            return f"the second start ended with status {status}: {printed[-1500:]}"
        differing = difference(self.whole(name), self.kind(name).outcome(folder))
        return f"the second start gave another result: {differing}" if differing else ""


def measure(folder: Path, console: Console, only: str = "") -> Section:
    """Every fault must end the command with status 2 and a message that names it; the same command must then end with the right result.

    A full disk is a limit of the kernel on the size of files (``RLIMIT_FSIZE``), which is set at the write in question.
    """
    lab = Lab(folder, make_videos(folder / "videos"), folder / "cache")
    status, printed = finished(KINDS["train_ppo"].on(lab.videos, lab.new("warm"), lab.cache))
    assert status == 0, printed
    section = Section("Faults", " ".join((measure.__doc__ or "").split()))
    for name, tried in faults(lab).items():
        if re.search(only, name):
            problem = tried()
            console.print(f"{name}: {problem or 'survived'}", markup=False, highlight=False, soft_wrap=True)
            section.figure(name, float(not problem), "of 1", aim=Aim("≥", 1))
            section.failure += f"{name}: {problem}\n" if problem else ""
    return section


def faults(lab: Lab) -> dict[str, Callable[[], str]]:
    """Return the faults by name. Each is a function that returns what went wrong, or an empty string."""
    found: dict[str, Callable[[], str]] = {"a decoder is stopped (SIGSTOP)": lambda: _stopped_decoder(lab)}
    found |= {f"the disk is full: {what}": _bound(_full_disk, lab, what) for what in FULL_DISK}
    found["two runs at once on one empty cache"] = lambda: _two_at_once(lab)
    found["the cache is removed while it is filled"] = lambda: _lost_cache(lab, _removed, None, "was removed while")
    found["the cache becomes read-only while it is filled"] = lambda: _lost_cache(
        lab, _read_only, injected.obey_permissions, "cannot write to the cache folder"
    )
    found["the cache is removed while a policy is trained"] = lambda: _cache_removed_later(lab)
    found |= {f"the loss is NaN: {what}": _bound(_not_finite, lab, what) for what in NOT_FINITE}
    found |= {f"bits of {what} are flipped": _bound(_flipped_bits, lab, what) for what in FILES}
    return found


def _bound(call: Callable[..., str], *arguments: object) -> Callable[[], str]:
    return lambda: call(*arguments)


def _full_disk(lab: Lab, what: str) -> str:
    name, pattern, number = FULL_DISK[what]
    folder, cache = lab.new("full"), lab.cache
    if what == "decoded clips":
        cache = lab.new("cache")
    status, printed = finished(lab.command(name, folder, cache), Trap(pattern, number, act="full"))
    return _unnamed(status, printed, "cannot write") or lab.resumed(name, folder, cache)


def _not_finite(lab: Lab, what: str) -> str:
    name, inject = NOT_FINITE[what]
    folder = lab.new("nan")
    status, printed = finished(lab.command(name, folder, lab.cache), prepare=inject)
    return _unnamed(status, printed, "not finite|the loss is nan") or lab.resumed(name, folder, lab.cache)


def _unnamed(status: int | str, printed: str, message: str) -> str:
    """Return what is wrong with the end of a disturbed command."""
    wrong = status != MISTAKE or not re.search(message, printed)
    return f"status {status} without the message {message!r}: {printed[-1500:]}" if wrong else ""


def _stopped_decoder(lab: Lab) -> str:
    """Stop the first decoder of a prediction. Its video is named, the others are predicted, and the next start predicts all."""
    kind, folder = KINDS["predict"], lab.new("stopped")
    whole = lab.whole("predict")
    with started(kind.on(lab.videos, folder, lab.cache, "time_limit=3")) as child:
        if not until(lambda: kind.progress(folder) > 0, child):
            return f"it ended before a decoder could be stopped: {child.output[-1500:]}"
        for decoder in children_of(child.process.pid):
            os.kill(decoder, signal.SIGSTOP)
        status = child.wait()
    count = TRAIN + TEST
    lost = count - kind.progress(folder)
    if status != 1 or "and was stopped" not in child.output or not 1 <= lost <= 2:
        return f"status {status}, {lost} of {count} videos without a prediction: {child.output[-1500:]}"
    status, printed = finished(kind.on(lab.videos, folder, lab.cache))
    return difference(whole, kind.outcome(folder)) if status == 0 else f"status {status}: {printed[-1500:]}"


def _two_at_once(lab: Lab) -> str:
    folders, cache, kind = [lab.new("twin"), lab.new("twin")], lab.new("cache"), KINDS["train_ppo"]
    one, other = (kind.on(lab.videos, folder, cache) for folder in folders)
    with started(one) as first, started(other) as second:
        statuses = first.wait(), second.wait()
        if statuses != (0, 0):
            return f"statuses {statuses}: {first.output[-1000:]} {second.output[-1000:]}"
    return "; ".join(filter(None, (difference(lab.whole("train_ppo"), kind.outcome(folder)) for folder in folders)))


def _lost_cache(lab: Lab, lose: Callable[[Path], object], prepare: Callable[[], None] | None, message: str) -> str:
    """Start with an empty cache, and remove or lock it as soon as the first clips are decoded."""
    folder, cache, name = lab.new("lost"), lab.new("cache"), "train_ppo"
    with started(lab.command(name, folder, cache), prepare=prepare) as child:
        if not until(lambda: any("frames.bin" in names for _, _, names in os.walk(cache)), child):
            return f"it ended early: {child.output[-1500:]}"
        lose(cache)
        status = child.wait()
        printed = child.output
    _read_only(cache, 0o755)
    if status == 0 and prepare is None:  # a removed folder can be made again, a read-only one cannot be written
        return difference(lab.whole(name), lab.kind(name).outcome(folder))
    return _unnamed(status, printed, message) or lab.resumed(name, folder, cache)


def _cache_removed_later(lab: Lab) -> str:
    """Remove the cache when stage 2 has logged its first line."""
    folder, cache, name = lab.new("lost"), lab.new("cache"), "train_ppo"
    shutil.copytree(lab.cache, cache)
    with started(lab.command(name, folder, cache)) as child:
        if not until(lambda: lab.kind(name).progress(folder) > 0, child):
            return f"it ended early: {child.output[-1500:]}"
        _removed(cache)
        status = child.wait()
    if status == 0:
        return difference(lab.whole(name), lab.kind(name).outcome(folder))
    return _unnamed(status, child.output, "was removed while") or lab.resumed(name, folder, cache)


def _flipped_bits(lab: Lab, what: str) -> str:
    return called(flip_bits, lab.run(FILES[what][0]), what)


def _removed(folder: Path) -> None:
    """Remove a folder at once, even if a process is writing to it."""
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}-removed")))


def _read_only(folder: Path, mode: int = 0o555) -> None:
    """Set the permissions of a folder and of all folders in it. Some of them may disappear at the same time."""
    for root, _, _ in os.walk(folder):
        with contextlib.suppress(FileNotFoundError):
            Path(root).chmod(mode)
