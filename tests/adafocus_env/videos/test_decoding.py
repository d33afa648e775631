import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from videos import cut_in_half, square_frames, write_video

from adafocus_env.videos.decoding import Failure, WorkerProcess, run_in_workers
from adafocus_env.videos.readers import DecodedClip, DecodeRequest

HERE = Path(__file__).parents[2]


def run(function, tasks, num_workers=1, time_limit=20.0):
    return dict(run_in_workers(f"worker_tasks:{function}", tasks, num_workers=num_workers, time_limit=time_limit))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@pytest.fixture(autouse=True)
def tests_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def test_every_task_gets_its_result():
    assert run("double", range(20), num_workers=2) == {i: 2 * i for i in range(20)}
    assert run("double", []) == {}


def test_workers_do_not_load_torch():
    assert run("has_loaded_torch", [0]) == {0: False}


def test_large_results_come_whole():
    results = run("megabytes", [3, 5])
    assert [len(results[0]), len(results[1])] == [3 << 20, 5 << 20]


def test_an_exception_is_a_failure_with_its_message():
    results = run("fussy", ["good", "input", "bug", "good"])
    assert results == {0: "good", 1: Failure("the file is bad"), 2: Failure("ZeroDivisionError: division by zero"), 3: "good"}


@pytest.mark.parametrize("how", ["spin", "sleep holding the lock"])
def test_a_call_that_never_returns_is_killed_and_the_rest_goes_on(how):
    results = run("hang", [1, how, 3], time_limit=1.0)
    assert results[0] == 1 and results[2] == 3
    assert results[1] == Failure("it was not finished after 1 s and was stopped")


@pytest.mark.parametrize(("how", "reason"), [("exit", "exit code 7"), ("segfault", "signal SIGSEGV"), ("kill", "signal SIGKILL")])
def test_a_worker_that_dies_fails_its_task_alone(how, reason):
    results = run("die", [1, how, 3])
    assert results == {0: 1, 1: Failure(f"the process that worked on it died ({reason})"), 2: 3}


def test_a_result_that_cannot_be_pickled_is_a_failure_that_says_so():
    assert "pickle" in run("unpicklable", [0])[0].reason


def test_the_start_of_a_worker_does_not_count_in_the_limit():
    assert list(run_in_workers("slow_to_import:double", [4], num_workers=1, time_limit=0.5)) == [(0, 8)]


def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)a worker process could not start: exit code 1.*No module named 'no_such_module'"):
        list(run_in_workers("no_such_module:f", [1], num_workers=2, time_limit=5))


def test_closing_early_and_errors_of_the_caller_kill_the_workers():
    results = run_in_workers("worker_tasks:pid_or_hang", ["pid", "pid", "hang"], num_workers=1, time_limit=60)
    pid = next(results)[1]
    assert is_alive(pid)
    results.close()
    assert not is_alive(pid)

    def consume():
        for _, pid in run_in_workers("worker_tasks:pid_or_hang", ["pid", "hang"], num_workers=1, time_limit=60):
            pids.append(pid)
            raise KeyboardInterrupt

    pids = []
    with pytest.raises(KeyboardInterrupt):
        consume()
    assert wait_until(lambda: not is_alive(pids[0]))


PARENT = """
import signal, sys
from adafocus_env.videos.decoding import run_in_workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
for _, pid in run_in_workers("worker_tasks:pid_or_hang", ["pid", {second!r}], num_workers=1, time_limit=600):
    print(pid, flush=True)
    {then}
"""


def start_parent(second, then="pass"):
    """Start a script without a main guard in another folder, as users do."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    code = PARENT.format(second=second, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no death signal")
def test_workers_die_with_their_parent_even_when_they_hang():
    with start_parent("hang") as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    assert wait_until(lambda: not is_alive(pid))


def test_ctrl_c_reaches_the_parent_alone_and_leaves_no_worker():
    with start_parent("pid", then="signal.pause()") as parent:
        pid = int(parent.stdout.readline())
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(20) == -signal.SIGINT
    assert wait_until(lambda: not is_alive(pid))


def test_videos_are_decoded_and_broken_ones_reported(tmp_path):
    good = [write_video(tmp_path / f"{i}.mp4", square_frames(12)) for i in range(3)]
    cut = cut_in_half(write_video(tmp_path / "cut.mp4", square_frames(12)))
    tasks = [DecodeRequest(path, 4) for path in [*good, cut]]
    results = dict(run_in_workers("adafocus_env.videos.readers:decode_clip", tasks, num_workers=2, time_limit=20))
    assert all(isinstance(results[i], DecodedClip) and results[i].frames.shape == (4, 48, 64, 3) for i in range(3))
    assert isinstance(results[3], Failure)
    assert results[3].reason.startswith(f"cannot read the video {cut}: ")


def test_a_lasting_worker_serves_all_tasks_until_it_dies():
    worker = WorkerProcess("worker_tasks:pid_or_hang")
    first, second = worker.call(0, 20.0), worker.call(0, 20.0)
    assert first == second != os.getpid() and is_alive(first)
    assert worker.call("hang", 0.5) == Failure("it was not finished after 0.5 s and was stopped") and not is_alive(first)
    third = worker.call(0, 20.0)
    os.kill(third, signal.SIGKILL)  # between two tasks
    assert wait_until(lambda: not is_alive(third))
    fourth = worker.call(0, 20.0)
    assert len({first, third, fourth}) == 3 and is_alive(fourth)
    worker.stop()
    assert not is_alive(fourth)
