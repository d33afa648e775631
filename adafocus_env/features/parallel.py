"""Network calls at the same time, on the cores that PyTorch's own threads leave idle."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def idle_workers(device: torch.device) -> int:
    """Return how many calls can run at the same time: the cores, or OMP_NUM_THREADS, over PyTorch's threads per call; 1 on a GPU."""
    if device.type != "cpu":
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(asked) if asked.isdecimal() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // torch.get_num_threads())


def map_parallel(call: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``call(item)`` of every item in order, computed by ``workers`` threads.

    The first call runs alone: it makes what the network caches for the others.
    """
    remaining = iter(items)
    yield from map(call, islice(remaining, 1))
    if workers == 1:
        yield from map(call, remaining)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        yield from pool.map(call, remaining)
