import dataclasses
import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import command, steps, workload
from benchmarks.command import NAMES, Settings, main
from benchmarks.results import Aim, Result, Section, Spread, Time, interleaved, ratio, write_markdown
from benchmarks.workload import step_by_step
from classifiers import optimize as execution
from classifiers.errors import InputError

QUICK = Settings(quick=True, rounds=1, threads=1, device="cpu", precision="bfloat16", compile=False, allocator="tuned")


def test_acts_run_in_turn_and_backwards_in_every_second_round():
    ran = []
    times = interleaved({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, rounds=3)
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(some) for name, some in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_those_of_the_rounds():
    times = {"a": [Time(2, 1), Time(30, 3), Time(4, 8)], "b": [Time(1, 1), Time(10, 1), Time(1, 2)]}
    assert ratio(times, "a", "b") == Spread(3, 2.5, 3.5) and ratio(times, "a", "b", "cpu") == Spread(3, 2, 3.5)
    assert Spread.of([7.0]) == Spread(7, 7, 7)


def test_results_are_written_read_and_shown(tmp_path):
    section = Section("Steps", "A note.", {"a": [Time(2, 1)], "b": [Time(1, 1)]})
    section.ratio("a", "b", aim=Aim("≤", 1.5)).ratio("b", "a", name="b again", aim=Aim("≥", 0.4)).figure("memory", 12.0, "MB")
    assert [row.verdict for row in section.rows] == ["no", "yes", ""]
    result = Result("steps", {"rounds": 1}, {"cores": 2}, [section])
    result.write(tmp_path)
    assert json.loads((tmp_path / "steps.json").read_text())["sections"][0]["times"]["a"] == [{"wall": 2, "cpu": 1}]
    read = Result.read(tmp_path / "steps.json")
    assert read == result
    write_markdown([read], tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "`python -m benchmarks.steps` (cores 2, rounds 1)" in text
    assert "| a | b | 2× | 1× | ≤ 1.5 | no |" in text and "| memory |  | 12 MB |  |  |  |" in text


def test_rates_are_those_of_the_rounds():
    section = Section("Steps", "", {"a": [Time(2, 1), Time(4, 1), Time(8, 1)]}).rate("a", 16, "steps/s", aim=Aim("≥", 3))
    assert section.rows[0].value == Spread(4, 3, 6) and section.rows[0].verdict == "yes"


def test_the_aim_is_the_time_of_a_step_in_units_of_the_bare_head(monkeypatch):
    monkeypatch.setattr(steps, "episode", lambda *arguments: None)
    monkeypatch.setattr(workload, "bare_head", lambda *arguments: None)
    monkeypatch.setattr(steps, "interleaved", lambda acts, rounds: {name: [Time(2 - name.startswith("head"), 1)] for name in acts})
    settings = dataclasses.replace(QUICK, quick=False)
    section = steps._rates(settings, SimpleNamespace(classifier=None), "k = 1", {"reference": {}}, aims=True)
    rows = {row.name: row for row in section.rows}
    assert rows["reference, N = 64: time of a step"].cells()[1:] == ["head, 128 rows", "2×", "1×", "≤ 2.5", "yes"]
    assert rows["reference, N = 64: share"].cells()[1:] == ["head, 128 rows", "0.5×", "1×", "", ""]
    assert [row.name for row in section.rows if row.unit == "×" and row.aim] == ["reference, N = 64: time of a step"]


def test_a_missing_package_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "ap_gym", None)
    section = steps.of_ap_gym(QUICK)
    assert not section.rows and section.note.startswith("Left out: import of ap_gym halted")


@pytest.mark.numerical
def test_the_released_scheme_finds_what_one_pass_finds():
    from agents.evaluation.inference import infer

    network, policy = workload.classifier(QUICK), workload.policy(QUICK)
    frames = workload.frames(QUICK, 2, 4, network)
    actions, scores = step_by_step(network, policy, frames)
    found = infer(network, policy, frames)
    assert torch.equal(actions, found.actions) and len(actions.unique()) > 1
    assert torch.allclose(scores, found.logits, atol=1e-5)


def test_every_name_is_a_benchmark():
    for name in NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").measure)


NUMERICAL = ("inference", "skipping")  # networks in several precisions
SLOW = ("prediction", "steps", "data", "training", "growth", "gpu")
MARKS = dict.fromkeys(NUMERICAL, pytest.mark.numerical) | dict.fromkeys(SLOW, pytest.mark.slow)


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in MARKS.items()])
def test_it_runs_at_tiny_sizes(name, tmp_path, monkeypatch):
    growth = importlib.import_module("benchmarks.growth")
    monkeypatch.setattr(growth, "in_new_process", lambda *arguments: (1.0, 2.0, 0.0))  # a new process takes seconds
    monkeypatch.setattr(importlib.import_module("benchmarks.prediction"), "KILLS", 1)  # each of which is followed by one
    monkeypatch.setattr(workload, "prepare", lambda settings: None)
    main(name, ["--quick", "--no-compile", "--rounds=1", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert found["settings"]["quick"] and found["machine"]["cores"]
    for section in found["sections"]:
        assert section["rows"] or section["note"].startswith("Left out")
        assert all(row["value"]["median"] == row["value"]["median"] for row in section["rows"])
    assert f"## {name}" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("allocator", "calls"), [("tuned", 1), ("default", 0)])
def test_freed_memory_is_cached_if_asked_for(allocator, calls, monkeypatch):
    called = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(workload, "prepare", lambda settings: None)
    monkeypatch.setattr("benchmarks.data.measure", lambda settings: [])
    main("data", ["--quick", "--precision=float32", f"--allocator={allocator}"])
    assert len(called) == calls


def test_quick_means_one_round(monkeypatch):
    seen = []
    monkeypatch.setattr(workload, "prepare", lambda settings: None)
    monkeypatch.setattr("benchmarks.data.measure", lambda settings: seen.append(settings.rounds) or [])
    main("data", ["--quick", "--rounds=3"])
    assert seen == [1]


def test_settings_come_from_the_command_line():
    parsed = vars(command._parser(NAMES).parse_args(["--quick", "--rounds", "3", "--no-compile"]))
    parsed.pop("out")
    assert Settings(**parsed) == dataclasses.replace(QUICK, rounds=3, threads=0, device="auto", precision="auto")


LACKS = "precision=bfloat16 is not supported by this cpu; choose one of ['float32', 'float16']"


def test_the_precision_is_what_the_device_supports(monkeypatch):
    def chosen(asked):
        return workload.choose_precision(dataclasses.replace(QUICK, precision=asked))

    monkeypatch.setattr(execution, "_works", lambda name, device: True)
    assert [chosen(asked) for asked in ("auto", "bfloat16", "float16", "float32")] == ["bfloat16", "bfloat16", "float16", "float32"]
    monkeypatch.setattr(execution, "_works", lambda name, device: name != "bfloat16")
    assert [chosen(asked) for asked in ("auto", "float16")] == ["float32", "float16"]
    with pytest.raises(InputError, match=re.escape(LACKS)):
        chosen("bfloat16")


@pytest.mark.parametrize("compiled", [False, True])
def test_without_another_precision_float32_is_measured_once(compiled):
    settings = dataclasses.replace(QUICK, compile=compiled)
    network = workload.classifier(settings)
    both, alone = (list(workload.executions(dataclasses.replace(settings, precision=name), network)) for name in ("bfloat16", "float32"))
    assert both[:3] == ["float32", workload.DEFAULT, "bfloat16"]
    assert alone == [name for name in both if name.startswith("float32")]
    assert both[3:] == (["float32, compiled", "bfloat16, compiled"] if compiled else [])


def test_a_device_without_bfloat16_is_reported(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(execution, "_works", lambda name, device: name != "bfloat16")
    monkeypatch.setattr(workload, "prepare", lambda settings: None)
    monkeypatch.setattr("benchmarks.data.measure", lambda settings: [Section("One").figure("one", 1.0, "")])
    main("data", ["--quick", f"--out={tmp_path}"])
    assert "the device has no instructions for bfloat16: measured in float32 only" in capsys.readouterr().out
    assert Result.read(tmp_path / "results" / "data.json").settings["precision"] == "float32"
    with pytest.raises(SystemExit) as caught:
        main("data", ["--quick", "--precision=bfloat16"])
    assert caught.value.code == 2 and f"error: {LACKS}" in capsys.readouterr().err
