import io
import threading

import pytest
from rich.console import Console

from agents.runs import progress
from agents.runs.progress import PATIENCE, Display, figures


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def display_on(terminal: bool, clock: Clock) -> tuple[Display, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={})
    return Display(console, clock), text


def picture(display: Display) -> list[str]:
    """Return the current content of a terminal of 80 columns."""
    with display.console.capture() as capture:
        display.console.print(display.progress.get_renderable())
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_a_terminal_shows_the_stage_its_figures_and_the_time_left(clock):
    display, _ = display_on(True, clock)
    bar = display.bar("stage 0: [glancer]", 10, unit="epoch", clips=1800)
    for epoch in (1, 2):
        clock.now = 4.0 * epoch
        bar.at(epoch, figures({"stage": 0, "epoch": 2, "loss": 0.5123, "accuracy": 0.8, "learning_rate": 1e-3, "val_top1": None}))
    head, measured = picture(display)
    assert head.startswith("stage 0: [glancer] ━") and head.endswith(" 20% 450 clips/s 0:00:32")
    assert measured == "  epoch 2/10 loss 0.512 accuracy 80.0% lr 1.0e-03"
    assert all(len(line) <= 80 for line in (head, measured))
    bar.at(10)
    assert picture(display) == []


def test_the_time_left_is_that_of_the_mean_speed(clock):
    bar = display_on(True, clock)[0].bar("stage", 5, unit="epoch")
    for epoch, now in ((1, 1000), (2, 1030), (3, 1040)):
        clock.now = now
        bar.at(epoch)
    assert bar.line() == "stage 60% epoch 3/5, 0:00:40 left"


def test_what_an_earlier_start_has_done_does_not_count_as_fast(clock):
    bar = display_on(True, clock)[0].bar("stage 2: policy", 100, done=90, unit="step", clips=0.5)
    for second in (2, 4):
        clock.now = second
        bar.at(90 + second)
    assert bar.line() == "stage 2: policy 94% step 94/100, 0.5 clips/s, 0:00:06 left"


def test_a_file_gets_a_line_for_every_tenth_or_when_long_nothing_was_said(clock):
    display, text = display_on(False, clock)
    with display:
        bar = display.bar("stage 2: policy", 1000, unit="step", clips=0.25)
        for step in range(1, 101):
            clock.now = step / 4
            bar.at(step, "return 0.5")
        clock.now += PATIENCE
        bar.at(101)
        for step in range(102, 1001):
            bar.at(step)
    lines = text.getvalue().splitlines()
    assert lines[0] == "stage 2: policy 10% step 100/1,000 return 0.5, 1.0 clips/s, 0:03:45 left"
    assert lines[1].startswith("stage 2: policy 10% step 101/1,000")
    assert lines[-1] == "stage 2: policy: step 1,000/1,000 in 0:00:55 return 0.5"
    assert len(lines) == 2 + 8 + 1


def test_a_file_says_what_goes_on_while_nothing_moves(clock):
    display, text = display_on(False, clock)
    bar, other = display.bar("render train", 500), display.bar("evaluate", 13)
    clock.now = PATIENCE - 1
    display.remind()
    assert not text.getvalue()
    for seconds in (1, 15, 16):
        clock.now += seconds
        display.remind()
    bar.at(5)
    clock.now += PATIENCE
    display.remind()
    for each, total in ((bar, 500), (other, 13)):
        each.at(total)
    clock.now += PATIENCE
    display.remind()
    ended = ["render train: 500 in 0:01:31", "evaluate: 13 in 0:01:31"]
    assert text.getvalue().splitlines() == ["evaluate 0%", "evaluate 0%", "render train 1%", *ended]


def test_a_thread_reminds_while_the_display_is_open(clock, monkeypatch):
    reminded = threading.Event()
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(Display, "remind", lambda self: reminded.set())
    with display_on(False, clock)[0]:
        assert reminded.wait(30)


def test_what_took_no_time_and_what_has_no_units_leaves_no_lines(clock):
    display, text = display_on(False, clock)
    with display:
        bar = display.bar("decode train", 100)
        for count in range(1, 101):
            bar.at(count)
        display.bar("decode val", 0).at(0)
        display.bar("stage 0", 3, done=3, unit="epoch").at(3)
        slow = display.bar("decode test", 100)
        clock.now = 3
        for count in range(1, 101):
            slow.at(count)
    assert text.getvalue() == "decode test: 100 in 0:00:03\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_was_cut_short_leaves_its_last_line(terminal, clock):
    display, text = display_on(terminal, clock)
    with pytest.raises(KeyboardInterrupt), display:
        bar = display.bar("stage 0: glancer", 10, unit="epoch")
        for epoch in (1, 2, 3):
            clock.now = epoch
            bar.at(epoch, "loss [1.0]")
        raise KeyboardInterrupt
    assert text.getvalue().rstrip().endswith("stage 0: glancer 30% epoch 3/10 loss [1.0], 0:00:07 left")


def test_lines_stand_above_the_bars_of_a_terminal_and_stay(clock):
    display, text = display_on(True, clock)
    with display:
        bar = display.bar("stage 0: glancer", 1, unit="epoch")
        display.say("a line")
        bar.advance()
    lines = text.getvalue()
    assert "a line" in lines and "stage 0: glancer: epoch 1/1 in 0:00:00" in lines
