import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import NEW, left_by_force

from agents.runs import loggers
from agents.runs.loggers import Curves, check_log
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

LINES = [
    {"stage": 0, "part": "glancer", "epoch": 1, "loss": 2.0},
    {"stage": 2, "update": 1, "steps": 64, "return": 0.1},
    {"stage": 2, "update": 2, "steps": 128, "return": 0.2, "val_top1": None},
    {"stage": 2, "round": 1, "update": 1, "steps": 64, "return": 0.3},
    {"stage": 2, "round": 2, "update": 1, "steps": 64, "return": 0.4},
]


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every curve that TensorBoard shows, as (step, value)."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(each.step, round(each.value, 6)) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def start(folder: Path, lines: list[dict], keep: int | None = None) -> None:
    """Start a run: remove the lines after the first ``keep`` lines, and log further lines."""
    with RunDir.open(folder, {"seed": 0}, force=False) as run:
        shown = Curves(run, ["tensorboard"])
        run.watch(shown)
        if keep is not None:
            run.truncate(keep)
        for line in lines:
            run.log(line)
        shown.close()


WHOLE = {
    "stage 0 glancer/loss": [(1, 2.0)],
    "stage 2/return": [(64, 0.1), (128, 0.2), (192, 0.3), (256, 0.4)],
}


def test_all_stages_are_drawn_and_later_rounds_go_on_where_those_before_ended(tmp_path):
    start(tmp_path, LINES)
    assert drawn(tmp_path) == WHOLE


def test_a_file_of_metrics_with_other_counts_is_named(tmp_path):
    start(tmp_path, LINES)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"steps": 64', '"steps": "64"'))
    message = r"metrics\.jsonl must count steps or epochs in integers, got '64'; force=true starts over"
    with pytest.raises(InputError, match=message):
        start(tmp_path, LINES[:1])


@pytest.mark.parametrize("kept", range(len(LINES) + 1))
def test_a_run_that_goes_on_draws_every_point_once(kept, tmp_path):
    start(tmp_path, LINES)
    start(tmp_path, LINES[kept:], keep=kept)
    assert drawn(tmp_path) == WHOLE


def test_lines_that_are_taken_back_disappear_while_the_run_goes_on(tmp_path):
    with RunDir.open(tmp_path, {"seed": 0}, force=False) as run:
        shown = Curves(run, ["tensorboard"])
        run.watch(shown)
        for line in LINES[:3]:
            run.log(line)
        run.truncate(1)
        run.log({"stage": 2, "steps": 32, "return": 0.9})
        run.log({"stage": 2, "steps": 64, "return": float("nan")})
        shown.close()
    assert drawn(tmp_path) == {"stage 0 glancer/loss": [(1, 2.0)], "stage 2/return": [(32, 0.9)]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_full_disk_is_named_and_the_next_start_draws_every_point(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunDir.open(tmp_path, {"seed": 0}, force=False) as run:
        shown = Curves(run, ["tensorboard"])
        for line in LINES[:-1]:
            run.log(line)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(InputError, match=rf"cannot write the curves of {tmp_path}: .*; free some space and start again"):
                for _ in range(3):  # TensorBoard reports an error of its thread at a later call
                    shown(LINES[-2])
            with contextlib.suppress(InputError):
                shown.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    start(tmp_path, LINES[-1:])
    assert drawn(tmp_path) == WHOLE


def test_nothing_is_drawn_where_nothing_is_asked_for(tmp_path):
    with RunDir.open(tmp_path, {"seed": 0}, force=False) as run:
        run.watch(Curves(run, []))
        run.log(LINES[0])
    assert not (tmp_path / "tensorboard").exists()


def test_a_writer_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(InputError, match=r"log='tensorbord' is not known; did you mean 'tensorboard'\? choose one of \['tensorboard', "):
        check_log(["tensorbord"])
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    check_log(["tensorboard"])
    with pytest.raises(InputError, match=r"log=\['tensorboard', 'wandb'\] needs the package wandb: pip install wandb"):
        check_log(["tensorboard", "wandb"])


WANDB = """
import sys
from agents.runs.loggers import Curves
from agents.runs.run_dir import RunDir

with RunDir.open(sys.argv[1], {"seed": 7}, force=False) as run:
    curves = Curves(run, ["tensorboard", "wandb"])
    run.watch(curves)
    for steps in map(int, sys.argv[2:]):
        run.log({"stage": 2, "steps": steps, "return": steps / 100})
    curves.close()
"""


def test_wandb_gets_every_line_of_a_start(tmp_path):
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(Path(__file__).parents[3]), "HOME": str(tmp_path)}
    folder = tmp_path / "run"
    for steps in (["64", "128"], ["192"]):
        subprocess.run([sys.executable, "-c", WANDB, str(folder), *steps], env=environment, check=True, timeout=120)
    identity = (folder / "wandb_id").read_text()
    sent = [sent_lines(file) for file in sorted((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))]
    assert sent == [[(1, 64.0, 0.64), (2, 128.0, 1.28)], [(3, 192.0, 1.92)]]
    assert drawn(folder)["stage 2/return"] == [(64, 0.64), (128, 1.28), (192, 1.92)]
    assert left_by_force(folder, tmp_path / "copy") == NEW


def sent_lines(file: Path) -> list[tuple[int, float, float]]:
    """Return (line, step of the curve, return) of the records that wandb has stored to send, in LevelDB's log format, in one block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, found = file.read_bytes(), 7, []
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1, "a record that is whole"
        record = Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.HasField("history"):
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append((values["_step"], values["stage 2/step"], values["stage 2/return"]))
    return found
