"""Stop the work at its next checkpoint on Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised if the user asked to stop, after everything is saved."""


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets ``requested``. A further SIGINT raises `KeyboardInterrupt`.

    Python delivers signals only to the main thread. In threads other than the main thread, the context has no effect.

        with StopRequest() as stop:
            while not stop.requested:
                ...
    """

    def __init__(self, console: Console | None = None) -> None:
        """Create a request. If ``console`` is the console of a progress display, the message to the user appears above its bars."""
        self.requested = False
        self._console = console or Console(stderr=True)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._previous.items():
            # A previous handler that was not set from Python is None and cannot be restored, so the default handler is used.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            # If the signal interrupted a write to the same stream, this write may raise an error, because streams are not reentrant.
            with contextlib.suppress(RuntimeError, OSError):
                self._console.print("stopping at the next checkpoint; press Ctrl-C again to stop at once", soft_wrap=True)
