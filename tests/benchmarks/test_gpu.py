import dataclasses
import json

import numpy as np
import pytest
import torch
from crossings import crossings
from test_benchmarks import QUICK

from adafocus_env.vector_env import AdaFocusVectorEnv
from benchmarks import gpu
from benchmarks.command import main
from benchmarks.gpu import Card
from benchmarks.results import Result, Section

N = 3
SCALAR = {"aten::item": 1, "aten::_local_scalar_dense": 1}


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda x: x.exp().sum(), {}),
        (lambda x: x.numpy(), {"numpy": 1}),
        (lambda x: x.cpu().numpy(), {"cpu": 1, "numpy": 1}),
        (lambda x: np.asarray(x), {"__array__": 1}),
        (lambda x: x.tolist(), {"tolist": 1}),
        (lambda x: x.sum().item(), {"item": 1, **SCALAR}),
        (lambda x: float(x.sum()), {"__float__": 1, **SCALAR}),
        (lambda x: 1 if x.any() else 0, {"__bool__": 1, **SCALAR}),
        (lambda x: x[x > 1], {"aten::nonzero": 1}),
        (lambda x: torch._assert_async(x.all()), {}),
    ],
)
def test_crossings_are_counted(act, found):
    x = torch.arange(1.0, 4.0)
    assert crossings(lambda: act(x)) == found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        *(({"observation": name}, {}) for name in ("reference", "reference_looks", "map", "vector", "dict")),
        ({"baseline": "all"}, {}),
        ({"action": "skip"}, {"cpu": 1, "numpy": 1}),  # of the actions: which frames are looked at decides what is computed
        ({"output": "numpy"}, {"cpu": 4, "numpy": 4}),  # actions, confidences, predictions, observations
    ],
    ids=str,
)
def test_crossings_of_a_step(classifier, clips, bank, arguments, found):
    """A step on a grid with output="torch" copies nothing to the host."""
    given = {"observation": "vector", "output": "torch", "bank": bank, "autoreset_mode": "DISABLED", **arguments}
    env = AdaFocusVectorEnv(N, classifier, clips, **given)
    env.reset(seed=0)
    cells = torch.zeros(N, dtype=torch.int64)
    env.step(cells)  # fills the bank
    env.step(cells)
    env.reset(seed=0)
    assert crossings(lambda: env.step(cells)) == found


def measured(card):
    """Return a section that works."""
    return Section("Works").figure("one", 1.0, "")


def broken(card):
    """Raise an error, as a section that fails."""
    raise ZeroDivisionError("for the test")


def test_a_section_that_fails_is_shown_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "MEASUREMENTS", (broken, measured))
    with pytest.raises(SystemExit, match="could not be measured: broken"):
        main("gpu", ["--quick", "--device=cpu", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "results" / "gpu.json").read_text(encoding="utf-8"))["sections"]
    assert [section["title"] for section in found] == ["broken", "Works"] and found[1]["rows"]
    for text in (found[0]["failure"], (tmp_path / "RESULTS.md").read_text(encoding="utf-8"), capsys.readouterr().out):
        assert "ZeroDivisionError: for the test" in text


def test_without_a_gpu_there_is_nothing_to_measure():
    (section,) = gpu.measure(dataclasses.replace(QUICK, quick=False))
    assert section.note.startswith("Left out: there is no GPU here") and not section.rows


def test_compiled_networks_are_left_out_without_compiling():
    section = gpu.compiled_inference(Card(dataclasses.replace(QUICK, quick=False, compile=False)))
    assert not section.rows and section.note.startswith("Left out: --no-compile")


def test_shares_are_those_of_the_peak():
    card, section = Card(QUICK, peaks={"float32": 100.0}), Section("x")
    section.times["a"] = [gpu.Time(2.0, 2.0)]
    card.share(section, "a", 50.0, "float32")  # 50 multiply-adds are 100 FLOP, in 2 seconds
    card.share(section, "a", 50.0, "bfloat16")  # whose peak is not known
    assert [(row.name, row.value.median) for row in section.rows] == [("a: share of the peak", 50.0)]


def test_where_there_is_no_gpu_an_earlier_table_stays(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.workload.prepare", lambda settings: None)
    Result("gpu", {}, {}, [Section("A card").figure("peak", 1.0, "TFLOP/s")]).write(tmp_path / "results")
    main("gpu", ["--device=cpu", f"--out={tmp_path}"])
    assert [section.title for section in Result.read(tmp_path / "results" / "gpu.json").sections] == ["A card"]
