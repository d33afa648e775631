import os
import threading

import pytest
import torch

from adafocus_env.features.live import idle_workers, map_parallel

CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
    assert list(map_parallel(lambda number: number**2, range(20), workers)) == [number**2 for number in range(20)]
    assert list(map_parallel(abs, [], workers)) == []


def test_the_first_call_runs_alone_and_a_problem_comes_out():
    def call(number):
        running.append(threading.get_ident())
        if number == 5:
            raise ValueError("the fifth")
        return number

    running = []
    found = map_parallel(call, range(10), 2)
    assert next(found) == 0 and running == [threading.get_ident()]
    with pytest.raises(ValueError, match="the fifth"):
        list(found)


def test_workers_use_as_many_threads_as_the_caller():
    assert set(map_parallel(lambda _: torch.get_num_threads(), range(8), 2)) == {torch.get_num_threads()}


def test_cores_are_shared_with_pytorchs_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (idle_workers(CPU), idle_workers(torch.device("cuda"))) == (2, 1)
    for asked, workers in (("1", 1), ("6", 2), ("two", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert idle_workers(CPU) == workers
