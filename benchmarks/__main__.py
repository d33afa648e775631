"""`python -m benchmarks`: all of them."""

from benchmarks.command import run_all

run_all()
