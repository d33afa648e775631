import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path

import numpy as np
import pytest
from videos import cut_in_half, square_frames, write_video

from adafocus_env.videos import decoding
from adafocus_env.videos.decoding import Failure, WorkerProcess, receive, run_in_workers, send
from adafocus_env.videos.readers import DecodedClip, DecodeRequest, file_reader
from classifiers.errors import InputError

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
    assert (results[0] == 3).all() and (results[1] == 5).all() and results[1].flags.writeable


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


def test_a_result_that_is_not_plain_is_a_failure_that_says_so():
    assert "Object of type function is not JSON serializable" in run("not_plain", [0])[0].reason


class Trap:
    def __reduce__(self):
        return pytest.fail, ("an answer was unpickled",)


def test_an_answer_of_other_bytes_is_a_failure_and_is_never_unpickled():
    results = run("forge", [1, pickle.dumps(Trap()), 3])
    assert results[0] == 1 and results[2] == 3
    assert results[1].reason.startswith("its process sent something that is not an answer (")


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"{}", b"[" * 100_000, b'["Popen", {"args": "true"}, {}]', b'["Failure", {"other": 1}, {}]',
        b'["x", {}, {"": ["object", [1]]}]', b'["x", {}, {"": ["uint8", [-1, -9]]}]', b'["x", {}, {"": ["uint8", [9.0]]}]',
        b'["x", {}, {"": ["uint8", 5]}]', b'["x", {}, {"": ["int64", [2, 3]]}]',
    ],
)  # fmt: skip
def test_bytes_that_are_not_an_answer_raise_an_error(answer):
    ours, theirs = Pipe()
    theirs.send_bytes(answer)
    theirs.send_bytes(bytes(9))
    with pytest.raises((ValueError, TypeError, KeyError, RecursionError)):
        receive(ours, (Failure,))


def test_an_answer_longer_than_stated_ends_the_worker():
    results = run("forge", [1, "too long", 3])
    assert results[0] == 1 and results[2] == 3 and "died" in results[1].reason


def test_a_worker_that_stops_in_the_middle_of_its_answer_is_killed(monkeypatch):
    monkeypatch.setattr(decoding, "PAUSE_LIMIT", 1)
    reason = "its process paused for 1 s in the middle of its answer and was stopped"
    assert run("forge", [1, "pause", 3]) == {0: 1, 1: Failure(reason), 2: 3}


@dataclass(frozen=True)
class Several:
    frames: np.ndarray
    times: np.ndarray
    size: tuple[int, int]
    rate: float | None = None


@pytest.mark.parametrize("rate", [None, 0.1 + 0.2, float("inf")])
def test_answers_arrive_as_they_were_sent(rate):
    sent = Several(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2], np.zeros((0, 2)), (3, 4), rate)
    ours, theirs = Pipe()
    send(theirs, sent)
    received = receive(ours, (Several,))
    assert (received.size, received.rate, received.times.shape) == ((3, 4), rate, (0, 2))
    assert (received.frames == sent.frames).all() and received.frames.dtype == np.uint8


def test_the_memory_of_a_worker_is_limited(monkeypatch):
    monkeypatch.setenv("ADAFOCUS_DECODE_GIB", "0.25")
    reason = "it needs more memory than the limit of 0.25 GiB, which the variable ADAFOCUS_DECODE_GIB sets"
    assert run("too_much_memory", [10, 400, 20]) == {0: 10 << 20, 1: Failure(reason), 2: 20 << 20}
    assert run("limits", [0]) == {0: ([2**28, 2**28], [0, 0])}
    monkeypatch.delenv("ADAFOCUS_DECODE_GIB")
    assert run("limits", [0])[0][0] == [2**32, 2**32]


@pytest.mark.parametrize("value", ["0", "-1", "many", "inf", "nan"])
def test_a_limit_that_is_not_a_positive_number_is_refused(value, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_DECODE_GIB", value)
    with pytest.raises(InputError, match=f"ADAFOCUS_DECODE_GIB must be a number above 0, got '{value}'; it is the memory in GiB"):
        list(run_in_workers("worker_tasks:double", [1], num_workers=1, time_limit=5))


def test_a_video_of_huge_frames_exhausts_only_its_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_DECODE_GIB", "0.25")
    jpeg = write_video(tmp_path / "huge.avi", np.zeros((1, 6000, 9000, 3), np.uint8), codec="mjpeg", pix_fmt="yuvj420p", q="31")
    h264 = write_video(tmp_path / "huge.mp4", np.zeros((1, 4000, 8000, 3), np.uint8), preset="ultrafast", threads="1")
    good = write_video(tmp_path / "good.avi", square_frames(12))
    huge = [jpeg, *([h264] if file_reader() == "decord" else [])]  # decord does not raise an error; it ends its process
    tasks = [DecodeRequest(path, 4, short_side=24) for path in (good, *huge, good)]
    function = "adafocus_env.videos.readers:decode_clip"
    (_, first), *failures, (_, last) = run_in_workers(function, tasks, num_workers=1, time_limit=60, result=DecodedClip)
    assert isinstance(first, DecodedClip) and isinstance(last, DecodedClip)
    reason = "it needs more memory than the limit of 0.25 GiB, which the variable ADAFOCUS_DECODE_GIB sets"
    assert [failure for _, failure in failures] == [Failure(reason)] * len(huge)


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
    results = dict(run_in_workers("adafocus_env.videos.readers:decode_clip", tasks, num_workers=2, time_limit=20, result=DecodedClip))
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
