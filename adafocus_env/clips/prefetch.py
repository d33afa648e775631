"""Decodes clips in worker processes ahead of their use, and keeps the last ones in memory."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.readers import DecodedClip, DecodeRequest


class CachedClip(Protocol):
    """Whatever is kept of a decoded clip."""

    @property
    def nbytes(self) -> int:
        """What it takes of the memory."""


Value = TypeVar("Value", bound=CachedClip)


class Prefetcher(Generic[Value]):
    """Clips by number: decoded in the background in a given order, or when they are asked for.

    A thread takes the clips from the workers. It stops taking them while half of the memory holds clips that nobody has asked for yet,
    so that the workers wait; the other half keeps the clips that were asked for last.

    Args:
        request: what a worker is asked for, by number of the clip.
        finish: makes what is kept of a clip; an exception that is a `ValueError` counts as a failure. Called in the thread.
        num_workers: processes that decode at the same time, at most.
        time_limit: seconds that reading one video may take.
        memory: bytes that are kept.
    """

    def __init__(
        self,
        request: Callable[[int], DecodeRequest],
        finish: Callable[[int, DecodedClip], Value],
        *,
        num_workers: int,
        time_limit: float,
        memory: int,
    ) -> None:
        self._request, self._finish = request, finish
        self._num_workers, self._time_limit, self._memory = num_workers, time_limit, memory
        self._changed = threading.Condition()  # guards everything below
        self._kept: OrderedDict[int, Value | Failure] = OrderedDict()  # in the order of decoding, which is that of use
        self._bytes = 0
        self._unused: dict[int, int] = {}  # clips that the thread brought and nobody has asked for, with their bytes
        self._wanted: set[int] = set()
        self._coming: set[int] = set()  # clips that the thread will bring
        self._plan = 0
        self._problem: Exception | None = None

    def start(self, order: Sequence[int]) -> None:
        """Begins to decode the clips in this order; what was begun before is given up."""
        with self._changed:
            self._plan += 1
            self._problem = None
            self._unused.clear()
            self._coming = set(order)
            self._changed.notify_all()
        threading.Thread(target=self._run, args=(self._plan, list(order)), daemon=True, name="prefetch clips").start()

    def close(self) -> None:
        """Gives up what was begun; the workers are stopped."""
        with self._changed:
            self._plan += 1
            self._coming = set()
            self._changed.notify_all()

    def get(self, clips: Sequence[int]) -> list[Value | Failure]:
        """The clips, or why there is none; waits for those that are coming, and has the others decoded now.

        Raises:
            RuntimeError: a worker could not start.
        """
        with self._changed:
            self._wanted = set(clips)
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(clip in self._kept or clip not in self._coming for clip in clips))
            if self._problem is not None:
                raise self._problem
            missing = [clip for clip in dict.fromkeys(clips) if clip not in self._kept]
        for clip, result in self._decoded(missing):
            self._keep(clip, result)
        with self._changed:
            self._wanted = set()
            for clip in clips:
                self._unused.pop(clip, None)
            self._changed.notify_all()
            return [self._kept[clip] for clip in clips]

    def _run(self, plan: int, order: list[int]) -> None:
        """The thread: brings the clips of one plan until another one is made."""
        try:
            with contextlib.closing(self._decoded(order)) as decoded:
                for clip, result in decoded:
                    with self._changed:
                        self._changed.wait_for(lambda: self._plan != plan or self._has_room())
                        if self._plan != plan:
                            return
                        self._unused[clip] = _size(result)
                        self._keep(clip, result)
        except Exception as problem:  # a worker could not start; the one who waits for its clip is told
            self._problem = problem
        finally:
            with self._changed:
                if self._plan == plan:
                    self._coming = set()
                    self._changed.notify_all()

    def _decoded(self, order: Sequence[int]):  # type: ignore[no-untyped-def]  # a generator of (clip, Value | Failure)
        results = run_in_workers(
            "adafocus_env.videos.readers:decode_clip",
            [self._request(clip) for clip in order],
            num_workers=self._num_workers,
            time_limit=self._time_limit,
        )
        with contextlib.closing(results):
            for task, result in results:
                yield order[task], self._finished(order[task], result)

    def _finished(self, clip: int, result: object) -> Value | Failure:
        if isinstance(result, Failure):
            return result
        assert isinstance(result, DecodedClip)
        try:
            return self._finish(clip, result)
        except ValueError as problem:
            return Failure(str(problem))

    def _has_room(self) -> bool:
        waited_for = any(clip in self._coming and clip not in self._kept for clip in self._wanted)
        return waited_for or 2 * sum(self._unused.values()) < self._memory

    def _keep(self, clip: int, result: Value | Failure) -> None:
        """Keeps a clip in place of the oldest that nobody waits for."""
        with self._changed:
            self._coming.discard(clip)
            self._forget(clip)
            self._kept[clip] = result
            self._bytes += _size(result)
            for old in list(self._kept):
                if self._bytes <= self._memory:
                    break
                if old != clip and old not in self._wanted:
                    self._forget(old)
                    self._unused.pop(old, None)
            self._changed.notify_all()

    def _forget(self, clip: int) -> None:
        if clip in self._kept:
            self._bytes -= _size(self._kept.pop(clip))


def _size(kept: CachedClip | Failure) -> int:
    return 0 if isinstance(kept, Failure) else kept.nbytes
