"""What supervised trainings share in a run directory: checkpoints to resume from, and progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adafocus_env import distributed
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import Display, figures
from agents.runs.run_dir import RunDir
from agents.supervised.checkpoint import EpochCheckpoint

Metrics = dict[str, float]


@contextmanager
def resumable(directory: RunDir, folder: Path, display: Display) -> Iterator[EpochCheckpoint]:
    """Yield the checkpoints in ``folder``; lines of metrics after the last one are removed.

    Raises:
        Stopped: The user asked to stop after the last batch.
        InputError: The last checkpoint is broken.
    """
    with StopRequest(display.console) as stop:
        checkpoints = EpochCheckpoint(folder, lambda: len(directory.metrics()), stop)
        if distributed.is_main():
            directory.truncate(checkpoints.resumed_lines or 0)
        yield checkpoints
        if stop.requested and distributed.is_main():
            raise Stopped


def with_progress(
    epochs: Iterator[Metrics], checkpoints: EpochCheckpoint, display: Display, title: str, *, total: int, done: int, clips: int
) -> Iterator[tuple[int, Metrics]]:
    """Yield the number of every epoch and its metrics, under a bar, which also shows what the caller adds to them.

    Args:
        epochs: Trains, and yields the metrics of the remaining epochs.
        checkpoints: Of the training.
        display: Where the bar is.
        title: Of the bar.
        total: Number of epochs.
        done: Epochs before the first of these.
        clips: Clips in an epoch.
    """
    bar = display.bar(title, total, done, unit="epoch", clips=clips)
    checkpoints.progress = bar.at
    for epoch, metrics in enumerate(epochs, done + 1):
        yield epoch, metrics
        bar.at(epoch, figures(metrics))
