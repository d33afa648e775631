"""What a process uses: memory, open files and child processes, as Linux reports them."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process uses at one time.

    Attributes:
        done: Units of work that are finished.
        memory: Memory in MB that the process has allocated (``RssAnon``). Pages of library files do not count, because the kernel loads and
            drops them at any time, above all at exit.
        handles: Number of open files, pipes and sockets.
        children: Ids of the child processes.
    """

    done: int
    memory: float
    handles: int
    children: tuple[int, ...]


def usage_of(process: int, done: int) -> Usage | None:
    """Return what a process uses; None if it has ended."""
    folder = Path("/proc", str(process))
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", (folder / "status").read_text())
        return None if found is None else Usage(done, int(found[1]) / 1e3, len([*(folder / "fd").iterdir()]), children_of(process))
    except OSError:
        return None


def children_of(parent: int) -> tuple[int, ...]:
    """Return the ids of the direct child processes that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, owner = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # the process has just ended
            continue
        if int(owner) == parent and state != "Z":
            found.append(int(status.parent.name))
    return tuple(sorted(found))


def still_running(processes: Sequence[int], patience: float = 5.0) -> list[int]:
    """Return which processes still run, after waiting for their end."""
    deadline = time.monotonic() + patience
    while (left := [each for each in processes if Path("/proc", str(each)).exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def memory_growth(usages: Sequence[Usage], start: float) -> float:
    """Return the growth in MB from the time when a share ``start`` of the work was done to the peak afterwards."""
    settled = [usage.memory for usage in usages if usage.done >= start * usages[-1].done] or [usages[-1].memory]
    return max(settled) - settled[0]


def handle_growth(usages: Sequence[Usage]) -> int:
    """Return by how many handles the minimum of the last tenth of the work exceeds that of the second tenth.

    The minimum counts no file that is open only from time to time. Usages after the end of the work are left out: the process then closes
    its files.
    """
    done = usages[-1].done
    second, last = ([usage.handles for usage in usages if low * done <= usage.done < high * done] for low, high in ((0.1, 0.2), (0.9, 1.0)))
    return min(last) - min(second) if last and second else 0
