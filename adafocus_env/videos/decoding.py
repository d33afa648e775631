"""Run a function in worker processes that can be killed, because video decoders hang and crash.

Videos may be hostile, so that the memory of a worker is limited, and its answers are not unpickled: a file that takes over a decoder
controls every byte that its worker sends, and a pickle can run any code in the process that reads it. An answer is therefore sent as a JSON
object, followed by the raw bytes of its arrays (`send` and `receive`).

Because of open bugs in decord, a call may hang forever while it holds Python's global interpreter lock. Neither a thread nor a signal
handler can end such a call; only killing the process does. Workers are plain child processes. Workers are not started by `multiprocessing`,
because its *spawn* runs the user's main script again, and its *fork* copies locks that other threads hold.
"""

import contextlib
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, cast

import numpy as np

from classifiers.errors import InputError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SIGNALS = {each.value: each.name for each in signal.Signals}
START_LIMIT = 120.0  # seconds that a worker may take to start; without this limit, the caller might wait forever
PAUSE_LIMIT = 60  # seconds that a worker may pause in the middle of an answer
MEMORY = "ADAFOCUS_DECODE_GIB"  # environment variable with the limit of a worker's memory
MEMORY_GIB = 4.0  # its default
OUT_OF_MEMORY = 12  # exit code of a worker
HEADER_LIMIT = 2**20  # bytes of the JSON object
ARRAY_LIMIT = 2**31  # bytes of one array
DTYPES = {"uint8": np.uint8, "int64": np.int64, "float64": np.float64}

# Importing these packages loads Gymnasium or torch. The import takes seconds and hundreds of megabytes, and no worker needs it.
# A worker therefore replaces the packages by empty packages, and imports only the modules that it needs.
_START = """
import importlib.util, sys, types
for name in ("classifiers", "adafocus_env"):
    package = types.ModuleType(name)
    package.__path__ = importlib.util.find_spec(name).submodule_search_locations
    sys.modules[name] = package
from adafocus_env.videos.decoding import serve
serve({descriptor}, {function!r}, {memory})
"""


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result."""

    reason: str


def memory_limit() -> int:
    """Return the limit of a worker's memory in bytes, which is ``$ADAFOCUS_DECODE_GIB`` or `MEMORY_GIB`.

    Raises:
        InputError: if the value of the environment variable is not a positive number.
    """
    text = os.environ.get(MEMORY) or str(MEMORY_GIB)
    with contextlib.suppress(ValueError):
        if 0 < (gib := float(text)) < math.inf:
            return int(gib * 2**30)
    raise InputError(f"{MEMORY} must be a number above 0, got {text!r}; it is the memory in GiB that one decoding process may use")


def run_in_workers(
    function: str, tasks: Sequence[object], *, num_workers: int, time_limit: float, result: type | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Call a function for every task in worker processes, and yield the results in the order of completion.

    If a call raises an error, takes longer than ``time_limit``, needs more memory than `memory_limit` or crashes its worker, the result is
    a `Failure`. A new worker replaces a worker that crashed or was stopped, and continues with the other tasks. If the iterator is closed
    early or the caller raises an exception, the workers are killed.

    Args:
        function: ``module:name`` of a function with one argument. The module should be fast to import, because every worker imports it.
        tasks: the arguments, which are pickled.
        num_workers: maximum number of worker processes.
        time_limit: seconds that one call may take. The start of the worker is not counted.
        result: the dataclass that the function returns; None: it returns a plain value or an array. See `send`.

    Yields:
        Pairs (index of the task, result or `Failure`).

    Raises:
        InputError: if the limit of the memory is invalid; see `memory_limit`.
        RuntimeError: if a worker cannot start. The message contains the output of the worker.
    """
    new_worker = partial(_new_worker, function, result)
    waiting = deque(enumerate(tasks))
    workers: list[_Worker] = []
    try:
        workers.extend(new_worker() for _ in range(min(max(num_workers, 1), len(waiting))))
        while workers:
            for worker in _ready(workers):
                finished = worker.finished(time_limit)
                if not worker.alive:
                    workers.remove(worker)
                    if waiting:
                        workers.append(new_worker())
                elif waiting:
                    worker.assign(*waiting.popleft(), time_limit)
                else:
                    worker.stop()
                    workers.remove(worker)
                if finished is not None:  # yielded last, so that the worker processes the next task while the caller uses this result
                    yield finished
    finally:
        for worker in workers:
            worker.stop()


class WorkerProcess:
    """A worker process that is started by the first task and used for all later tasks, one at a time.

    `run_in_workers` starts new workers for every call, which takes about half a second.

    Args:
        function: See `run_in_workers`.
        result: See `run_in_workers`.
    """

    def __init__(self, function: str, result: type | None = None) -> None:
        self._function, self._result = function, result
        self._worker: _Worker | None = None

    def call(self, task: object, time_limit: float) -> Any:
        """Return the result of a task, or a `Failure`. A worker that crashed or was stopped is replaced at the next task.

        Raises:
            InputError: If the limit of the memory is invalid; see `memory_limit`.
            RuntimeError: If the worker cannot start.
        """
        if self._worker is None or not self._worker.running:
            self.stop()
            self._worker = _new_worker(self._function, self._result)
            _ready([self._worker])
            self._worker.finished(time_limit)
        self._worker.assign(0, task, time_limit)
        _ready([self._worker])
        _, result = cast(tuple[int, Any], self._worker.finished(time_limit))
        return result

    def stop(self) -> None:
        """Kill the worker, if there is one."""
        if self._worker is not None and self._worker.alive:
            self._worker.stop()


class _Worker:
    """A child process and its current task."""

    def __init__(self, function: str, memory: int, kinds: Sequence[type]) -> None:
        self.connection, theirs = Pipe()
        with socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:  # a stopped worker must not block the caller
            for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                pipe.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", PAUSE_LIMIT, 0))
        self._kinds, self._memory = kinds, memory
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this Python, with the code above
                [sys.executable, "-c", _START.format(descriptor=theirs.fileno(), function=function, memory=memory)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                # The worker uses the import path of the parent (an installation or a checkout), and one thread per library.
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(p or os.curdir for p in sys.path), "PYTHONSAFEPATH": "1"},
            )
        self.alive = True
        self._task: int | None = None
        self.deadline = time.monotonic() + START_LIMIT

    def assign(self, number: int, task: object, time_limit: float) -> None:
        self._task, self.deadline = number, time.monotonic() + time_limit
        with contextlib.suppress(OSError):  # if the worker has died, this is reported when its answer is read
            self.connection.send(task)

    @property
    def running(self) -> bool:
        """Whether the process runs. It may have died since its last task."""
        return self.alive and self._process.poll() is None

    def finished(self, time_limit: float) -> tuple[int, object | Failure] | None:
        """Return the result of the task, or None if the worker has just started.

        After this call, the worker has no task or is dead.
        """
        number, self._task = self._task, None
        try:
            if not self.connection.poll(0):
                reason = f"it was not finished after {time_limit:g} s and was stopped"
                return self._failed(number, reason, f"did not start within {START_LIMIT:g} s")
            answer = receive(self.connection, self._kinds)
        except BlockingIOError:
            return self._failed(number, f"its process paused for {PAUSE_LIMIT} s in the middle of its answer and was stopped", "paused")
        except (EOFError, OSError):
            return self._died(number)
        except Exception as problem:  # after any mistake in an answer, the next bytes cannot be understood
            return self._failed(number, f"its process sent something that is not an answer ({problem!r})", "sent something unexpected")
        return None if number is None else (number, answer)

    def stop(self) -> None:
        self.alive = False
        self.connection.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process stuck in the kernel (on a dead network disk) may never end
            self._process.wait(timeout=5)
        self._output.close()

    def _died(self, number: int | None) -> tuple[int, Failure]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code, written = self._process.returncode, self._written()
        last_words = f": {written.splitlines()[-1]}" if code and code > 0 and written else ""
        reason = f"the process that worked on it died ({_ending(code)}{last_words})"
        if code == OUT_OF_MEMORY or "bad_alloc" in written:  # the latter is written by decord, which ends the process
            reason = f"it needs more memory than the limit of {self._memory / 2**30:g} GiB, which the variable {MEMORY} sets"
        return self._failed(number, reason, f"could not start: {_ending(code)}")

    def _failed(self, number: int | None, reason: str, start_problem: str) -> tuple[int, Failure]:
        """Stop the worker and return the failure of its task. Raise `RuntimeError` if the worker had not finished its start."""
        written = self._written()
        self.stop()
        if number is None:
            raise RuntimeError(f"a worker process {start_problem}\n{written}")
        return number, Failure(reason)

    def _written(self) -> str:
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4000))
        return self._output.read().decode(errors="replace").strip()


def _new_worker(function: str, result: type | None) -> _Worker:
    """Start a worker. The arguments are those of `run_in_workers`."""
    return _Worker(function, memory_limit(), (Failure, *([result] if result else [])))


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Wait until at least one worker has an answer or has exceeded its time limit, and return all workers for which this is the case."""
    time_left = min(worker.deadline for worker in workers) - time.monotonic()
    answered = wait([worker.connection for worker in workers], max(0.0, time_left))
    return [worker for worker in workers if worker.connection in answered or worker.deadline <= time.monotonic()]


def _ending(code: int | None) -> str:
    if code is None:
        return "without an exit code"
    return f"exit code {code}" if code >= 0 else f"signal {_SIGNALS.get(-code, -code)}"


def serve(descriptor: int, function: str, memory: int) -> None:
    """Run the worker: receive tasks on the connection ``descriptor`` and send the results, until the other end is closed.

    Args:
        descriptor: file descriptor of an inherited duplex connection.
        function: ``module:name``, called with every task.
        memory: maximum number of bytes of writable memory.
    """
    for what, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):  # a crash must not fill the disk, either
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit, limit) if hard == resource.RLIM_INFINITY else (min(limit, hard),) * 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole process group; only the parent should react
    if sys.platform == "linux":  # a hanging process would not detect that the connection is closed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, OSError):
        send(connection, None)
        while True:
            task = connection.recv()
            try:
                result = call(task)
            except MemoryError:  # libraries may not free what they had allocated, so another process takes over
                sys.exit(OUT_OF_MEMORY)
            except Exception as problem:  # the message of an InputError, which is a ValueError, is complete
                described = "".join(traceback.format_exception_only(problem)).strip()
                result = Failure(str(problem) if isinstance(problem, ValueError) else described)
            send(connection, result)


def send(connection: Connection, result: object) -> None:
    """Send a result, which is a plain value, an array, or a dataclass whose attributes are plain values and arrays.

    Raises:
        TypeError: if the result is something else.
    """
    values = vars(result) if is_dataclass(result) else {"": result}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    connection.send_bytes(json.dumps([type(result).__name__, plain, {k: [v.dtype.name, v.shape] for k, v in arrays.items()}]).encode())
    for array in arrays.values():
        connection.send_bytes(array.reshape(-1).data)


def receive(connection: Connection, kinds: Sequence[type]) -> Any:
    """Return the result that `send` sent. Lists of plain values become tuples.

    Args:
        connection: the connection to the worker. Nothing that it sends is trusted.
        kinds: the dataclasses that may be sent.

    Raises:
        EOFError, OSError: if the worker has died, or sent too much.
        Exception: if the bytes are not a result; the class depends on the mistake.
    """
    kind, values, arrays = json.loads(connection.recv_bytes(HEADER_LIMIT))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, (dtype, shape) in arrays.items():
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        data = bytearray(connection.recv_bytes(min(size, ARRAY_LIMIT)))
        values[name] = np.ndarray(shape, DTYPES[dtype], data)  # raises an error if there are too few bytes
    return values[""] if "" in values else {each.__name__: each for each in kinds}[kind](**values)
