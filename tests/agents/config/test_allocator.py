"""The commands configure the allocator to cache freed memory before they run networks."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to tell to another C library")
def test_blocks_are_not_given_back_to_the_system():
    kept, given_back = (_faults(word) for word in ("keep", "leave"))
    assert kept < given_back / 4


def _faults(word: str) -> int:
    """Return the number of page faults of a process that allocates and frees 40 MiB ten times."""
    done = subprocess.run([sys.executable, "-c", _TAKE, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


_TAKE = """
import resource, sys
from agents.config.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
take = lambda: bytes(40 << 20).count(1)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
