"""`python -m benchmarks`: run all benchmarks."""

from benchmarks.command import run_all

run_all()
