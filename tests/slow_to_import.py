"""A module whose import takes longer than the time limit of the task."""

import time

time.sleep(1.0)


def double(x):
    return 2 * x
