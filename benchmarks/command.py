"""The commands `python -m benchmarks` and `python -m benchmarks.NAME`."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from agents.config.allocator import keep_freed_memory
from benchmarks.results import Result, write_markdown
from classifiers.errors import InputError

NAMES = ("main_job", "inference", "prediction", "skipping", "steps", "data", "training", "growth", "gpu")


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        quick: Use tiny networks and videos, and only one round.
        rounds: Number of rounds of every comparison.
        threads: Threads of PyTorch on the CPU; 0: PyTorch's choice.
        device: auto, cpu or cuda.
        precision: Number format that is measured in addition to float32; auto: bfloat16 if the device supports it, otherwise float32.
        compile: Also measure compiled networks.
        allocator: "tuned": glibc caches freed memory, as in all commands; "default": glibc has its default settings.
    """

    quick: bool
    rounds: int
    threads: int
    device: str
    precision: str
    compile: bool
    allocator: str


def run_all() -> None:
    """Run every benchmark in a separate process, so that the memory of a benchmark does not affect the next benchmark."""
    _parser(NAMES).parse_args()
    for name in NAMES:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]])  # noqa: S603  # the user's own arguments
        if done.returncode:
            sys.exit(done.returncode)


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark ``name``, show its results and write them."""
    parser = _parser([name])
    parsed = vars(parser.parse_args(arguments))
    out = parsed.pop("out")
    settings = Settings(**{**parsed, "rounds": 1 if parsed["quick"] else parsed["rounds"]})
    try:
        _run(name, settings, Path(out) if out else None if settings.quick else Path(__file__).parent)
    except InputError as problem:
        parser.error(str(problem))


def _run(name: str, asked: Settings, out: Path | None) -> None:
    """Run benchmarks and write their results; exit with status 1 at the end if a section could not be measured."""
    from benchmarks.workload import choose_precision, machine, prepare  # these import `Settings`

    console, failed = Console(), list[str]()
    settings = replace(asked, precision=choose_precision(asked))
    prepare(settings)
    if settings.allocator == "tuned":
        keep_freed_memory()
    if (asked.precision, settings.precision) == ("auto", "float32"):
        console.print("the device has no instructions for bfloat16: measured in float32 only")
    if settings.quick:
        console.print("quick: tiny sizes, so that the figures mean nothing")
    console.rule(name)
    result = Result(name, vars(settings), machine(), [])
    for section in importlib.import_module(f"benchmarks.{name}").measure(settings):
        console.print(section.markdown(), markup=False, highlight=False, soft_wrap=True)
        failed += [section.title] if section.failure else []
        result.sections.append(section)
        if out is not None and any(each.rows or each.failure for each in result.sections):  # otherwise, keep the earlier table
            result.write(out / "results")  # after every section, in case the run is interrupted
    if out is not None:
        files = [out / "results" / f"{name}.json" for name in NAMES]
        write_markdown([Result.read(path) for path in files if path.exists()], out / "RESULTS.md")
        console.print(f"written to {out / 'RESULTS.md'} and {out / 'results'}")
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    command = "python -m benchmarks" if len(names) > 1 else f"python -m benchmarks.{names[0]}"
    parser = argparse.ArgumentParser(prog=command, description=f"Measures: {', '.join(names)}.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every comparison (7)")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch on the CPU (0: PyTorch's choice)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    precisions = ["auto", "bfloat16", "float16", "float32"]
    parser.add_argument("--precision", default="auto", choices=precisions, help="in addition to float32 (auto: bfloat16 if supported)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave compiled networks out")
    parser.add_argument("--allocator", default="tuned", choices=["tuned", "default"], help="whether glibc caches freed blocks (tuned)")
    parser.add_argument("--out", default="", help="folder for results/*.json and RESULTS.md (benchmarks; with --quick nothing is written)")
    return parser
