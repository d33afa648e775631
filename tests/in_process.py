"""Decode and draw videos in the process of the test, because starting workers takes most of the time of a short test."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from adafocus_env.videos.decoding import Failure
from classifiers.errors import InputError

CALLERS = (
    "adafocus_env.clips.store", "adafocus_env.clips.stream", "adafocus_env.demo.videos", "adafocus_env.validate_data",
    "agents.prediction.clips", "agents.prediction.result",
)  # fmt: skip
"""The modules that call `run_in_workers`."""


def call_in_this_process(function: str, tasks: Sequence[object], **options: object) -> Iterator[tuple[int, object]]:
    """In place of `adafocus_env.videos.decoding.run_in_workers`; an error that is not `InputError` ends the test."""
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    for number, task in enumerate(tasks):
        try:
            result = call(task)
        except InputError as problem:
            result = Failure(str(problem))
        yield number, result


def decode_by(run: Callable[..., Iterator[tuple[int, object]]], patch: pytest.MonkeyPatch) -> None:
    """All modules then call ``run`` in place of `run_in_workers`."""
    for module in CALLERS:
        patch.setattr(f"{module}.run_in_workers", run)
