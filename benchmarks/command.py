"""The commands: `python -m benchmarks` and `python -m benchmarks.NAME`."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classifiers.errors import InputError

NAMES = (
    "main_job", "inference", "skipping", "env_steps", "steps", "bank_filling", "ppo", "stages", "driver", "decode", "transforms",
    "memory", "growth", "gpu",
)  # fmt: skip
TUNED = {name: str(1 << 30) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}


@dataclass(frozen=True)
class Settings:
    """What a benchmark is told.

    Attributes:
        quick: tiny networks and videos, one round.
        rounds: of every comparison.
        threads: of PyTorch on the CPU; 0: as many as it likes.
        device: auto, cpu or cuda.
        precision: measured beside float32, unless it is float32; auto: bfloat16 where the device supports it, otherwise float32.
        compile: compile the networks where that is measured.
        allocator: tuned: glibc keeps big blocks of memory instead of giving them back to the system; default: as it comes.
    """

    quick: bool
    rounds: int
    threads: int
    device: str
    precision: str
    compile: bool
    allocator: str


def run_all() -> None:
    """Runs every benchmark, each in a process of its own: what one leaves behind in memory is no part of another's figures."""
    _parser(NAMES).parse_args()
    for name in NAMES:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]])
        if done.returncode:
            sys.exit(done.returncode)


def main(names: Sequence[str], arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmarks ``names``, shows what they find and writes it.

    Args:
        names: see `NAMES`.
        arguments: of the command line; None: those of this process, which starts itself anew with the allocator asked for.
    """
    parser = _parser(names)
    parsed = parser.parse_args(arguments)
    settings = Settings(**{key: value for key, value in vars(parsed).items() if key != "out"})
    if arguments is None:
        _with_allocator(settings.allocator)
    out = Path(parsed.out) if parsed.out else None if settings.quick else Path(__file__).parent
    try:
        _run(names, settings, out)
    except InputError as problem:
        parser.error(str(problem))


def _run(names: Sequence[str], settings: Settings, out: Path | None) -> None:
    """Exits with status 1 after the last section where one could not be measured."""
    from rich.console import Console

    from benchmarks.sections import Result, write_markdown
    from benchmarks.workload import choose_precision, machine, prepare

    console, failed, asked = Console(), list[str](), settings
    settings = replace(asked, precision=choose_precision(asked))
    if (asked.precision, settings.precision) == ("auto", "float32"):
        console.print("the device has no instructions for bfloat16: measured in float32 only")
    prepare(settings)
    if settings.quick:
        console.print("quick: tiny sizes, so that the figures mean nothing")
    for name in names:
        console.rule(name)
        result = Result(name, vars(settings), machine(), [])
        module = importlib.import_module(f"benchmarks.{name}")
        for section in module.measure(settings):
            console.print(section.table())
            if section.failure:
                console.print(section.failure, style="red", markup=False, highlight=False)
            result.sections.append(section)
            failed += [section.title] if section.failure else []
            if out is not None and any(each.rows or each.failure for each in result.sections):  # else an earlier table stays
                result.write(out / "results")  # after each section: a run that is stopped has not been for nothing
        if out is not None and hasattr(module, "draw"):
            module.draw(result.sections, out / "results" / f"{name}.png")
    if out is not None:
        found = [out / "results" / f"{name}.json" for name in NAMES]
        write_markdown([Result.read(path) for path in found if path.exists()], out / "RESULTS.md")
        console.print(f"written to {out / 'RESULTS.md'} and {out / 'results'}")
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


def _with_allocator(name: str) -> None:
    """Starts this process anew where glibc was not told what to do before it began."""
    if platform.libc_ver()[0] != "glibc":
        return
    others = {key: value for key, value in os.environ.items() if key not in TUNED}
    wanted = {**others, **TUNED} if name == "tuned" else others
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    command = "python -m benchmarks" if len(names) > 1 else f"python -m benchmarks.{names[0]}"
    parser = argparse.ArgumentParser(prog=command, description=f"Measures: {', '.join(names)}.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="of every comparison (7)")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch on the CPU (0: its own choice)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    precisions = ["auto", "bfloat16", "float16", "float32"]
    parser.add_argument("--precision", default="auto", choices=precisions, help="measured beside float32 (auto: bfloat16 if supported)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave compiled networks out")
    parser.add_argument("--allocator", default="tuned", choices=["tuned", "default"], help="what glibc does with big blocks (tuned)")
    parser.add_argument("--out", default="", help="folder for results/*.json and RESULTS.md (benchmarks; with --quick nothing is written)")
    return parser
