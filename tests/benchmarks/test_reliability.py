"""`python -m benchmarks.reliability`: its parts, and, among the slow tests, a short form of every section."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import bits, faults, fuzz, kills
from benchmarks.reliability.__main__ import SECTIONS, main
from benchmarks.reliability.children import Trap
from benchmarks.reliability.commands import KINDS, difference
from benchmarks.results import Section
from benchmarks.usage import Usage, children_of, handle_growth, memory_growth, still_running, usage_of
from classifiers.errors import InputError

# Moments and traps


def test_moments_depend_on_the_seed_alone_and_the_first_ones_stay():
    plan = kills.moments(50, 0)
    assert plan == kills.moments(50, 0) != kills.moments(50, 1)
    assert plan[:7] == kills.moments(7, 0)
    assert {moment.kind for moment in plan} == {*KINDS}
    assert sum(moment.share is not None for moment in plan) >= 10
    assert all(not KINDS[moment.kind].predicts for moment in plan if moment.share is not None)


TRAPPED = """
import sys, pathlib
from benchmarks.reliability.children import Trap, _hook
sys.addaudithook(_hook(Trap(*{trap})))
folder = pathlib.Path({folder!r})
for number in range(3):
    temporary = folder / f".data.{{number}}.part"
    temporary.write_bytes(b"x" * 100)
    temporary.replace(folder / "data")
    print(number, flush=True)
"""


def trapped(folder, *trap):
    code = TRAPPED.format(trap=trap, folder=str(folder))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("share", "left"), [(0.0, 0), (0.5, 50), (1.0, 100)])
def test_a_trap_kills_inside_a_write(tmp_path, share, left):
    done = trapped(tmp_path, "data$", 2, "os.rename", "kill", share)
    assert (done.returncode, done.stdout) == (-9, "0\n")
    assert (tmp_path / "data").stat().st_size == 100 and (tmp_path / ".data.1.part").stat().st_size == left


def test_a_trap_fills_the_disk(tmp_path):
    done = trapped(tmp_path, r"\.part$", 2, "open", "full")
    assert done.returncode == 1 and done.stdout == "0\n" and "OSError: [Errno 27] File too large" in done.stderr


def test_a_trap_for_other_files_stays_open(tmp_path):
    assert trapped(tmp_path, "nothing$", 1, "open", "kill").stdout == "0\n1\n2\n"
    assert Trap("x").act == "kill"


def test_outcomes_are_compared():
    assert difference((b"a", {}), (b"a", {})) == ""
    assert difference((b"a", {1: 2}), (b"b", {})) == "metrics or number of predictions, result or predictions"


# Damages


def test_the_damages_of_a_seed_are_the_same_and_differ_from_the_sound_file():
    sound, other = np.random.default_rng(1).bytes(3000), b"o" * 500

    def damaged(seed):
        return {name: damage(sound, other, np.random.default_rng(seed)) for name, damage in fuzz.DAMAGES.items()}

    assert damaged(3) == damaged(3)
    assert all(data != sound for name, data in damaged(3).items() if name != "wrong suffix")
    assert damaged(3)["empty"] == b"" and damaged(3)["appended"].startswith(sound) and sound.startswith(damaged(3)["truncated"])


def test_unaccounted_videos_are_noticed():
    files = {Path("a"): "text", Path("b"): "empty"}
    section = fuzz._section("it", "", files, 0, {Path("a")}, {}, 0, 1.0)
    rows = {row.name: row.verdict for row in section.rows}
    assert rows["videos that are read, or named with the reason"] == "no" and rows["commands that crash"] == "yes"
    section = fuzz._section("it", "", files, 0, {Path("a")}, {Path("b"): "the process that worked on it died (signal SIGSEGV)"}, -11, 1.0)
    rows = {row.name: (row.value.median, row.verdict) for row in section.rows}
    assert rows["videos that are read, or named with the reason"] == (2, "yes")
    assert rows["commands that crash"] == (1, "no") and rows["videos whose decoder crashed"] == (1, "")


# Flipped bits


@pytest.mark.parametrize(
    ("load", "fault"),
    [
        (lambda folder: (folder / "x").read_bytes(), "other values without an error"),
        (lambda folder: pytest.fail("bug"), "in place of a named error"),
        (lambda folder: _refuse("something is wrong"), "the message does not name x"),
        (lambda folder: _refuse("x is damaged"), ""),
        (lambda folder: b"sound", ""),
    ],
)
def test_flips_that_go_unnoticed_are_reported(tmp_path, load, fault):
    (tmp_path / "x").write_bytes(b"flipped")
    found = bits._noticed(load, tmp_path, tmp_path / "x", b"sound")
    assert fault in found and bool(found) == bool(fault)


def _refuse(message):
    raise InputError(message)


# Usage


def test_growth_counts_from_a_share_of_the_work():
    measured = [(0, 10, 9), (10, 50, 5), (15, 50, 6), (50, 70, 5), (90, 60, 8), (95, 60, 7), (100, 60, 3)]
    used = [Usage(done, memory, handles, ()) for done, memory, handles in measured]
    assert memory_growth(used, 0.1) == 20 and memory_growth(used, 1.0) == 0 and handle_growth(used) == 2


def test_files_that_are_open_from_time_to_time_and_a_short_run_are_no_growth():
    used = [Usage(done, 1, 5 + (done % 2), ()) for done in (10, 13, 14, 15, 91, 93, 95, 96, 100)]
    assert handle_growth(used) == handle_growth(used[-1:]) == 0


def test_usage_is_that_of_the_process(tmp_path):
    with (tmp_path / "open").open("w"), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        usage = usage_of(os.getpid(), 3)
        assert usage.done == 3 and usage.memory > 1 and child.pid in usage.children == children_of(os.getpid())
        more = [(tmp_path / f"{number}").open("w") for number in range(5)]
        assert usage_of(os.getpid(), 3).handles == usage.handles + 5
        assert still_running([child.pid], patience=0.1) == [child.pid]
        child.kill()
        child.wait()
        for file in more:
            file.close()
    assert still_running([child.pid]) == [] and usage_of(child.pid, 0) is None


# The command


def test_tables_replace_those_of_the_same_section(tmp_path, monkeypatch, capsys):
    def measure(name, parsed, folder, console):
        yield Section(f"{parsed.kills} {name}").figure("all", 1, "", aim=None)

    monkeypatch.setattr("benchmarks.reliability.__main__.measure", measure)
    main([f"--out={tmp_path}"])
    main(["kills", f"--out={tmp_path}", "--kills=7"])
    titles = [section["title"] for section in json.loads((tmp_path / "reliability.json").read_text())["sections"]]
    assert titles == [f"{name}: {7 if name == 'kills' else 50} {name}" for name in SECTIONS]


def test_what_does_not_survive_is_the_exit_message(monkeypatch):
    lost = fuzz._section("it", "", {Path("a"): "text"}, 0, set(), {}, 0, 1.0)
    monkeypatch.setattr("benchmarks.reliability.__main__.growth.of_steps", lambda count: lost)
    with pytest.raises(SystemExit, match=r"did not survive: 1 damaged videos: it: videos that are read"):
        main(["steps", "--out="])


def test_every_kind_of_file_has_flips(tmp_path):
    lab = faults.Lab(tmp_path, tmp_path, tmp_path)
    names = [*faults.faults(lab)]
    assert all(any(what in name for name in names) for what in (*bits.FILES, *faults.FULL_DISK, *faults.NOT_FINITE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["fuzz", "--videos=27"],
        ["kills", "--kills=2"],
        ["faults", "--only=decoder|a checkpoint of PPO|policy.safetensors"],
        ["steps", "--steps=20000"],
        ["predictions", "--predictions=20"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_short_form_survives(arguments, tmp_path):
    main([*arguments, f"--out={tmp_path}"])
    sections = json.loads((tmp_path / "reliability.json").read_text())["sections"]
    assert all(section["rows"] and not section["failure"] for section in sections)
