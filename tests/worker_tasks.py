"""Functions that the tests run in worker processes."""

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np


def double(x):
    return 2 * x


def megabytes(n):
    return np.full(n << 20, n, np.uint8)


def fussy(task):
    if task == "input":
        raise ValueError("the file is bad")
    if task == "bug":
        1 / 0
    return task


def hang(task):
    if task == "spin":
        while True:
            pass
    if task == "sleep holding the lock":
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps Python's global lock, as decord does when it hangs
    return task


def die(task):
    if task == "exit":
        os._exit(7)
    if task == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def not_plain(task):
    return lambda: task


def pid_or_hang(task):
    return hang("spin") if task == "hang" else os.getpid()


def has_loaded_torch(task):
    import adafocus_env.videos.readers  # noqa: F401

    return "torch" in sys.modules


def decode_or_hang(request):
    from adafocus_env.videos.readers import decode_clip

    return hang("spin") if request.path.name == "hang.mp4" else decode_clip(request)


def too_much_memory(task):
    return len(np.ones(task << 20, np.uint8))


def limits(task):
    import resource

    return [resource.getrlimit(what) for what in (resource.RLIMIT_DATA, resource.RLIMIT_CORE)]


def connection_to_the_parent():
    """The connection that `serve` uses."""
    import gc

    return next(each for each in gc.get_objects() if isinstance(each, Connection))


def forge(task):
    """Do what a worker may do that a file has taken over: write other bytes in place of an answer."""
    if task == "pause":
        os.write(connection_to_the_parent().fileno(), b"\0\0\1")  # the start of a message
        os.kill(os.getpid(), signal.SIGSTOP)
    if task == "too long":
        os.write(connection_to_the_parent().fileno(), (2**30).to_bytes(4, "big") + bytes(100))
        os._exit(0)
    if isinstance(task, bytes):
        connection_to_the_parent().send_bytes(task)
        return None
    return task
