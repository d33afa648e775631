"""Kill a training repeatedly, and check that it ends with the same metrics as an uninterrupted training.

    python tests/interruptions.py
    python tests/interruptions.py --kills 20 --seed 1 --keep DIR
    python tests/interruptions.py --command train_end_to_end

A small training runs once to its end. By default, it has all stages and a joint round. Then the same training is killed at random moments,
at least once in every stage, by SIGKILL, SIGTERM and SIGINT in turns, and restarted each time. Both trainings must leave the same
`metrics.jsonl`, byte for byte, and the same result.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from agents.runs.run_dir import METRICS, RunDir

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHARED = ("data.task=easy@v0", "device=cpu", "patch_size=32")
TRAININGS = {
    "train_stages": (
        *SHARED, "stages.glancer.epochs=2", "stages.focuser.epochs=3", "stages.random_patches.epochs=4", "ppo.total_steps=8192",
        "stages.finetune.epochs=3", "joint.total_steps=4096", "rounds=1",
    ),
    "train_end_to_end": (*SHARED, "learning.epochs=12"),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both trainings and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=TRAININGS, default="train_stages")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--keep", type=Path, help="directory for both runs; by default they are removed")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        equal = compare(parsed.command, parsed.keep or Path(folder), parsed.kills, np.random.default_rng(parsed.seed))
    sys.exit(0 if equal else 1)


def compare(command: str, folder: Path, kills: int, rng: np.random.Generator) -> bool:
    """Run both trainings below ``folder``, print where the second was killed, and return whether they ended equally."""
    whole, pieces, console = folder / "whole", folder / "pieces", Console()
    _start(command, whole).wait()
    lines = RunDir(whole).metrics()
    table = Table("kill", "signal", "at line", "stage", "seconds after it", title=f"{kills} kills in {len(lines)} lines of metrics")
    for number, line in enumerate(_moments(lines, kills, rng)):
        kind, delay = SIGNALS[number % len(SIGNALS)], rng.uniform(0, 3)
        logged = _kill(_start(command, pieces), pieces, line, delay, kind)
        table.add_row(str(number + 1), kind.name, str(logged), str(lines[min(logged, len(lines) - 1)]["stage"]), f"{delay:.1f}")
    _start(command, pieces).wait()
    equal = _outcome(whole) == _outcome(pieces)
    console.print(table)
    console.print(f"metrics.jsonl and result.json: {'equal' if equal else 'NOT equal'}")
    return equal


def _moments(lines: Sequence[dict[str, object]], kills: int, rng: np.random.Generator) -> list[int]:
    """Return the lines after which to kill, in order: one in every stage, the others anywhere."""
    stages = np.array([line["stage"] for line in lines])
    chosen = [int(rng.choice(np.flatnonzero(stages == stage))) for stage in np.unique(stages)]
    return sorted([*chosen, *rng.integers(len(lines), size=max(0, kills - len(chosen))).tolist()])


def _start(command: str, run: Path) -> subprocess.Popen[bytes]:
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", f"agents.{command}", f"run={run}", *TRAININGS[command]], stdout=log, stderr=log)


def _kill(process: subprocess.Popen[bytes], run: Path, line: int, delay: float, kind: signal.Signals) -> int:
    """Kill the training ``delay`` seconds after it has logged the given number of lines; return the number of lines at that time."""
    while len(RunDir(run).metrics()) < line and process.poll() is None:
        time.sleep(0.05)
    time.sleep(delay)
    process.send_signal(kind)
    process.wait()
    return len(RunDir(run).metrics())


def _outcome(run: Path) -> tuple[bytes, dict[str, object]]:
    """Return everything that must be equal: the bytes of the metrics, and the result without times."""
    return (run / METRICS).read_bytes(), {**RunDir(run).result(), "seconds": None}


if __name__ == "__main__":
    main()
