"""Tests that try to break the whole. Each section prints what was tried and what survived.

    python -m benchmarks.reliability                       all sections, at full size
    python -m benchmarks.reliability fuzz growth           some of them
    python -m benchmarks.reliability kills --kills 10      fewer kills: the first ten
    python -m benchmarks.reliability faults --only disk    the faults whose names match a regular expression

Sections: fuzz (damaged videos), kills (SIGKILL, then the same command again), faults (stopped decoders, full disks, lost caches, NaN
losses, flipped bits), steps and predictions (whether memory grows). The results replace those of the same sections in
`benchmarks/results/reliability.json`. The exit status is 1 if something did not survive.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.reliability import faults, fuzz, growth, kills
from benchmarks.results import Result, Section
from benchmarks.workload import machine

SECTIONS = ("fuzz", "kills", "faults", "steps", "predictions")
NAME = "reliability"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run sections, show their results and write them."""
    parsed = _parser().parse_args(arguments)
    console, failed = Console(), list[str]()
    for name in parsed.sections or SECTIONS:
        with TemporaryDirectory() as folder:
            for section in measure(name, parsed, Path(folder), console):
                console.print(section.markdown(), markup=False, highlight=False, soft_wrap=True)
                failed += [f"{section.title}: {row.name}" for row in section.rows if row.verdict == "no"]
                if parsed.out:
                    _write(name, section, Path(parsed.out))
    if failed:
        sys.exit("did not survive: " + "; ".join(failed))


def measure(name: str, parsed: argparse.Namespace, folder: Path, console: Console) -> Iterator[Section]:
    """Yield the tables of a section."""
    if name == "fuzz":
        yield from fuzz.measure(parsed.videos, parsed.seed, folder)
    elif name == "kills":
        yield kills.measure(parsed.kills, parsed.seed, folder, console)
    elif name == "faults":
        yield faults.measure(folder, console, parsed.only)
    elif name == "steps":
        yield growth.of_steps(parsed.steps)
    else:
        yield growth.of_predictions(parsed.predictions, folder)


def _write(name: str, section: Section, out: Path) -> None:
    """Write a table in place of the earlier one of the same section and kind, and leave all other tables as they are."""
    path = out / f"{NAME}.json"
    result = Result.read(path) if path.exists() else Result(NAME, {}, {}, [])
    section.title = f"{name}: {section.title}"
    result.machine, kind = machine(), _kind(section)
    result.sections = sorted(
        [*(each for each in result.sections if _kind(each) != kind), section],
        key=lambda each: (SECTIONS.index(each.title.partition(":")[0]), each.title),
    )
    result.write(out)


def _kind(section: Section) -> str:
    """Return the title without its numbers."""
    return "".join(letter for letter in section.title if not letter.isdigit() and letter != ",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--videos", type=int, default=1000, help="damaged videos (1000)")
    parser.add_argument("--kills", type=int, default=50, help="kills (50)")
    parser.add_argument("--only", default="", help="regular expression of the names of faults (all)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps (1000000)")
    parser.add_argument("--predictions", type=int, default=10_000, help="predicted videos (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of damages and moments (0)")
    results = str(Path(__file__).parents[1] / "results")
    parser.add_argument("--out", default=results, help="folder of reliability.json; empty: nothing is written (benchmarks/results)")
    return parser


if __name__ == "__main__":
    main()
