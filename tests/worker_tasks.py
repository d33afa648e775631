"""Functions that the tests run in worker processes."""

import ctypes
import os
import signal
import sys


def double(x):
    return 2 * x


def megabytes(n):
    return bytes(n << 20)


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


def unpicklable(task):
    return lambda: task


def pid_or_hang(task):
    return hang("spin") if task == "hang" else os.getpid()


def has_loaded_torch(task):
    import adafocus_env.videos.readers  # noqa: F401

    return "torch" in sys.modules


def decode_or_hang(request):
    from adafocus_env.videos.readers import decode_clip

    return hang("spin") if request.path.name == "hang.mp4" else decode_clip(request)
