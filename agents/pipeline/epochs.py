"""Checkpoints from which a supervised training in a run directory resumes, and progress bars for such a training."""

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
    """Yield the checkpoints in ``folder``, and remove the lines of metrics after the last checkpoint.

    Raises:
        Stopped: If the user asked to stop after the last batch.
        InputError: If the last checkpoint is damaged.
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
    """Yield the number and the metrics of every epoch, and show a progress bar. The bar also shows the metrics that the caller adds.

    Args:
        epochs: The training, which yields the metrics of the remaining epochs.
        checkpoints: Checkpoints of the training.
        display: Shows the bar.
        title: Title of the bar.
        total: Total number of epochs.
        done: Number of epochs that are already finished.
        clips: Number of clips per epoch.
    """
    bar = display.bar(title, total, done, unit="epoch", clips=clips)
    checkpoints.progress = bar.at
    for epoch, metrics in enumerate(epochs, done + 1):
        yield epoch, metrics
        bar.at(epoch, figures(metrics))
