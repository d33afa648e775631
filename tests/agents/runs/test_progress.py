import io

import pytest
from rich.console import Console

from agents.runs.progress import PATIENCE, Display, figures


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown_on(terminal: bool, clock: Clock) -> tuple[Display, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None, legacy_windows=False, _environ={})
    return Display(console, clock), text


def picture(display: Display) -> list[str]:
    """What a terminal of 80 columns shows now."""
    with display.console.capture() as capture:
        display.console.print(display._shown())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_terminal_shows_the_stage_its_figures_and_both_times(clock):
    display, _ = shown_on(True, clock)
    display.plan([("stage 0: glancer", 10, 1800), ("stage 1: random patches", 5, 3600)])
    display.leg("stage 0: glancer")
    bar = display.bar("stage 0: glancer", 10, unit="epoch", clips=1800)
    assert picture(display)[-1] == "whole run: part 1 of 2, time left not known yet"
    clock.now = 8.0
    bar.at(2, figures({"stage": 0, "epoch": 2, "loss": 0.5123, "accuracy": 0.8, "learning_rate": 1e-3, "val_top1": None}))
    head, measured, left = picture(display)
    assert head.startswith("stage 0: glancer ━") and head.endswith(" 20%, 450 clips/s, 0:00:32 left")
    assert measured == "  epoch 2/10 loss 0.512 accuracy 80.0% lr 1.0e-03"
    assert left == "whole run: part 1 of 2, roughly 0:01:12 left"  # 32 s, and 5 epochs of twice the weight
    assert all(len(line) <= 80 for line in (head, measured, left))


def test_time_left_counts_down_within_a_unit_and_stops_before_the_next(clock):
    bar = shown_on(True, clock)[0].bar("stage", 4, unit="epoch")
    assert bar.seconds_left() is None
    clock.now = 10
    bar.at(1)
    for now, left in ((10, 30), (14, 26), (20, 20), (50, 20)):
        clock.now = now
        assert bar.seconds_left() == left


def test_what_an_earlier_start_has_done_does_not_count_as_fast(clock):
    bar = shown_on(True, clock)[0].bar("stage 2: policy", 100, done=90, unit="step", clips=0.5)
    clock.now = 10
    bar.at(95)
    assert bar.seconds_left() == 10
    assert "0.2 clips/s" in bar.line()  # 5 steps of half a clip in 10 s


def test_a_leg_that_was_measured_goes_by_what_was_measured(clock):
    display, _ = shown_on(True, clock)
    once = [("stage 2: policy", 100, 1), ("stage 3: head", 2, 50)]
    again = [("round 1, stage 2: policy", 50, 1), ("round 1, stage 3: head", 2, 50)]
    display.plan([*once, *again])
    display.leg("stage 2: policy")
    policy = display.bar("stage 2: policy", 100, unit="step")
    clock.now = 100
    policy.at(100)
    assert picture(display) == []
    display.leg("stage 3: head")
    head = display.bar("stage 3: head", 2, unit="epoch")
    assert picture(display)[-1] == "whole run: part 2 of 4, roughly 0:04:10 left"  # 2·50 + 50 + 2·50
    clock.now = 101
    head.at(1)
    assert picture(display)[-1] == "whole run: part 2 of 4, about 0:00:53 left"  # 1 + 50 + 2·1
    head.at(2)
    display.leg("round 1, stage 2: policy")
    display.bar("stage 2: policy", 50, unit="step")  # whoever makes a bar need not know the round
    assert picture(display)[-1] == "whole run: part 3 of 4, about 0:00:51 left"  # 50 + 2·½


def test_legs_that_were_passed_over_count_as_done(clock):
    display, _ = shown_on(True, clock)
    display.plan([("stage 0", 1, 1), ("stage 1", 1, 1), ("stage 3", 2, 1)])
    display.leg("stage 3")
    bar = display.bar("stage 3", 2)
    display.bar("evaluate", 9)  # which is not planned
    clock.now = 5
    bar.at(1)
    assert picture(display)[-1] == "whole run: part 3 of 3, about 0:00:05 left"
    bar.at(2)
    assert len(picture(display)) == 1  # the evaluation; of the plan nothing is left


def test_a_file_gets_a_line_for_every_tenth_or_when_long_nothing_was_said(clock):
    display, text = shown_on(False, clock)
    with display:
        display.plan([("stage 2: policy", 1000, 1), ("stage 3: head", 1, 1000)])
        display.leg("stage 2: policy")
        bar = display.bar("stage 2: policy", 1000, unit="step", clips=0.25)
        for step in range(1, 101):
            clock.now = step / 2
            bar.at(step, "return 0.5")
        clock.now += PATIENCE
        bar.at(101)
        for step in range(102, 1001):
            bar.at(step)
    lines = text.getvalue().splitlines()
    assert lines[0] == (
        "stage 2: policy 10% step 100/1,000 return 0.5, 0.5 clips/s, 0:07:30 left; whole run: part 1 of 2, roughly 0:15:50 left"
    )
    assert lines[1].startswith("stage 2: policy 10% step 101/1,000")
    assert lines[-1] == "stage 2: policy: step 1,000/1,000 in 0:10:50 return 0.5"
    assert len(lines) == 2 + 8 + 1


def test_what_took_no_time_and_what_has_no_units_leaves_no_lines(clock):
    display, text = shown_on(False, clock)
    with display:
        bar = display.bar("decode train", 100)
        for count in range(1, 101):
            bar.at(count)
        display.bar("decode val", 0).at(0)
        slow = display.bar("decode test", 100)
        clock.now = 3
        for count in range(1, 101):
            slow.at(count)
    assert text.getvalue() == "decode test: 100 in 0:00:03\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_was_cut_short_leaves_its_last_line(terminal, clock):
    display, text = shown_on(terminal, clock)
    with pytest.raises(KeyboardInterrupt), display:
        bar = display.bar("stage 0: glancer", 10, unit="epoch")
        clock.now = 3
        bar.at(3, "loss [1.0]")
        raise KeyboardInterrupt
    assert text.getvalue().rstrip().endswith("stage 0: glancer 30% epoch 3/10 loss [1.0], 0:00:07 left")


def test_lines_stand_above_the_bars_of_a_terminal_and_stay(clock):
    display, text = shown_on(True, clock)
    with display:
        bar = display.bar("stage 0: glancer", 1, unit="epoch")
        display.say("a line")
        bar.at(1)
    lines = text.getvalue()
    assert "a line" in lines and "stage 0: glancer: epoch 1/1 in 0:00:00" in lines
