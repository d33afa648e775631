import io
import signal
import threading

import pytest
from rich.console import Console
from tiny_process import running

from agents.runs.interrupts import SIGNALS, StopRequest


@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_signal_asks_and_a_ctrl_c_after_it_stops(first):
    text = io.StringIO()
    with StopRequest(Console(file=text, width=40)) as stop:
        assert not stop.requested
        signal.raise_signal(first)
        assert stop.requested
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert text.getvalue() == "stopping at the next checkpoint; press Ctrl-C again to stop at once\n"


def test_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="inside"), StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_it_does_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_process_reaches_its_checkpoint():
    with running("act=work") as worker:
        assert "working" in [worker.stdout.readline().strip() for _ in range(2)]
        worker.send_signal(signal.SIGTERM)
        output, errors = worker.communicate(timeout=30)
    assert (worker.returncode, output) == (0, "saved\n")
    assert errors == "stopping at the next checkpoint; press Ctrl-C again to stop at once\n"
