"""`python -m benchmarks`: all of them."""

from benchmarks.command import NAMES, main

main(NAMES)
