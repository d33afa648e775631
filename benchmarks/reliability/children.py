"""Run the commands of `agents` in child processes that can be killed, stopped and refused the disk.

All children are forked from a server that has imported the packages, so that a start costs milliseconds instead of seconds. A child runs
what ``python -m agents COMMAND`` runs.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

IMPORTED = (
    "agents.__main__", "agents.pipeline.driver", "agents.pipeline.end_to_end", "agents.pipeline.policy_training", "agents.prediction.run",
    "agents.rl.trainer", "adafocus_env.fill_bank", "benchmarks.reliability.tiny", "torch._inductor", "torch.utils.tensorboard",
)  # fmt: skip
"""The modules that the server imports. None of them starts a thread or computes anything. PyTorch imports its compiler, which takes as long
as everything else, when a command asks for deterministic algorithms."""

T = TypeVar("T")
TIME_LIMIT = 300.0  # seconds after which a child counts as hanging
HUNG = "hung"  # in place of an exit status
MARK = "\0"  # is printed by a trap that only counts


@dataclass(frozen=True)
class Trap:
    """What happens to a child at one of its system calls.

    Attributes:
        path: Regular expression of the files that count.
        number: The trap closes at this call, counted from 1.
        event: "open": when a file is opened for writing; "os.rename": when a temporary file is about to replace the file ``path``.
        act: "kill": the child is killed by SIGKILL; "full": every further write to a file is refused, as on a full disk; "mark": `MARK` is
            printed at every call.
        share: Before a kill at "os.rename", the temporary file is cut to this share of its length, as if the kill had come earlier.
    """

    path: str
    number: int = 1
    event: Literal["open", "os.rename"] = "open"
    act: Literal["kill", "full", "mark"] = "kill"
    share: float = 1.0


@dataclass(frozen=True)
class Command:
    """A command with its arguments, and the cache folder that it uses."""

    name: str
    arguments: tuple[str, ...]
    cache: Path


@dataclass
class Child:
    """A running or finished child process."""

    process: Any  # the class of the context, which mypy does not know
    _pieces: list[bytes] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What the child has printed so far."""
        return b"".join(self._pieces).decode(errors="replace")

    def wait(self, limit: float = TIME_LIMIT) -> int | str:
        """Wait for the end, and return the exit status (minus the signal if one ended the child). A child that hangs is killed: "hung"."""
        self.process.join(limit)
        hangs = self.process.exitcode is None
        status = self.kill()
        return HUNG if hangs else status

    def kill(self) -> int:
        """Kill the child by SIGKILL, wait for its end, and return its exit status."""
        self.process.kill()
        self.process.join()
        return int(self.process.exitcode)


@contextmanager
def started(command: Command, trap: Trap | None = None, prepare: Callable[[], object] | None = None) -> Iterator[Child]:
    """Start a command, and kill it at the end of the context if it still runs.

    Args:
        command: The command.
        trap: What happens to the child, if anything.
        prepare: Function of a module that is called in the child before the command.
    """
    context = _server()
    reader, writer = context.Pipe(duplex=False)
    child = Child(context.Process(target=_run, args=(command, trap, prepare, writer)))
    child.process.start()
    writer.close()
    thread = threading.Thread(target=_collect, args=(reader, child._pieces), daemon=True)
    thread.start()
    try:
        yield child
    finally:
        child.kill()
        thread.join(10)


def finished(command: Command, trap: Trap | None = None, prepare: Callable[[], object] | None = None) -> tuple[int | str, str]:
    """Run a command to its end, and return its exit status and what it printed."""
    with started(command, trap, prepare) as child:
        status = child.wait()
    return status, child.output


def called(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a child, and return its result."""
    with ProcessPoolExecutor(1, _server()) as pool:
        return pool.submit(function, *arguments).result(TIME_LIMIT)


def until(condition: Callable[[], bool], child: Child, limit: float = TIME_LIMIT) -> bool:
    """Wait until the condition holds or the child has ended; return whether the child still runs."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and child.process.exitcode is None and not condition():
        time.sleep(0.005)
    return child.process.exitcode is None


def _server() -> Any:  # a context, whose class depends on the platform
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _collect(reader: Connection, pieces: list[bytes]) -> None:
    while piece := os.read(reader.fileno(), 65536):
        pieces.append(piece)


def _run(command: Command, trap: Trap | None, prepare: Callable[[], object] | None, writer: Connection) -> None:
    """Run the command in this process, which has just been forked."""
    from agents.__main__ import main

    for descriptor in (1, 2):  # a pipe, because files may be refused the disk
        os.dup2(writer.fileno(), descriptor)
    writer.close()
    os.environ["ADAFOCUS_CACHE"] = str(command.cache)
    if prepare is not None:
        prepare()
    if trap is not None:
        sys.addaudithook(_hook(trap))
    main([command.name, *command.arguments])


def _hook(trap: Trap) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that closes the trap. (CPython reports every opened and renamed file to audit hooks.)"""
    left, pattern = trap.number, re.compile(trap.path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != trap.event or not pattern.search(str(arguments[event == "os.rename"])):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        left -= 1
        if trap.act == "mark":
            os.write(1, MARK.encode())
        elif left == 0:
            _close(trap, arguments)

    return hook


def _close(trap: Trap, arguments: Sequence[Any]) -> None:
    if trap.act == "full":  # the kernel then refuses to write to files, with EFBIG; Python ignores the signal SIGXFSZ
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return
    if trap.event == "os.rename" and os.path.isfile(arguments[0]):  # noqa: PTH113  # the argument may be of any kind of path
        os.truncate(arguments[0], int(os.stat(arguments[0]).st_size * trap.share))  # noqa: PTH116
    os.kill(os.getpid(), signal.SIGKILL)
