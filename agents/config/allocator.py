"""Configure the memory allocator of the C library to cache freed memory for later forward passes."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = (1 << 30, 1 << 25)  # bytes; older versions of glibc accept at most the second value for blocks


def keep_freed_memory() -> bool:
    """Make glibc cache freed blocks of up to 1 GiB for later calls of a network.

    By default, glibc returns blocks of a few MiB to the system and requests them again, page by page, in every call. Returning and
    requesting blocks takes a third of the time of a forward pass on a CPU. With this setting, the process keeps the memory of its peak and
    does not return it to the system.

    Returns:
        Whether the setting was applied. C libraries other than glibc do not have this setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    accepted = any(library.mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
    return bool(accepted and library.mallopt(_TRIM_THRESHOLD, _LARGEST[0]))
