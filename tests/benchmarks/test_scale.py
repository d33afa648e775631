"""The plan for large data sets."""

import pytest

from benchmarks import scale
from benchmarks.command import Settings
from benchmarks.scale import Assumed, Costs, Measured, tables
from classifiers.model_zoo import ARCHITECTURES


def cell(table, row, column):
    heading, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    return next(each for each in rows if each[0] == row)[heading.index(column)]


def test_hours_and_sizes_follow_from_costs_per_video():
    measured = Measured(decode=0.036, networks=1.0, record=4000, write=0.001)
    costs = Costs(predict=20_000_000_000, fill=400_000_000_000, clip=4_000_000, bank=5_000_000)
    per_video, storage, hours, note = tables(measured, costs, Assumed(gpus=10, gpu_gmacs=2000, cores=4, price=3, hours=1))
    limits = {"the networks": "100", "decoding": "111", "writing of records": "1e+03"}
    for name, limit in limits.items():
        assert cell(per_video, f"limit by {name}, per GPU with 4 cores", "figure") == f"{limit} videos/s"
    assert cell(per_video, "cores per GPU with which decoding would not limit", "figure") == "3.6"
    million = "a million videos"
    assert [cell(storage, million, each) for each in ("clips", "bank, float16", "predictions")] == ["4 TB", "5 TB", "4 GB"]
    assert cell(storage, million, "files of the bank") == "125,000" and cell(storage, million, "folders of clips") == "15,625"
    assert cell(hours, million, "decode, core hours") == "10" and cell(hours, million, "predict, GPU hours") == "2.78 (0.28)"
    assert cell(hours, million, "fill a bank, GPU hours") == "55.6 (5.6)" and cell(hours, million, "price of both") == "175"
    assert cell(hours, million, "jobs") == "3" and cell(hours, million, "videos per job") == "333,334"
    assert "hours on 10 GPUs" in note and "at 100 videos/s" in note
    *_, note = tables(measured, costs, Assumed(gpus=10, gpu_gmacs=2000, cores=1, price=3, hours=1))
    assert "at 27.8 videos/s" in note  # decoding limits


def test_costs_of_the_published_networks():
    costs = scale.costs(Settings(False, 1, 0, "cpu", "float32", False, "tuned"))
    assert costs.predict / 1e9 == pytest.approx(17.2, rel=0.01)  # as published
    assert costs.bank == pytest.approx(5.3e6, rel=0.02)  # as in docs/speed.md
    assert costs.clip == 16 * 3 * 256 * 341 and ARCHITECTURES["paper"].size == 224


@pytest.mark.slow
def test_the_command_measures_and_prints_tables(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale.main(["--quick"])
    printed = capsys.readouterr().out
    assert "| a million videos | 1,000,000 |" in printed and "measured" in printed and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["gpus", "gpu-gmacs", "cores", "price", "hours"])
def test_assumptions_are_positive(name, capsys):
    with pytest.raises(SystemExit):
        scale.main([f"--{name}", "0"])
    assert f"--{name} must be above 0, got 0" in capsys.readouterr().err
