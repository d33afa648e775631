"""Call a function in two processes that communicate as those of torchrun do."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

PRELOADED = ["distributed_training", "distributed_policy"]


def call_in_two(function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[int | None]:
    """Call a function of a module of the tests in two new processes, and return their exit statuses.

    A server imports everything once and is then forked. A fork of this process would fail if an earlier test had started PyTorch's threads
    for backward passes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_call, args=(rank, port, function, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


def _call(rank: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    os.environ.update({name: str(value) for name, value in {**there, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}.items()})
    function(*arguments)
